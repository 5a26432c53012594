"""Faults that are planted on purpose, to see that the simulation finds them.

Each is a change of the core, the store, the server or the SDK, made for the time of a run. What
finds it must be the simulation as it is: none of its parts knows of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from msgspec.structs import replace

import broker.server as server_module
from broker.core import dispatch, engine
from broker.core.graph import Graph
from broker.core.history import History
from broker.core.intake import Intake
from broker.core.job import CANCELED, RUNNING, Job
from broker.core.job import Outcome as HowEnded
from broker.core.lanes import Lane
from broker.core.life import Life
from broker.core.refusal import Refused
from broker.core.service import Service
from broker.core.waits import Waits
from broker.core.workers import Pool
from broker.server import Server
from broker.store.attempts import Attempts
from broker.store.memory import MemoryStore
from broker.store.sqlite import SqliteStore
from tests.simulation.plan import FAULTS, Plan
from tests.simulation.run import Report, run
from worker_sdk.agent import Agent
from worker_sdk.delivery import Delivery
from worker_sdk.exchange import Exchange
from worker_sdk.messages import Outcome
from worker_sdk.workload import Workload

Plant = Callable[[], AbstractContextManager[object]]

SEEDS_MOST = 60
"""In how many runs a planted fault must show at the latest."""

STORMY = tuple((kind, rate / 2) for kind, rate in FAULTS.items() if kind != "clock_back")


@dataclass(frozen=True)
class Planted:
    """One planted fault, and runs that are likely to show it."""

    name: str
    plant: Plant
    first_seed: int = 0
    changes: dict[str, Any] = field(default_factory=dict)


def catch(planted: Planted, most: int = SEEDS_MOST) -> Report | None:
    """Give the first run that the planted fault makes fail; None if none of `most` does."""
    for seed in range(planted.first_seed, planted.first_seed + most):
        plan = Plan.draw(seed, **{"patience": 60.0, **planted.changes})
        with planted.plant():
            report = run(plan)
        if report.failure is not None:
            if report.failure.startswith(("TypeError", "AttributeError", "NameError")):
                raise ValueError(f"{planted.name} is not planted well: {report.where}")
            return report
    return None


PLANTED: list[Planted] = []


def _planted(first_seed: int = 0, **changes: Any) -> Callable[[Plant], Plant]:
    def note(plant: Plant) -> Plant:
        name = getattr(plant, "__name__", "").replace("_", " ")
        PLANTED.append(Planted(name, plant, first_seed, changes))
        return plant

    return note


def _instead(owner: object, name: str, new: object) -> AbstractContextManager[object]:
    return mock.patch.object(owner, name, new)


def _around(owner: Any, name: str, new: Callable[..., Any]) -> AbstractContextManager[object]:
    """Put `new(old, self, ...)` in place of a method."""
    old = getattr(owner, name)

    def method(self: Any, *args: Any, **more: Any) -> Any:
        return new(old, self, *args, **more)

    return mock.patch.object(owner, name, method)


# ---- server and store --------------------------------------------------------------------------


@_planted()
def answers_are_sent_before_the_commit() -> AbstractContextManager[object]:
    def run_hasty(self: Any) -> None:
        while not self._is_over():
            self._await()
            commands, refusals = self._receive()
            clock: Any = vars(server_module)["time"]
            effects = self._engine.apply(commands, clock.monotonic(), clock.time())
            self._send(effects, refusals)
            if effects.writes:
                self._store.commit(effects.writes)

    return _instead(Server, "run", run_hasty)


@_planted()
@contextmanager
def one_commit_in_ten_is_skipped() -> Iterator[None]:
    count = 0

    def commit(old: Any, self: Any, writes: Any) -> None:
        nonlocal count
        count += 1
        if count % 10:
            old(self, writes)

    with _around(MemoryStore, "commit", commit):
        yield


@_planted(store="sqlite", rates=STORMY)
def sqlite_says_committed_and_keeps_it_in_memory() -> AbstractContextManager[object]:
    def open_unsafe(old: Any, self: Any, path: str) -> None:
        old(self, path)
        # What is not in the log yet when the process dies is gone: as without the sync.
        self._db.execute("PRAGMA journal_mode = MEMORY")
        self._db.execute("BEGIN IMMEDIATE")
        execute = self._db.execute

        class Lazy:
            def __getattr__(self, name: str) -> Any:
                return getattr(execute.__self__, name)

            def execute(self, sql: str, *args: Any) -> Any:
                skipped = sql in ("BEGIN IMMEDIATE", "COMMIT")
                return execute("SELECT 1" if skipped else sql, *args)

            def executemany(self, *args: Any) -> Any:
                return execute.__self__.executemany(*args)

        self._db = self._live._db = self._ended._db = self._attempts._db = Lazy()

    return _around(SqliteStore, "__init__", open_unsafe)


@_planted(store="sqlite", rates=STORMY)
def sqlite_does_not_write_attempts() -> AbstractContextManager[object]:
    return _instead(Attempts, "write", lambda self, jobs: None)


@_planted(rates=(("slow_peer", 0.1),))
def undelivered_jobs_are_forgotten() -> AbstractContextManager[object]:
    return _instead(Server, "_post", _post_blindly)


def _post_blindly(self: Any, origin: Any, message: Any) -> bool:
    _real_post(self, origin, message)
    return True


_real_post = Server._post


@_planted()
def wrong_results_are_handed_to_dependents() -> AbstractContextManager[object]:
    def results(old: Any, self: Any, ids: Any) -> Any:
        found = dict(old(self, ids))
        return zip(found, reversed(found.values()), strict=True)

    return _around(MemoryStore, "results", results)


# ---- core: attempts and their tokens -------------------------------------------------------------


@_planted(rates=STORMY)
def the_fencing_check_is_dropped() -> AbstractContextManager[object]:
    def finish(old: Any, self: Any, origin: Any, message: Any) -> None:
        running = self.worker(origin, "finish").running
        live = self._life.jobs
        jobs = tuple(
            Outcome(one.id, live[one.id].attempt if one.id in running else one.attempt, one.result)
            for one in message.jobs
        )
        old(self, origin, replace(message, jobs=jobs))

    return _around(Service, "finish", finish)


@_planted(17, rates=STORMY)
def a_finish_after_a_cancel_is_confirmed() -> AbstractContextManager[object]:
    def finish(old: Any, self: Any, origin: Any, message: Any) -> None:
        try:
            old(self, origin, message)
        except Refused as refused:
            if refused.code != "canceled":
                raise

    return _around(Service, "finish", finish)


@_planted(1, rates=STORMY)
def a_claim_of_a_wrong_attempt_is_accepted() -> AbstractContextManager[object]:
    def adopt(old: Any, self: Any, worker: Any, former: Any, claims: Any) -> Any:
        for claim in claims:
            job = self._life.jobs.get(claim.id)
            if job is not None and job.run is not None and job.run.worker in (None, former):
                self._life.adopt(job, worker)
        return old(self, worker, former, claims)

    return _around(Service, "_adopt_claims", adopt)


@_planted()
def a_job_has_more_attempts_than_it_may() -> AbstractContextManager[object]:
    def terms(old: Any, self: Any, spec: Any) -> Any:
        made = old(self, spec)
        made.max_attempts += 1
        return made

    return _around(Lane, "_new_terms", terms)


@_planted(rates=STORMY)
def a_handed_back_job_uses_up_an_attempt() -> AbstractContextManager[object]:
    def give_back(old: Any, self: Any, job: Any) -> None:
        old(self, job)
        job.spared -= 1

    return _around(Life, "give_back", give_back)


@_planted()
def the_back_off_does_not_grow() -> AbstractContextManager[object]:
    return _instead(Life, "_pause", lambda self, job: job.terms.backoff.first)


@_planted(22)
def a_retry_on_request_gets_no_new_attempts() -> AbstractContextManager[object]:
    def revive(old: Any, self: Any, record: Any) -> None:
        old(self, record)
        self._life.jobs[record.id].spared = 0

    return _around(History, "_revive", revive)


# ---- core: dispatch ------------------------------------------------------------------------------


@_planted(rates=STORMY)
def a_job_is_requeued_twice() -> AbstractContextManager[object]:
    def push(old: Any, self: Any, job: Job) -> bool:
        old(self, job)
        return bool(old(self, job))

    return _around(Lane, "push_front", push)


@_planted(concurrency=1)
def credit_is_exceeded_by_one() -> AbstractContextManager[object]:
    def update(old: Any, self: Any, worker: Any) -> Any:
        worker.credit += 1
        try:
            return old(self, worker)
        finally:
            worker.credit -= 1

    return _around(Pool, "update", update)


@_planted(concurrency=1)
def priority_is_ignored() -> AbstractContextManager[object]:
    def terms(old: Any, self: Any, spec: Any) -> Any:
        made = old(self, spec)
        made.priority = 0
        return made

    return _around(Lane, "_new_terms", terms)


@_planted(concurrency=1)
def the_last_job_that_is_ready_goes_first() -> AbstractContextManager[object]:
    def push(old: Any, self: Any, job: Any) -> bool:
        leads = old(self, job)
        self._queues[job.terms.priority].rotate(1)
        return bool(leads)

    return _around(Lane, "push", push)


@_planted(4, workers=4)
def the_most_loaded_worker_gets_the_job() -> AbstractContextManager[object]:
    def least_loaded(self: Any) -> Any:
        levels = [level for level, there in self._levels.items() if there]
        return next(iter(self._levels[max(levels)])) if levels else None

    return _instead(Pool, "least_loaded", least_loaded)


@_planted()
def a_worker_that_has_room_again_is_not_looked_at() -> AbstractContextManager[object]:
    def give_out(life: Any) -> Any:
        if len(life.moved) == 1 and not life.stirred:
            life.moved.clear()
        return dispatch.give_out(life)

    return mock.patch.object(engine, "give_out", give_out)


@_planted(23)
def a_canceled_worker_is_not_told() -> AbstractContextManager[object]:
    def cancel(old: Any, self: Any, job: Any, *args: Any) -> None:
        old(self, job, *args)
        self.stops.clear()

    return _around(Life, "cancel", cancel)


@_planted(rates=STORMY)
def what_a_replaced_connection_held_is_forgotten() -> AbstractContextManager[object]:
    return _instead(Service, "release_all", lambda self, worker: None)


# ---- core: dependencies --------------------------------------------------------------------------


@_planted()
def a_dependent_is_woken_early() -> AbstractContextManager[object]:
    settle = Graph.settle

    def settle_as_if_the_last(self: Graph, job: Job) -> tuple[list[Job], list[Job]]:
        for other in [job.dependents] if isinstance(job.dependents, Job) else job.dependents or ():
            other.waiting = 1
        return settle(self, job)

    return _instead(Graph, "settle", settle_as_if_the_last)


@_planted()
def a_cascade_stops_at_depth_one() -> AbstractContextManager[object]:
    def end(self: Any, job: Any, state: Any, outcome: Any) -> None:
        self._end_one(job, state, outcome)
        free, doomed = self.graph.settle(job)
        for other in free:
            self._place(other)
        for other in doomed:
            why = HowEnded(self.wall, None, reason="dependency", culprit=job.id)
            self._end_one(other, CANCELED, why)

    return _instead(Life, "end", end)


@_planted(retention=0.0)
def a_job_that_live_ones_need_is_forgotten() -> AbstractContextManager[object]:
    return _instead(Graph, "holds", lambda self, id: False)


@_planted(retention=0.0)
def the_count_of_who_needs_an_ended_job_is_lost() -> AbstractContextManager[object]:
    def settle(old: Any, self: Any, job: Any) -> Any:
        answer = old(self, job)
        self._held.pop(job.id, None)
        return answer

    return _around(Graph, "settle", settle)


@_planted()
def an_idempotent_enqueue_runs_twice() -> AbstractContextManager[object]:
    def enqueue(old: Any, self: Any, request: Any, limits: Any) -> Any:
        ids = {spec.id for spec in request.jobs}
        find = self._history.find

        def blind(asked: Iterable[str]) -> Any:
            return {id: record for id, record in find(asked).items() if id not in ids}

        with mock.patch.object(self._history, "find", blind):
            return old(self, request, limits)

    return _around(Intake, "enqueue", enqueue)


# ---- core: time ----------------------------------------------------------------------------------


@_planted()
def the_delay_is_ignored() -> AbstractContextManager[object]:
    return _around(
        Life, "admit", lambda old, self, job, delayed=True: old(self, job, delayed=False)
    )


@_planted()
def expiry_is_forgotten() -> AbstractContextManager[object]:
    def terms(old: Any, self: Any, spec: Any) -> Any:
        made = old(self, spec)
        made.expires = None
        return made

    return _around(Lane, "_new_terms", terms)


@_planted(4, rates=STORMY)
@contextmanager
def a_timer_is_forgotten_on_restart() -> Iterator[None]:
    def restore(old: Any, self: Any, job: Any, started: Any) -> None:
        old(self, job, started)
        if job.timer is not None and job.state is RUNNING:
            self._disarm(job)

    with _around(Life, "restore", restore):
        yield


@_planted(rates=STORMY)
def attempts_that_nobody_claims_wait_for_ever() -> AbstractContextManager[object]:
    return _instead(Life, "unclaimed", lambda self, session=None: [])


@_planted(rates=STORMY)
def a_silent_worker_keeps_its_jobs() -> AbstractContextManager[object]:
    return _instead(Service, "lose_silent", lambda self: self._silent.clear())


@_planted(27)
def a_wait_ends_with_the_first_of_its_jobs() -> AbstractContextManager[object]:
    def ended(old: Any, self: Any, id: str) -> None:
        for waiter in self.by_job.get(id, ()):
            for other in waiter.open - {id}:
                self.by_job[other].pop(waiter, None)
            waiter.open = {id}
        old(self, id)

    return _around(Waits, "ended", ended)


# ---- SDK -----------------------------------------------------------------------------------------


@_planted(4, rates=STORMY)
def unconfirmed_outcomes_are_not_sent_again() -> AbstractContextManager[object]:
    def take_back(self: Any) -> None:
        self._sent.clear()
        self._unasked = []

    return _instead(Delivery, "take_back", take_back)


@_planted(8, concurrency=4)
def of_jobs_that_come_together_one_is_lost() -> AbstractContextManager[object]:
    def on_jobs(old: Any, self: Any, message: Any) -> None:
        if len(message.jobs) > 2:
            message.jobs = message.jobs[:-1]
        old(self, message)

    return _around(Agent, "_on_jobs", on_jobs)


@_planted(concurrency=2)
def a_worker_starts_more_than_it_can() -> AbstractContextManager[object]:
    def take(old: Any, self: Any, now: float) -> Any:
        self._concurrency += 1
        try:
            return old(self, now)
        finally:
            self._concurrency -= 1

    return _around(Workload, "take", take)


@_planted(clients=1, ops=80)
def a_client_takes_any_answer_for_its_oldest_request() -> AbstractContextManager[object]:
    def receive(old: Any, self: Any, frames: Any, now: float) -> Any:
        call = next(iter(self._open.values()), None)
        if call is not None and b'"op":"ok"' in frames[-1]:
            head, _, _ = frames[-1].rpartition(b',"req":')
            frames = [*frames[:-1], head + b',"req":%d}' % call.req] if head else frames
        return old(self, frames, now)

    return _around(Exchange, "receive", receive)
