"""What is ready, by channel and type, in order."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from operator import attrgetter
from typing import TYPE_CHECKING

from broker.core.job import CANCELED, READY, Job, Terms
from broker.core.terms import StoredTerms, backoff_of, decode_terms, encode_terms, terms_key
from worker_sdk.messages import NewJob

if TYPE_CHECKING:
    from broker.core.workers import Pool

_TERMS_CACHED_MOST = 1000
_SWEEP_FROM = 64
_ORDER = attrgetter("order")


class Lane:
    """The jobs of one type on one channel, and those among them that are ready.

    Ready jobs stand in one queue a priority, first ready first: their `order` never falls along
    it, which the pools rely on. A job that ends while it is ready leaves its place behind, and so
    does one that is claimed: a stale place is known by the state of what stands there, is skipped
    at the head, and all are swept out when they are the larger half.
    """

    __slots__ = (
        "_places",
        "_queues",
        "_ranks",
        "_terms",
        "channel",
        "live",
        "pools",
        "ready",
        "type",
    )

    def __init__(self, channel: str, type: str) -> None:
        self.channel = channel
        self.type = type
        # The pools of workers that take jobs from here.
        self.pools: list[Pool] = []
        # How many live jobs are of this lane, in whatever state.
        self.live = 0
        # How many of them are ready.
        self.ready = 0
        # priority -> queue; no queue is empty but for the moment of a sweep.
        self._queues: dict[int, deque[Job]] = {}
        # The keys of _queues, negated, as a heap: the highest priority comes first.
        self._ranks: list[int] = []
        # How many places, stale ones included, the queues have.
        self._places = 0
        # What was asked for -> the one Terms for it.
        self._terms: dict[tuple[object, ...], Terms] = {}

    def push(self, job: Job) -> bool:
        """Append a job that has become ready; say whether it may be the head now."""
        priority = job.terms.priority
        leads = not self.ready or -priority < self._ranks[0]
        queue = self._queues.get(priority)
        if queue is None:
            queue = self._new_queue(priority)
        queue.append(job)
        self._places += 1
        self.ready += 1
        return leads

    def push_front(self, job: Job) -> bool:
        """Put a job back that had been taken, before all others of its priority."""
        priority = job.terms.priority
        queue = self._queues.get(priority)
        if queue is None:
            queue = self._new_queue(priority)
        if queue and queue[0].order < job.order:
            # It had been claimed ahead of them.
            job.order = queue[0].order
        queue.appendleft(job)
        self._places += 1
        self.ready += 1
        return self.head() is job

    def head(self) -> Job | None:
        """Give the job to start next."""
        while self._ranks:
            queue = self._queues[-self._ranks[0]]
            while queue:
                job = queue[0]
                if job.state is READY:
                    return job
                queue.popleft()
                self._places -= 1
            del self._queues[-heappop(self._ranks)]
        return None

    def take(self, most: int) -> list[Job]:
        """Give the jobs to start next, up to a number, and take them out; the caller changes
        their state.
        """
        taken: list[Job] = []
        while self._ranks and len(taken) < most:
            queue = self._queues[-self._ranks[0]]
            places = len(queue)
            while queue and len(taken) < most:
                job = queue.popleft()
                if job.state is READY:
                    taken.append(job)
            self._places -= places - len(queue)
            if not queue:
                del self._queues[-heappop(self._ranks)]
        self.ready -= len(taken)
        return taken

    def remove(self, job: Job) -> None:
        """Take one certain job out, and leave a stale place behind: 0.1 ms among a million.

        To close the gap would move all that are behind it.
        """
        queue = self._queues[job.terms.priority]
        # Those that were put back in front may share an order.
        index = queue.index(job, bisect_left(queue, job.order, key=_ORDER))
        queue[index] = Job("", 0, job.terms, b"", (), 0.0, CANCELED, order=job.order)
        self.withdraw()

    def withdraw(self) -> None:
        """Count one ready job less: its place is stale now."""
        self.ready -= 1
        if self._places > 2 * self.ready + _SWEEP_FROM:
            self._sweep()

    def clear(self) -> None:
        """Let go of all jobs."""
        self._queues.clear()
        self._ranks.clear()
        self._places = self.ready = self.live = 0

    def terms(self, spec: NewJob | StoredTerms) -> Terms:
        """Give the one Terms record for what `spec` asks for."""
        key = terms_key(spec)
        terms = self._terms.get(key)
        if terms is None:
            if len(self._terms) >= _TERMS_CACHED_MOST:
                self._terms.clear()
            terms = self._terms[key] = self._new_terms(spec)
        return terms

    def terms_from_store(self, encoded: bytes) -> Terms:
        """Give the Terms that a store kept as `encoded`."""
        return self.terms(decode_terms(encoded))

    def _new_terms(self, spec: NewJob | StoredTerms) -> Terms:
        return Terms(
            self,
            encode_terms(spec),
            priority=spec.priority,
            delay=spec.delay or 0.0,
            timeout=spec.timeout,
            expires=spec.expires,
            max_attempts=spec.max_attempts,
            backoff=backoff_of(spec),
            inputs=spec.inputs,
        )

    def _new_queue(self, priority: int) -> deque[Job]:
        queue = self._queues[priority] = deque()
        heappush(self._ranks, -priority)
        return queue

    def _sweep(self) -> None:
        queues, self._queues = self._queues, {}
        self._places = 0
        for priority, queue in queues.items():
            ready = deque([job for job in queue if job.state is READY])
            if ready:
                self._queues[priority] = ready
                self._places += len(ready)
        self._ranks = [-priority for priority in self._queues]
        heapify(self._ranks)


class Lanes:
    """All lanes, by channel and type: there as long as a job or a worker needs them."""

    def __init__(self) -> None:
        self._lanes: dict[tuple[str, str], Lane] = {}
        # Lanes that have lost something since the last sweep.
        self._unused: dict[Lane, None] = {}

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes.values())

    def __len__(self) -> int:
        return len(self._lanes)

    def get(self, channel: str, type: str) -> Lane:
        """Give the lane, made now if need be."""
        lane = self._lanes.get((channel, type))
        if lane is None:
            lane = self._lanes[channel, type] = Lane(channel, type)
        return lane

    def may_be_unused(self, lane: Lane) -> None:
        """Take note that `lane` lost a job or a worker."""
        self._unused[lane] = None

    def sweep(self) -> None:
        """Forget the lanes that have neither jobs nor workers: between turns, when no record
        that is about to become a live job refers to one.
        """
        for lane in self._unused:
            if not lane.live and not lane.pools:
                self._lanes.pop((lane.channel, lane.type), None)
        self._unused.clear()
