"""The first third of the model: what happens to jobs, by itself and in time.

Written down as simply as possible, from the specification, without the core's structures: all
jobs are in one dict, and every question is answered by looking.
"""

from __future__ import annotations

from collections.abc import Collection
from heapq import heappop, heappush
from typing import Any

from msgspec import UNSET, Raw, UnsetType

from tests.simulation.records import (
    ITS_OWN_WORDS,
    Answer,
    MJob,
    MWait,
    MWorker,
    Origin,
    Spec,
    conditions_of,
)
from tests.simulation.violation import Violation
from worker_sdk import messages as m

_ONE_MOMENT_S = 1e-6


class Rules:
    """All jobs, live and ended, and the workers that hold some."""

    def __init__(self, limits: Any, inputs_limit: int, version: str) -> None:
        self.limits = limits
        self.inputs_limit = inputs_limit
        self.version = version
        self.jobs: dict[str, MJob] = {}
        self.live: dict[str, MJob] = {}
        self.ended: dict[str, MJob] = {}  # in the order in which they are pruned
        self.dependents: dict[str, dict[str, None]] = {}
        self.workers: dict[bytes, MWorker] = {}
        self.waits: list[MWait] = []
        self.ready: dict[tuple[str, str], dict[str, MJob]] = {}
        self.pages: dict[str, tuple[str, int]] = {}
        self.draining = self.reviving = False
        self.now = self.wall = 0.0
        self.last_seq = self._number = self._place = 0
        # While an end and all that follows from it is carried out: the number of that moment.
        self._moment = 0
        self._alarms: list[tuple[float, int, str, Any]] = []
        self._postponed: list[Any] = []
        self._seen: dict[str, Any] = {}
        self._seen_due: dict[str, float | None] = {}
        self._seen_seqs: dict[str, int] = {}
        self.admitted = 0
        self._begin()

    def _begin(self) -> None:
        self.answers: list[Answer] = []
        self.reads: list[Answer] = []
        self.over: list[Answer] = []
        self.stops: dict[tuple[Origin, str], list[str]] = {}
        self.claimed: list[tuple[Origin, Raw | UnsetType, str, int]] = []
        self.silent: list[MWorker] = []
        self.overdue: list[tuple[MJob, int]] = []
        self._claims: list[tuple[Origin, m.Claiming]] = []
        self.new: list[str] = []
        self.just_ended: dict[str, MJob] = {}
        self.gone: list[str] = []
        self.kept: list[str] = []
        self.removed: set[str] = set()

    def restart(self, now: float, wall: float) -> None:
        """Forget what a broker forgets when it stops."""
        self.now, self.wall = now, wall
        self.workers.clear()
        self.waits.clear()
        self.ready.clear()
        self._alarms.clear()
        self._postponed = []
        self.draining = False
        for job in sorted(self.live.values(), key=lambda job: job.seq):
            job.in_front, job.worker, job.progress, job.error = False, None, None, None
            if job.state == "running":
                self._arm(job)
            elif self._open(job):
                job.state = "blocked"
                self._arm(job)
            else:
                self._release(job)
        self._alarm(now + self.limits.grace, "_end_grace", None)
        self._alarm(now + 1.0, "_prune", None)
        self._begin()

    # ---- time --------------------------------------------------------------------------------

    def _alarm(self, at: float, kind: str, what: Any) -> int:
        self._number += 1
        heappush(self._alarms, (at, self._number, kind, what))
        return self._number

    def _ring_alarms(self) -> None:
        """Do all that is due. What is due at one time happens in one moment, in any order."""
        before = -1.0
        while self._alarms and self._alarms[0][0] <= self.now:
            at, number, kind, what = heappop(self._alarms)
            if isinstance(what, MJob) and what.alarm != number:
                continue
            if at - before > _ONE_MOMENT_S:
                self._number += 1
                self._moment = self._number
            before = at
            getattr(self, kind)(what)
        self._moment = 0

    def _arm(self, job: MJob) -> None:
        """Set what the job's state waits for."""
        spec, at = job.spec, []
        job.alarm = 0
        if job.state == "running":
            if spec.timeout is not None and job.started is not None:
                at.append(job.started + spec.timeout)
        else:
            if job.state == "scheduled" and job.due is not None:
                at.append(job.due)
            if spec.expires is not None and not job.attempt:
                at.append(job.queued + spec.expires)
        if at:
            job.alarm = self._alarm(self.now + (min(at) - self.wall), "_ring", job)

    def _ring(self, job: MJob) -> None:
        spec = job.spec
        if job.state == "running":
            self.overdue.append((job, job.attempt))
        elif job.state == "scheduled" and (
            spec.expires is None or job.attempt or job.queued + spec.expires >= (job.due or 0)
        ):
            self._make_ready(job)
        else:
            self._cancel(job, "expired")

    def _time_out_overdue(self) -> None:
        """Attempts whose end did not come in this turn either, in one moment."""
        self._number += 1
        self._moment = self._number
        for job, attempt in self.overdue:
            if job.state == "running" and job.attempt == attempt:
                self._stop(job, "timeout")
                self._attempt_over(job, None, pause=True)
        self._moment = 0

    def _lease(self, worker: MWorker) -> None:
        if self.workers.get(worker.origin[0]) is not worker:
            return
        end = worker.seen + self.limits.heartbeat_limit
        if end > self.now:
            self._alarm(end, "_lease", worker)
        else:
            self.silent.append(worker)

    def _lose_silent(self) -> None:
        """Those that were not heard in this turn either; all that they held, in one moment."""
        self._number += 1
        self._moment = self._number
        for worker in self.silent:
            if self.workers.get(worker.origin[0]) is not worker:
                continue
            if worker.seen == self.now:
                self._alarm(worker.seen + self.limits.heartbeat_limit, "_lease", worker)
                continue
            for job in list(worker.jobs.values()):
                self._attempt_over(job, None, pause=False)
            del self.workers[worker.origin[0]]
        self._moment = 0

    def _end_grace(self, _: None) -> None:
        for job in [job for job in self.live.values() if job.state == "running"]:
            if job.worker is None:
                self._attempt_over(job, None, pause=False)

    def _prune(self, _: None) -> None:
        surplus = len(self.ended) - self.limits.max_ended
        before = len(self.gone)
        for job in list(self.ended.values()):
            too_young = self.wall - (job.ended or 0) < self.limits.retention
            if too_young and len(self.gone) - before >= surplus:
                break
            if self._is_needed(job.id):
                self.kept.append(job.id)
            else:
                self._forget(job)
        for id in self.kept:
            job = self.ended.pop(id)
            self._line_up(job)
        self._alarm(self.now + 1.0, "_prune", None)

    # ---- the life of a job -------------------------------------------------------------------

    def _admit(self, spec: Spec, attempt: int = 0) -> MJob:
        # The core chooses the numbers: they only must grow.
        seq = self._seen_seqs.get(spec.id, self.last_seq + 1)
        if seq <= self.last_seq:
            raise Violation(f"{spec.id} has the number {seq}, after {self.last_seq}")
        self.last_seq = seq
        self.admitted += 1
        job = MJob(spec, self.last_seq, self.wall, conditions_of(spec))
        job.attempt = job.spared = attempt
        if spec.delay and not attempt and not self.reviving:
            job.due = job.queued + spec.delay
        self.jobs[spec.id] = self.live[spec.id] = job
        self.new.append(spec.id)
        for id in job.conditions:
            self.dependents.setdefault(id, {})[spec.id] = None
        doom = [
            id
            for id, condition in job.conditions.items()
            if (other := self.jobs.get(id)) is not None
            and other.state in ("failed", "canceled")
            and condition == "finished"
        ]
        if doom:
            self._cancel(job, "dependency", self._culprit(job, doom[0]))
        elif self._open(job):
            self._arm(job)
        else:
            self._release(job)
        return job

    def _open(self, job: MJob) -> bool:
        return any(id in self.live for id in job.conditions)

    def _release(self, job: MJob) -> None:
        """The job waits for no dependency."""
        if job.due is not None and job.due > self.wall:
            job.state = "scheduled"
            self._arm(job)
        else:
            self._make_ready(job)

    def _make_ready(self, job: MJob, *, in_front: bool = False) -> None:
        job.state, job.in_front = "ready", in_front
        if not in_front:
            self._number += not self._moment
            job.ready_no = self._moment or self._number
        self._arm(job)
        self.ready.setdefault((job.spec.channel, job.spec.type), {})[job.id] = job

    def _not_ready(self, job: MJob) -> None:
        self.ready.get((job.spec.channel, job.spec.type), {}).pop(job.id, None)

    def _start(self, job: MJob, worker: MWorker) -> None:
        self._not_ready(job)
        job.state, job.worker, job.started = "running", worker, self.wall
        job.session = worker.session
        job.attempt += 1
        job.due = job.progress = None
        if job.attempt - job.spared > job.spec.max_attempts:
            raise Violation(f"{job.id}: attempt {job.attempt} is beyond max_attempts")
        for id, condition in job.conditions.items():
            other = self.jobs.get(id)
            if other is None or other.ended is None:
                if other is not None or job.attempt == 1:
                    raise Violation(f"{job.id} started before its dependency {id} has ended")
            elif condition == "finished" and other.state != "finished":
                raise Violation(f"{job.id} started though its dependency {id} is {other.state}")
        worker.jobs[job.id] = job
        self._arm(job)

    def _leave_worker(self, job: MJob) -> None:
        if job.worker is not None:
            del job.worker.jobs[job.id]
        job.worker = job.started = job.progress = None
        job.session = ""

    def _give_back(self, job: MJob) -> None:
        job.spared += 1
        self._leave_worker(job)
        self._make_ready(job, in_front=True)

    def _attempt_over(
        self, job: MJob, error: str | None, *, pause: bool, retry: bool = True
    ) -> None:
        if not retry or job.used_up:
            job.error = error
            self._end(job, "failed")
            return
        self._leave_worker(job)
        job.error = error or ITS_OWN_WORDS
        backoff = job.spec.backoff
        if not isinstance(backoff, m.Backoff):
            backoff = m.Backoff() if backoff is None else m.Backoff(first=backoff)
        longest = min(
            backoff.first * backoff.factor ** (job.attempt - job.spared - 1), backoff.limit
        )
        if not pause or not longest:
            self._make_ready(job, in_front=True)
            return
        job.state = "scheduled"
        due = self._seen_due.get(job.id)
        low, high = (longest * (1 + sign * backoff.jitter) for sign in (-1, 1))
        if due is None or not low - 1e-3 <= due - self.wall <= high + 1e-3:
            if self._seen.get(job.id) is None:  # else it ended later in this very turn
                raise Violation(f"{job.id}: back-off until {due}, not {low} to {high} s from now")
            due = self.wall + longest
        job.due = due
        self._arm(job)

    def _stop(self, job: MJob, reason: str) -> None:
        if job.worker is not None:
            self.stops.setdefault((job.worker.origin, reason), []).append(job.id)

    def _cancel(self, job: MJob, reason: str, culprit: str | None = None) -> None:
        self._stop(job, reason)
        job.reason, job.culprit = reason, culprit
        self._end(job, "canceled")

    def _end(self, job: MJob, state: str) -> None:
        if state != "failed":
            job.error = None
        started = job.started
        self._leave_worker(job)
        self._not_ready(job)
        job.started, job.state, job.ended, job.due, job.alarm = started, state, self.wall, None, 0
        del self.live[job.id]
        self.just_ended[job.id] = job
        for wait in list(self.waits):
            wait.open.discard(job.id)
            if not wait.open:
                self._give_up(wait)
        # All that is set free by one end becomes ready in one moment, in any order.
        is_first = not self._moment
        if is_first:
            self._number += 1
            self._moment = self._number
        self._tell_dependents(job)
        if is_first:
            self._moment = 0

    def _tell_dependents(self, job: MJob) -> None:
        for id in self.dependents.get(job.id, ()):
            other = self.live.get(id)
            if other is None:
                continue
            if job.state != "finished" and other.conditions[job.id] == "finished":
                self._cancel(other, "dependency", self._culprit(other, job.id))
            elif other.state == "blocked" and not self._open(other):
                self._release(other)

    def _give_up(self, wait: MWait) -> None:
        if wait in self.waits:
            self.waits.remove(wait)
            self.over.append((wait.origin, wait.request))

    def _culprit(self, job: MJob, one: str) -> str:
        """Who is to blame: `one`, or another that is to blame too and was seen first."""
        outcome = getattr(self._seen.get(job.id), "outcome", None)
        said = getattr(outcome, "culprit", None)
        other = self.jobs.get(said) if said in job.conditions else None
        if other is None or other.state == "finished" or job.conditions[other.id] == "ended":
            return one
        return other.id

    def _line_up(self, job: MJob) -> None:
        self._place += 1
        job.place = self._place
        self.ended[job.id] = job

    def _forget(self, job: MJob) -> None:
        self.gone.append(job.id)
        self.removed.add(job.id)
        self.ended.pop(job.id, None)
        del self.jobs[job.id]
        for id in job.conditions:
            del self.dependents[id][job.id]

    def _is_needed(self, id: str) -> bool:
        return any(other in self.live for other in self.dependents.get(id, ()))

    def _check_writes(self, writes: Any) -> None:
        """Whether the core wrote down what happened, no more and no less."""
        for what, ours, its in (
            ("inserted", self.new, [job.id for job in writes.inserted]),
            ("removed", self.gone, writes.removed),
            ("ended", list(self.just_ended), [job.id for job in writes.ended]),
            ("deferred", self.kept, writes.deferred),
        ):
            if sorted(ours) != sorted(its):
                raise Violation(f"{what}: the core has {its}, the model {ours}")
        for job in writes.ended:
            mine = self.just_ended[job.id]
            if mine.state == "failed" and mine.error is None and job.outcome.error:
                mine.error = job.outcome.error  # the broker's own words
            self._line_up(mine)

    # ---- dispatch: the core chooses, the model checks ----------------------------------------

    def _give_out(self, seen: Any) -> None:
        given: list[tuple[MWorker, MJob, int]] = []
        for dispatch in seen.dispatches:
            if dispatch.req is not UNSET:
                continue
            worker = self.workers.get(dispatch.origin[0])
            for id in dispatch.ids:
                job = self.live.get(id)
                if worker is None or job is None or job.state != "ready":
                    state = "unknown" if job is None else job.state
                    raise Violation(f"{id} is dispatched, to {dispatch.origin[0]!r}: it is {state}")
                if (job.spec.channel, job.spec.type) not in worker.lanes:
                    raise Violation(f"{id} goes to a worker that does not take its type")
                if not worker.is_free:
                    raise Violation(f"{id} goes to {worker.origin[0]!r} beyond its credit")
                given.append((worker, job, len(worker.jobs)))
                self._start(job, worker)
        left = {lane: jobs for lane, jobs in self.ready.items() if jobs}
        free = [worker for worker in self.workers.values() if worker.is_free]
        for worker in free:
            if not worker.lanes.isdisjoint(left):
                raise Violation(f"{worker.origin[0]!r} has credit left, and jobs for it wait")
        for worker, job, load in given:
            # Who asks for very many gets some in a row.
            load -= max(0, (worker.credit - 64) // 4 - 1)
            lane = (job.spec.channel, job.spec.type)
            for other in free:
                # One that takes other things too may have had better to do.
                if lane in other.lanes <= worker.lanes and len(other.jobs) < load:
                    raise Violation(f"{job.id} went to {worker}, not to {other}")
            for its_lane, jobs in left.items():
                if its_lane in worker.lanes:
                    self._check_order(job, jobs.values(), same_lane=its_lane == lane)

    @staticmethod
    def _check_order(job: MJob, left: Collection[MJob], *, same_lane: bool) -> None:
        has_shifted = any(other.in_front or other.was_claimed for other in left)
        for other in left:
            if other.spec.priority > job.spec.priority:
                raise Violation(f"{job.id} started before {other.id} of a higher priority")
            if other.spec.priority < job.spec.priority or job.in_front or job.was_claimed:
                continue
            if other.in_front and same_lane:
                raise Violation(f"{job.id} started before {other.id}, which was handed back")
            if has_shifted and not same_lane:
                continue  # who stands first there may have a later number than those behind
            if not other.in_front and other.ready_no < job.ready_no:
                raise Violation(f"{job!r} started before {other!r}, which was ready first")
