"""Who is connected, what they take, and who of them takes the next job."""

from __future__ import annotations

from collections import OrderedDict
from heapq import heapify, heappop, heappush, heapreplace

from broker.core.job import Job
from broker.core.lanes import Lane
from broker.core.timers import Timer

Origin = tuple[bytes, ...]
"""The frames that a message came with, up to and with the empty one: the way back to its sender.
The first of them is the connection."""

_NOT_FREE = -1
_ONE_BY_ONE = 64
"""A credit up to this is taken for jobs that run at a time; what is over it, for jobs that wait."""
_RUNS_AHEAD = 4
"""Jobs that are to wait go in runs, of such a part of their number: a message costs as much as 30
jobs. The SDK has 20 ms of work wait, so a run may keep a worker 5 ms longer than its neighbor."""


def is_self_named(connection: bytes) -> bool:
    """Say whether a connection has an id of its peer's choice: another one may have the same soon.

    Those that the ROUTER chooses begin with a zero byte, which no peer's may (ZMTP 3.1, Identity).
    """
    return connection[:1] != b"\0"


class Worker:
    """A connected worker."""

    __slots__ = (
        "connection",
        "credit",
        "last_seen",
        "level",
        "name",
        "origin",
        "outgoing",
        "pool",
        "room",
        "running",
        "session",
        "stalled",
        "timer",
    )

    def __init__(self, origin: Origin, name: str, session: str, credit: int, pool: Pool) -> None:
        self.connection = origin[0]
        # Where its messages go.
        self.origin = origin
        # For people; nothing depends on it.
        self.name = name
        # The worker's own word for itself, the same over its reconnects; "" for none.
        self.session = session
        # How many jobs it holds at most.
        self.credit = credit
        # The attempts that it holds: id -> job.
        self.running: dict[str, Job] = {}
        # Those of them that this turn gave it.
        self.outgoing: list[Job] = []
        # When it was heard last, monotonic seconds.
        self.last_seen = 0.0
        # Set while a message could not be delivered and it has not been heard since.
        self.stalled = False
        # Its lease.
        self.timer: Timer | None = None
        # The workers that take the same jobs, and its place among them (see Pool).
        self.pool = pool
        self.level = _NOT_FREE
        # How many more jobs it takes, as its pool knows it.
        self.room = 0


