"""What workers say: who they are, how their attempts ended, and that they are alive."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from msgspec import Raw

from broker.core.graph import name_of
from broker.core.history import History
from broker.core.job import CANCELED, FINISHED, READY, STATE_NAMES, Job
from broker.core.life import Life
from broker.core.limits import Limits
from broker.core.nesting import FLAT_BYTES, LEVELS_MOST, is_too_deep
from broker.core.records import Record
from broker.core.refusal import Refused, astray, listed
from broker.core.workers import Crew, Origin, Pool, Worker, is_self_named
from worker_sdk.messages import (
    CancelRunning,
    Claim,
    Claiming,
    Fail,
    Failure,
    Finish,
    Heartbeat,
    Hello,
    Inputs,
    Message,
    Outcome,
    Progress,
    Release,
    Welcome,
)

_ERROR_KEPT_MOST = 65_536  # characters of what a failed attempt says
_PROGRESS_MOST = 65_536  # bytes of JSON
_HEARTBEATS_PER_LIMIT = 4
_NULL = b"null"
_LANES_MOST = 1_000  # that one worker may take jobs from
_LANES_IN_ALL_MOST = 100_000  # that all sets of them name, each set counted once


class Service:
    """Carries out the workers' requests."""

    def __init__(self, life: Life, crew: Crew, history: History, version: str) -> None:
        self._life = life
        self._crew = crew
        self._history = history
        self._version = version
        # Workers whose lease is over in this turn.
        self._silent: list[tuple[Worker, Limits]] = []
        # Workers that were lost to silence since the start.
        self.lost_total = 0

    def worker(self, origin: Origin, op: str) -> Worker:
        """Give the worker on a connection, and note that it lives."""
        worker = self._crew.workers.get(origin[0])
        if worker is None:
            raise Refused(
                "unsupported",
                f"{op} is for workers, and no worker is known on this connection: say hello first",
            )
        self._note_life(worker)
        return worker

    def heard(self, connection: bytes) -> None:
        """Take note of a sign of life, if it is one of a worker, in a message that was refused."""
        worker = self._crew.workers.get(connection)
        if worker is not None:
            self._note_life(worker)

    def _note_life(self, worker: Worker) -> None:
        worker.last_seen = self._life.now
        if worker.stalled:
            worker.stalled = False
            self._life.moved[worker] = None

    # ---- coming and going ----

    def hello(self, origin: Origin, message: Hello, limits: Limits) -> list[Message]:
        """Take a worker in, or anew; give what to tell it."""
        if not message.types or not message.channels:
            raise Refused("invalid", "hello needs at least one type and one channel")
        pairs = len(message.types) * len(message.channels)
        if pairs > _LANES_MOST:
            raise Refused(
                "invalid", f"hello names {pairs} pairs of type and channel, more than {_LANES_MOST}"
            )
        life, crew = self._life, self._crew
        known = crew.workers.get(origin[0])
        former = crew.sessions.get(message.session) if message.session else None
        if known is None and former is None and len(crew.workers) >= limits.max_workers:
            raise Refused(
                "busy", f"{len(crew.workers)} workers are connected, the most there may be"
            )
        pool = self._pool(message.channels, message.types)
        worker = Worker(origin, message.name, message.session, message.credit, pool)
        worker.last_seen = life.now
        # Before those that it replaces leave, so that their pool is not dropped if it is its own.
        crew.join(worker)
        life.moved[worker] = None
        refused = self._take_over(worker, known, former, message.running)
        self._watch(worker, limits)
        welcome = Welcome(
            version=self._version,
            heartbeat=limits.heartbeat_limit / _HEARTBEATS_PER_LIMIT,
            heartbeat_limit=limits.heartbeat_limit,
            message_limit=limits.max_message,
        )
        return [welcome, *(CancelRunning(tuple(ids), why) for why, ids in refused.items())]

    def _take_over(
        self,
        worker: Worker,
        known: Worker | None,
        former: Worker | None,
        claims: tuple[Claim, ...],
    ) -> dict[str, list[str]]:
        """Put `worker` in the place of those it was before, on its connection and in its session;
        give the attempts that it claims in vain, by why.
        """
        life = self._life
        if known is not None:
            # What is on its way to it on this same connection is still its.
            for job in list(known.running.values()):
                life.adopt(job, worker)
            self._dismiss(known)
        refused = self._adopt_claims(worker, former, claims)
        if known is not None and is_self_named(worker.connection):
            # Perhaps another process of that name, and what was known of it is the one before.
            self._release_others(worker, claims)
        if former is not None and former is not known:
            self.release_all(former)
            self._dismiss(former)
        if worker.session:
            # Given to it before the broker's restart, and never arrived.
            for job in reversed(life.unclaimed(worker.session)):
                life.give_back(job)
        return refused

    def bye(self, origin: Origin) -> None:
        """Let a worker go, and give back what it holds."""
        worker = self.worker(origin, "bye")
        self.release_all(worker)
        self._dismiss(worker)

    def expel(self, connection: bytes) -> None:
        """Let a worker go that may not go on; its attempts have failed."""
        worker = self._crew.workers.get(connection)
        if worker is not None:
            self.lose(worker, "was shut out")

    def lose(self, worker: Worker, why: str = "was silent for too long") -> None:
        """Let a worker go; its attempts have failed."""
        self.lost_total += 1
        for job in reversed(list(worker.running.values())):
            error = f"worker {worker.name or 'without a name'} {why}"
            self._life.attempt_failed(job, error, retry=True, backoff=False)
        self._dismiss(worker)

    def undelivered(self, connection: bytes, ids: Sequence[str]) -> None:
        """Take back jobs that could not be sent to a worker; it gets none until it is heard."""
        worker = self._crew.workers.get(connection)
        if worker is None:
            return
        for id in reversed(ids):
            job = worker.running.get(id)
            if job is not None:
                self._life.give_back(job)
        worker.stalled = True
        self._life.moved[worker] = None

    def release_all(self, worker: Worker) -> None:
        """Make all that a worker holds ready again, in the order it was given."""
        for job in reversed(list(worker.running.values())):
            self._life.give_back(job)

    def _release_others(self, worker: Worker, claims: tuple[Claim, ...]) -> None:
        """Make all that a worker holds and does not claim ready again."""
        claimed = {(claim.id, claim.attempt) for claim in claims}
        for job in reversed(list(worker.running.values())):
            if (job.id, job.attempt) not in claimed:
                self._life.give_back(job)

    def _dismiss(self, worker: Worker) -> None:
        life = self._life
        if worker.timer is not None:
            life.timers.cancel(worker.timer)
        life.moved.pop(worker, None)
        self._crew.leave(worker)
        if self._crew.drop_if_empty(worker.pool):
            life.stirred.pop(worker.pool, None)
            for lane in worker.pool.lanes:
                life.lanes.may_be_unused(lane)

    def _pool(self, channels: tuple[str, ...], types: tuple[str, ...]) -> Pool:
        key = (frozenset(channels), frozenset(types))
        pool = self._crew.pools.get(key)
        if pool is None:
            count = self._crew.lanes + len(channels) * len(types)
            if count > _LANES_IN_ALL_MOST:
                text = f"with this one, workers would name {count} pairs of type and channel"
                raise Refused("busy", f"{text}, and {_LANES_IN_ALL_MOST} may be")
            lanes = [
                self._life.lanes.get(channel, type)
                for channel in dict.fromkeys(channels)
                for type in dict.fromkeys(types)
            ]
            pool = Pool(key, lanes)
            self._crew.add_pool(pool)
            for lane in lanes:
                lane.pools.append(pool)
                head = lane.head()
                if head is not None:
                    pool.announce(lane, head)
        return pool

    def _adopt_claims(
        self, worker: Worker, former: Worker | None, claims: tuple[Claim, ...]
    ) -> dict[str, list[str]]:
        """Let attempts go on that the worker says it runs; give the others, by why they cannot."""
        life = self._life
        ended = self._history.find([one.id for one in claims if one.id not in life.jobs])
        refused: dict[str, list[str]] = {}
        for claim in claims:
            job = life.jobs.get(claim.id)
            if job is not None and job.run is not None:
                holder = job.run.worker
                if job.attempt == claim.attempt and (holder is None or holder is former):
                    life.adopt(job, worker)
                # If its attempt is a newer one, that is on its way to it, and to be left in peace.
                if job.run.worker is worker:
                    continue
            reason = "lost"
            record = ended.get(claim.id)
            if record is not None and record.state == CANCELED:
                reason = record.reason or "request"
            refused.setdefault(reason, []).append(claim.id)
        return refused

    # ---- the lease ----

    def _watch(self, worker: Worker, limits: Limits) -> None:
        life = self._life
        worker.timer = life.timers.set(
            worker.last_seen + limits.heartbeat_limit, partial(self._check, worker, limits)
        )

    def _check(self, worker: Worker, limits: Limits) -> None:
        if worker.last_seen + limits.heartbeat_limit > self._life.now:
            self._watch(worker, limits)
        else:
            self._silent.append((worker, limits))

    def lose_silent(self) -> None:
        """Let workers go that were silent for too long, and are not heard in this turn either: if
        the broker itself was held up, it finds their signs of life only now.
        """
        for worker, limits in self._silent:
            if self._crew.workers.get(worker.connection) is not worker:
                continue
            if worker.last_seen == self._life.now:
                self._watch(worker, limits)
            else:
                self.lose(worker)
        self._silent.clear()

    def heartbeat(self, origin: Origin, message: Heartbeat) -> Heartbeat:
        """Take a sign of life, and answer it."""
        self._set_credit(self.worker(origin, "heartbeat"), message.credit)
        return Heartbeat(req=message.req)

    # ---- attempts ----

    def finish(self, origin: Origin, message: Finish) -> None:
        """Record results; refuse what is not this worker's to finish, once the rest is done."""
        worker = self.worker(origin, "finish")
        running, end = worker.running, self._life.finish
        strays: list[Outcome | Failure | Claim] = []
        deep: list[str] = []
        for one in message.jobs:
            job = running.get(one.id)
            result = bytes(one.result)
            if result == _NULL:
                result = _NULL  # shared: 40 bytes less for each job that gives nothing
            if job is None or job.attempt != one.attempt:
                strays.append(one)
            elif len(result) > FLAT_BYTES and is_too_deep(result):
                deep.append(one.id)
            else:
                end(job, result)
        self._set_credit(worker, message.credit)
        if strays or deep:
            raise self._refusal(strays, deep)

    def fail(self, origin: Origin, message: Fail) -> None:
        """Record failures; refuse what is not this worker's to fail, once the rest is done."""
        worker = self.worker(origin, "fail")
        strays: list[Outcome | Failure | Claim] = []
        for one in message.jobs:
            job = worker.running.get(one.id)
            if job is not None and job.attempt == one.attempt:
                self._life.attempt_failed(job, one.error[:_ERROR_KEPT_MOST], retry=one.retry)
            else:
                strays.append(one)
        self._set_credit(worker, message.credit)
        if strays:
            raise self._refusal(strays)

    def release(self, origin: Origin, message: Release) -> None:
        """Take attempts back that were not run; refuse the others, once that is done."""
        worker = self.worker(origin, "release")
        strays: list[Outcome | Failure | Claim] = []
        for one in reversed(message.jobs):
            job = worker.running.get(one.id)
            if job is not None and job.attempt == one.attempt:
                self._life.give_back(job)
            else:
                strays.append(one)
        self._set_credit(worker, message.credit)
        if strays:
            raise self._refusal(strays[::-1])

    def progress(self, origin: Origin, message: Progress) -> None:
        """Note how far attempts have come; refuse the others, once that is done."""
        worker = self.worker(origin, "progress")
        large = [one.id for one in message.jobs if len(one.value) > _PROGRESS_MOST]
        if large:
            text = f"progress of more than {_PROGRESS_MOST} bytes: {listed(large)}"
            raise Refused("too_large", text, large)
        deep = [one.id for one in message.jobs if is_too_deep(bytes(one.value))]
        if deep:
            text = f"progress nested deeper than {LEVELS_MOST} levels: {listed(deep)}"
            raise Refused("invalid", text, deep)
        strays: list[Outcome | Failure | Claim] = []
        for one in message.jobs:
            job = worker.running.get(one.id)
            if job is not None and job.run is not None and job.attempt == one.attempt:
                # A copy: as it came, it would keep the whole message in memory.
                job.run.progress = Raw(bytes(one.value))
            else:
                strays.append(Claim(one.id, one.attempt))
        if strays:
            raise self._refusal(strays)

    def claim(self, origin: Origin, message: Claiming) -> Job:
        """Give the worker the one job it asks for."""
        worker = self.worker(origin, "claim")
        job = self._life.jobs.get(message.id)
        if job is None:
            refusal = self._refusal([Claim(message.id, 1)])
            if refusal.code != "not_running":
                raise refusal
            raise Refused("not_ready", f"job {message.id} has ended", [message.id])
        if job.state is not READY:
            state = STATE_NAMES[job.state]
            raise Refused("not_ready", f"job {job.id} is {state}, not ready", [job.id])
        self._life.claim(job, worker)
        worker.outgoing.remove(job)
        self._life.moved[worker] = None
        return job

    def check_inputs(self, origin: Origin, message: Inputs) -> None:
        """Refuse what is not for the worker: it gets results for attempts that it holds."""
        job = self.worker(origin, "inputs").running.get(message.id)
        if job is None or job.attempt != message.attempt:
            raise self._refusal([Claim(message.id, message.attempt)])
        strays = set(message.ids).difference(map(name_of, job.dependencies))
        if strays:
            wrong = [id for id in message.ids if id in strays]
            text = f"job {job.id} does not depend on {listed(wrong)}"
            raise Refused("invalid", text, wrong)

    def _refusal(
        self, strays: Sequence[Outcome | Failure | Claim], deep: Sequence[str] = ()
    ) -> Refused:
        """Say of each attempt that is not the worker's running one what became of it; of `deep`
        ones, that they were not taken.
        """
        ended = self._history.find([one.id for one in strays])
        codes = dict.fromkeys(deep, "invalid")
        recorded: list[str] = []
        for one in strays:
            record = ended.get(one.id)
            if record is None and one.id not in self._life.jobs:
                code = "not_exist"
            elif record is not None and record.state == CANCELED:
                code = "canceled"
            else:
                code = "not_running"
                if record is not None and _is_outcome_of(record, one):
                    recorded.append(one.id)
            codes[one.id] = code
        return astray(codes, recorded)

    def _set_credit(self, worker: Worker, credit: int | None) -> None:
        if credit is not None and credit != worker.credit:
            worker.credit = credit
            self._life.moved[worker] = None


def _is_outcome_of(record: Record, one: Outcome | Failure | Claim) -> bool:
    """Whether a job ended as `one` says: that came before, and its answer was lost perhaps."""
    if record.attempt != one.attempt:
        return False
    if isinstance(one, Outcome):
        return record.state == FINISHED and record.result == bytes(one.result)
    return isinstance(one, Failure) and record.error == one.error[:_ERROR_KEPT_MOST]
