"""The life of live jobs: each change of state, and what follows from it."""

from __future__ import annotations

import zlib
from functools import partial

from broker.core.graph import Graph
from broker.core.job import (
    CANCELED,
    FAILED,
    FINISHED,
    LEGAL,
    READY,
    RUNNING,
    SCHEDULED,
    STATE_NAMES,
    Job,
    Outcome,
    Run,
    State,
)
from broker.core.lanes import Lanes
from broker.core.limits import Limits
from broker.core.records import Writes
from broker.core.refusal import Refused
from broker.core.timers import Timers
from broker.core.waits import Waits
from broker.core.workers import Pool, Worker

_ERROR_SHOWN_MOST = 200  # characters, of a job that is tried again: no bound counts them


class Life:
    """All live jobs. Every change of a job's state is one of the methods here.

    What a turn changed gathers in `writes`; whom it concerns beyond the jobs, in `moved`, `stirred`
    and `stops`, which the engine empties.
    """

    def __init__(self, seed: int, last_seq: int) -> None:
        # The time of this turn: monotonic seconds for deadlines, seconds since the epoch to show.
        self.now = 0.0
        self.wall = 0.0
        # id -> job, all that have not ended.
        self.jobs: dict[str, Job] = {}
        # Jobs that ended in this turn, of which the store does not know yet.
        self.just_ended: dict[str, Job] = {}
        # The length of all args of live jobs.
        self.args_bytes = 0
        # Attempts that were running when the broker stopped, by their worker's session, until
        # that worker or the end of the time of grace has come.
        self._orphans: dict[str, list[Job]] = {}
        # How many jobs are running and scheduled; ready ones are counted by lane.
        self.running = 0
        self.scheduled = 0
        # Since the start of the broker: how often each happened.
        self.totals = {
            "enqueued": 0,
            "dispatched": 0,
            "finished": 0,
            "failed": 0,
            "canceled": 0,
            "retried": 0,
        }
        self.lanes = Lanes()
        self.graph = Graph(self.jobs)
        self.timers = Timers()
        self.waits = Waits(self.timers)
        # This turn's changes, and the live jobs among them that the store has in an older form.
        self.writes = Writes()
        self._touched: list[Job] = []
        # Workers whose load or credit changed, pools that have something new to give or to take.
        self.moved: dict[Worker, None] = {}
        self.stirred: dict[Pool, None] = {}
        # Attempts whose time is over in this turn.
        self._overdue: list[tuple[Job, Run]] = []
        # Attempts that are over before their worker knows: (worker, reason) -> ids.
        self.stops: dict[tuple[Worker, str], list[str]] = {}
        # Numbers jobs (seq) and moments of becoming ready (order) alike: always growing.
        self._ticks = last_seq
        self._seed = seed

    # ---- into life ----

    def check_room(self, jobs: int, args_bytes: int, limits: Limits) -> None:
        """Refuse if so many jobs, with so much in args, are more than there may be beside those
        that are live.
        """
        if len(self.jobs) + jobs > limits.max_jobs:
            raise Refused(
                "busy", f"{len(self.jobs)} jobs are live, at most {limits.max_jobs} may be"
            )
        if self.args_bytes + args_bytes > limits.max_bytes:
            raise Refused(
                "busy",
                f"the args of live jobs take {self.args_bytes} bytes, "
                f"at most {limits.max_bytes} may be",
            )

    def admit(self, job: Job, *, delayed: bool = True) -> None:
        """Take in a new job whose dependencies are live, or ended as its conditions want; it gets
        the next number.
        """
        self._ticks += 1
        job.seq = self._ticks
        job.unsaved = True
        self.writes.inserted.append(job)
        self.totals["enqueued"] += 1
        if job.terms.delay and delayed:
            job.due = job.queued + job.terms.delay
        self._enter(job)

    def restore(self, job: Job, run: Run | None) -> None:
        """Take in a job that the store kept, and its attempt if it is running."""
        self._enter(job, run)

    def _enter(self, job: Job, run: Run | None = None) -> None:
        self.jobs[job.id] = job
        job.terms.lane.live += 1
        self.args_bytes += len(job.args)
        if job.dependencies:
            self.graph.link(job)
        if run is not None:
            self._orphans.setdefault(run.session, []).append(job)
            job.state = RUNNING
            # Should it be ready again, then before all that did not come to run.
            job.order = job.seq
            job.run = run
            self.running += 1
            self._arm(job)
        elif not job.waiting:
            if job.due is None:
                self._make_ready(job)
            else:
                self._place(job)
        elif job.terms.expires is not None:
            self._arm(job)

    def _place(self, job: Job) -> None:
        """Let a job go on that waits for no dependency (any more)."""
        due = job.due
        if due is not None and due > self.wall:
            self._become(job, SCHEDULED)
            self.scheduled += 1
            self._arm(job)
        else:
            self._make_ready(job)

    def _make_ready(self, job: Job) -> None:
        assert READY in LEGAL[job.state], (job.id, job.state)
        job.state = READY
        job.due = None
        # A job that is ready as it comes needs no second number.
        if job.seq != self._ticks:
            self._ticks += 1
        job.order = self._ticks
        if job.terms.expires is not None and not job.attempt:
            self._arm(job)
        lane = job.terms.lane
        if lane.push(job):
            self._announce(job)

    def _announce(self, job: Job) -> None:
        lane = job.terms.lane
        for pool in lane.pools:
            pool.announce(lane, job)
            self.stirred[pool] = None

    def unclaimed(self, session: str | None = None) -> list[Job]:
        """Give the running attempts that no worker has claimed since the broker's start, those of
        one session or of all; nobody can ask for them twice.
        """
        sessions = list(self._orphans) if session is None else [session]
        orphans = [job for each in sessions for job in self._orphans.pop(each, ())]
        return [job for job in orphans if job.run is not None and job.run.worker is None]

    # ---- attempts ----

    def start(self, jobs: list[Job], worker: Worker) -> None:
        """Give jobs that were taken from their lanes to a worker: the next attempt of each."""
        wall, session, running = self.wall, worker.session, worker.running
        for job in jobs:
            assert RUNNING in LEGAL[job.state], (job.id, job.state)
            job.state = RUNNING
            job.attempt += 1
            job.run = Run(worker, wall, session)
            running[job.id] = job
            if job.timer is not None or job.terms.timeout is not None:
                self._arm(job)
            if not job.unsaved:
                job.unsaved = True
                self._touched.append(job)
        worker.outgoing += jobs
        self.running += len(jobs)
        self.totals["dispatched"] += len(jobs)

    def claim(self, job: Job, worker: Worker) -> None:
        """Give a ready job to a worker that asked for this one."""
        job.terms.lane.remove(job)
        self.start([job], worker)

    def adopt(self, job: Job, worker: Worker) -> None:
        """Let a running attempt go on with (another connection of) its worker."""
        assert job.run is not None
        self._leave_worker(job)
        job.run.worker = worker
        if job.run.session != worker.session:
            job.run.session = worker.session
            self._touch(job)
        worker.running[job.id] = job
        self.moved[worker] = None

    def give_back(self, job: Job) -> None:
        """Make a running job ready again, first of its lane; the attempt does not count."""
        job.spared += 1
        self._stop_running(job)
        self._make_ready_first(job)

    def attempt_failed(self, job: Job, error: str, *, retry: bool, backoff: bool = True) -> None:
        """End a running attempt without success: another one later (or now), or the job fails."""
        if not retry or job.attempts_used >= job.terms.max_attempts:
            assert job.run is not None
            self.end(job, FAILED, Outcome(self.wall, job.run.started, error=error))
            return
        self.totals["retried"] += 1
        job.error = error[:_ERROR_SHOWN_MOST]
        self._stop_running(job)
        pause = self._pause(job) if backoff else 0.0
        if pause:
            self._become(job, SCHEDULED)
            self.scheduled += 1
            job.due = self.wall + pause
            self._arm(job)
        else:
            self._make_ready_first(job)

    def _make_ready_first(self, job: Job) -> None:
        self._become(job, READY)
        if job.terms.lane.push_front(job):
            self._announce(job)

    def _pause(self, job: Job) -> float:
        """Give the back-off before the next attempt, in seconds."""
        backoff = job.terms.backoff
        exponent = min(job.attempts_used - 1, 1000)
        try:
            pause = min(backoff.first * backoff.factor**exponent, backoff.limit)
        except OverflowError:
            pause = backoff.limit
        dice = zlib.crc32(f"{self._seed}:{job.id}:{job.attempt}".encode()) / 2**32
        return pause * (1 + backoff.jitter * (2 * dice - 1))

    def _stop_running(self, job: Job) -> None:
        self._leave_worker(job)
        job.run = None
        self.running -= 1
        self._disarm(job)
        self._touch(job)

    def _leave_worker(self, job: Job) -> None:
        assert job.run is not None
        worker = job.run.worker
        if worker is not None:
            del worker.running[job.id]
            self.moved[worker] = None

    # ---- ends ----

    def finish(self, job: Job, result: bytes) -> None:
        """Record a running attempt's result."""
        run = job.run
        assert run is not None
        self.end(job, FINISHED, Outcome(self.wall, run.started, result=result))

    def cancel(self, job: Job, reason: str, culprit: str | None = None) -> None:
        """End a live job without a result, and tell its worker if it is running."""
        run = job.run
        if run is not None and run.worker is not None:
            self.stops.setdefault((run.worker, reason), []).append(job.id)
        started = run.started if run is not None else None
        self.end(job, CANCELED, Outcome(self.wall, started, reason=reason, culprit=culprit))

    def end(self, job: Job, state: State, outcome: Outcome) -> None:
        """End a live job; free or cancel what depends on it, through any depth."""
        dependents = job.dependents
        self._end_one(job, state, outcome)
        if dependents is None:
            return
        if state is FINISHED and type(dependents) is Job:
            # Each but the last step of a chain, and the children of a fan: 0.4 us less so, which
            # is 3 % of a fan's time.
            if self.graph.settle_one(job, dependents):
                self._place(dependents)
            return
        ended = [job]
        for one in ended:  # which grows as others are canceled with it
            free, doomed = self.graph.settle(one)
            for other in free:
                self._place(other)
            for other in doomed:
                why = Outcome(self.wall, None, reason="dependency", culprit=one.id)
                self._end_one(other, CANCELED, why)
                ended.append(other)

    def _end_one(self, job: Job, state: State, outcome: Outcome) -> None:
        # The calls that this spells out took a third of its time.
        id, before, lane, run = job.id, job.state, job.terms.lane, job.run
        assert state in LEGAL[before], (id, before, state)
        job.state = state
        if run is not None:
            worker = run.worker
            if worker is not None:
                del worker.running[id]
                self.moved[worker] = None
            job.run = None
            self.running -= 1
        elif before is SCHEDULED:
            self.scheduled -= 1
        elif before is READY:
            lane.withdraw()
        if job.timer is not None:
            self._disarm(job)
        job.outcome = outcome
        job.due = None
        del self.jobs[id]
        self.just_ended[id] = job
        self.args_bytes -= len(job.args)
        lane.live -= 1
        if not lane.live:
            self.lanes.may_be_unused(lane)
        if job.dependencies:
            self.graph.unlink(job)
        self.totals[STATE_NAMES[state]] += 1
        self.writes.ended.append(job)
        if id in self.waits.by_job:
            self.waits.ended(id)

    def forget(self) -> None:
        """Let go of all jobs, for good: their records stand outside the garbage collector, which
        could not take circles through them apart.
        """
        for job in self.jobs.values():
            if job.run is not None and job.run.worker is not None:
                job.run.worker.running.clear()
            job.run = job.timer = job.dependents = None
        self.jobs.clear()
        self.just_ended.clear()
        self._orphans.clear()
        self.timers.clear()
        for lane in self.lanes:
            lane.clear()

    # ---- time ----

    def _arm(self, job: Job) -> None:
        """Set the job's one timer to what its state waits for next, if to anything."""
        self._disarm(job)
        wait: float | None = None
        if job.state is RUNNING:
            if job.terms.timeout is not None:
                assert job.run is not None
                wait = job.run.started + job.terms.timeout - self.wall
        else:
            if job.state is SCHEDULED:
                assert job.due is not None
                wait = job.due - self.wall
            if job.terms.expires is not None and not job.attempt:
                expires = job.queued + job.terms.expires - self.wall
                wait = expires if wait is None else min(wait, expires)
        if wait is not None:
            job.timer = self.timers.set(self.now + wait, partial(self._on_timer, job))

    def _disarm(self, job: Job) -> None:
        if job.timer is not None:
            self.timers.cancel(job.timer)
            job.timer = None

    def _on_timer(self, job: Job) -> None:
        job.timer = None
        if job.run is not None:
            self._overdue.append((job, job.run))
        elif job.state is SCHEDULED and not self._expires_before_due(job):
            self.scheduled -= 1
            self._make_ready(job)
        else:
            self.cancel(job, "expired")

    @staticmethod
    def _expires_before_due(job: Job) -> bool:
        assert job.due is not None
        expires = job.terms.expires
        return expires is not None and not job.attempt and job.queued + expires < job.due

    def time_out_overdue(self) -> None:
        """Fail attempts whose time is over, and whose outcome did not come in this turn either: if
        the broker itself was held up, it finds outcomes only now.
        """
        for job, run in self._overdue:
            if job.run is run:
                self._time_out(job, run)
        self._overdue.clear()

    def _time_out(self, job: Job, run: Run) -> None:
        if run.worker is not None:
            self.stops.setdefault((run.worker, "timeout"), []).append(job.id)
        self.attempt_failed(job, f"timed out after {job.terms.timeout:g} s", retry=True)

    # ---- one turn ----

    def begin_turn(self, now: float, wall: float) -> Writes:
        """Set the clock; give what the turn is about to change, to be filled by its end."""
        self.now, self.wall = now, wall
        self.writes = Writes()
        return self.writes

    def end_turn(self) -> None:
        """Complete what this turn changed."""
        writes = self.writes
        for job in writes.inserted:
            job.unsaved = False
        if self._touched:
            for job in self._touched:
                job.unsaved = False
            writes.updated = [job for job in self._touched if job.outcome is None]
            self._touched.clear()

    def _touch(self, job: Job) -> None:
        if not job.unsaved:
            job.unsaved = True
            self._touched.append(job)

    def _become(self, job: Job, state: State) -> None:
        assert state in LEGAL[job.state], (job.id, job.state, state)
        job.state = state