class Pool:
    """The workers that take jobs from the same lanes.

    It finds the best head among its lanes, and the least loaded worker that has credit left, in
    O(log n). Work for a job thus depends on the number of pools that share its lane (one for each
    set of types and channels that workers declare), hardly on that of workers or lanes.
    """

    __slots__ = ("_backlog", "_free", "_levels", "_loads", "_room", "key", "lanes", "size")

    def __init__(self, key: tuple[frozenset[str], frozenset[str]], lanes: list[Lane]) -> None:
        # Channels and types.
        self.key = key
        self.lanes = lanes
        # How many workers it has.
        self.size = 0
        # How many of them have credit left, and how much in all.
        self._free = 0
        self._room = 0
        # Those, by the number of jobs they hold; within a level, whoever came to it first.
        self._levels: dict[int, OrderedDict[Worker, None]] = {}
        # The keys of _levels as a heap: empty levels go when they come up.
        self._loads: list[int] = []
        # (-priority, order, lane) for each lane with ready jobs, at or before its head's true key:
        # a head that is gone is corrected when its entry comes up.
        self._backlog: list[tuple[int, int, Lane]] = []

    def update(self, worker: Worker) -> bool:
        """Take note of a worker's load and credit; say whether it has credit left."""
        load = len(worker.running)
        level = load if load < worker.credit and not worker.stalled else _NOT_FREE
        room = worker.credit - load if level != _NOT_FREE else 0
        self._room += room - worker.room
        worker.room = room
        if level != worker.level:
            self._leave(worker)
            worker.level = level
            if level != _NOT_FREE:
                if level not in self._levels:
                    self._levels[level] = OrderedDict()
                    heappush(self._loads, level)
                self._levels[level][worker] = None
                self._free += 1
        return level != _NOT_FREE

    def remove(self, worker: Worker) -> None:
        """Let a worker go."""
        self._leave(worker)
        worker.level = _NOT_FREE
        self._room -= worker.room
        worker.room = 0
        self.size -= 1

    def least_loaded(self) -> Worker | None:
        """Give the worker with credit left that holds the fewest jobs."""
        while self._free:
            workers = self._levels[self._loads[0]]
            if workers:
                return next(iter(workers))
            del self._levels[heappop(self._loads)]
        return None

    def announce(self, lane: Lane, head: Job) -> None:
        """Take note of a new head of one of the lanes."""
        backlog = self._backlog
        heappush(backlog, (-head.terms.priority, head.order, lane))
        if len(backlog) > 4 * len(self.lanes) + 64:
            heads = [(lane, lane.head()) for lane in self.lanes]
            backlog[:] = [(-job.terms.priority, job.order, lane) for lane, job in heads if job]
            heapify(backlog)

    def best_lane(self) -> Lane | None:
        """Give the lane with the best head: highest priority, then first ready."""
        backlog = self._backlog
        while backlog:
            _, order, lane = backlog[0]
            head = lane.head()
            if head is None:
                heappop(backlog)
            elif head.order == order:
                return lane
            else:
                heapreplace(backlog, (-head.terms.priority, head.order, lane))
        return None

    @property
    def has_several_heads(self) -> bool:
        """Whether the next job may come from another lane than the last."""
        return len(self._backlog) > 1

    def run_length(self, worker: Worker, lane: Lane) -> int:
        """Give how many jobs in a row may go to `worker`, the first from `lane`, before others
        are looked at.

        All that it takes, if all of the pool's jobs come from there and no other goes short. Else
        one, or a run if it asks for many ahead of time.
        """
        alone = len(self._backlog) == 1 and len(lane.pools) == 1
        if alone and (self._free == 1 or lane.ready >= self._room):
            return worker.room
        run = (worker.credit - _ONE_BY_ONE) // _RUNS_AHEAD
        return min(run, worker.room) if run > 1 else 1

    def _leave(self, worker: Worker) -> None:
        if worker.level != _NOT_FREE:
            del self._levels[worker.level][worker]
            self._free -= 1


class Crew:
    """All workers, by connection, and the pools they form."""

    def __init__(self) -> None:
        self.workers: dict[bytes, Worker] = {}
        # session -> its newest connection's worker
        self.sessions: dict[str, Worker] = {}
        self.pools: dict[tuple[frozenset[str], frozenset[str]], Pool] = {}
        # How many lanes the pools have, each counted as often as it is in one.
        self.lanes = 0

    def add_pool(self, pool: Pool) -> None:
        """Take in a pool that workers are about to join."""
        self.pools[pool.key] = pool
        self.lanes += len(pool.lanes)

    def join(self, worker: Worker) -> None:
        """Take a worker in; its pool is one of `pools`."""
        worker.pool.size += 1
        self.workers[worker.connection] = worker
        if worker.session:
            self.sessions[worker.session] = worker

    def leave(self, worker: Worker) -> None:
        """Let a worker go, which another one may have replaced already."""
        worker.pool.remove(worker)
        if self.workers.get(worker.connection) is worker:
            del self.workers[worker.connection]
        if self.sessions.get(worker.session) is worker:
            del self.sessions[worker.session]

    def drop_if_empty(self, pool: Pool) -> bool:
        """Forget `pool` if it has no workers, and have its lanes do so; say whether it is gone."""
        if pool.size:
            return False
        del self.pools[pool.key]
        self.lanes -= len(pool.lanes)
        for lane in pool.lanes:
            lane.pools.remove(pool)
        return True
