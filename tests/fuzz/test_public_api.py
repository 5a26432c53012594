"""Clients and workers do anything in any order, and a model of a page knows every answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from broker import LocalBroker
from worker_sdk import (
    Client,
    Dependency,
    JobCanceled,
    JobConflict,
    JobNotExist,
    JobNotReady,
    JobNotRunning,
    JobSpec,
    PointsmanError,
    WaitTimeout,
    WorkerSession,
    new_id,
)
from worker_sdk.session import SessionJob

PATIENCE_S = 10.0


@dataclass
class ModelJob:
    """A job as the model knows it."""

    args: Any
    priority: int
    max_attempts: int
    dependencies: dict[UUID, str]
    state: str = "blocked"
    # How many attempts there were, and from which one on they count (a retry begins anew).
    attempt: int = 0
    used: int = 0
    result: Any = None
    dependents: list[UUID] = field(default_factory=list)

    @property
    def has_ended(self) -> bool:
        return self.state in ("finished", "failed", "canceled")


class Model:
    """What the queue promises, said as simply as can be."""

    def __init__(self) -> None:
        self.jobs: dict[UUID, ModelJob] = {}

    def enqueue(self, id: UUID, job: ModelJob) -> None:
        self.jobs[id] = job
        for dependency in job.dependencies:
            self.jobs[dependency].dependents.append(id)
        self.settle()

    def end(self, id: UUID, state: str, result: Any = None) -> None:
        self.jobs[id].state, self.jobs[id].result = state, result
        self.settle()

    def settle(self) -> None:
        """Draw the consequences of ends until nothing more follows."""
        before = None
        while before != (before := [job.state for job in self.jobs.values()]):
            for job in self.jobs.values():
                if job.state != "blocked":
                    continue
                others = {id: self.jobs[id] for id in job.dependencies}
                if any(
                    other.has_ended and other.state != "finished"
                    for id, other in others.items()
                    if job.dependencies[id] == "finished"
                ):
                    job.state = "canceled"
                elif all(other.has_ended for other in others.values()):
                    job.state = "ready"

    def ready(self) -> list[UUID]:
        """The jobs that may be given out next: ready, and of the highest priority."""
        ready = {id: job for id, job in self.jobs.items() if job.state == "ready"}
        best = max((job.priority for job in ready.values()), default=0)
        return [id for id, job in ready.items() if job.priority == best]


class QueueMachine(RuleBasedStateMachine):
    """One client and one worker on a broker; each example in a job type of its own."""

    broker: LocalBroker
    client: Client
    numbers = count()

    jobs: Bundle[UUID] = Bundle("jobs")

    @initialize()
    def begin(self) -> None:
        self.type = f"type-{next(self.numbers)}"
        self.model = Model()
        self.held: dict[UUID, SessionJob] = {}
        # Attempts that are over, and what their worker is told that reports them all the same.
        self.lost: list[tuple[SessionJob, type[PointsmanError]]] = []
        self.session = WorkerSession([self.type], self.broker.endpoint)

    def teardown(self) -> None:
        if hasattr(self, "session"):
            self.session.close()
            self.client.cancel([id for id, job in self.model.jobs.items() if not job.has_ended])

    # ---- the client ----

    @rule(
        target=jobs,
        dependencies=st.lists(st.tuples(jobs, st.sampled_from(("finished", "ended"))), max_size=3),
        args=st.one_of(st.none(), st.integers(), st.text(max_size=5), st.lists(st.booleans())),
        priority=st.integers(-1, 1),
        max_attempts=st.integers(1, 2),
    )
    def enqueue(
        self,
        dependencies: list[tuple[UUID, str]],
        args: Any,
        priority: int,
        max_attempts: int,
    ) -> Any:
        # One condition for each dependency: what two at a time mean is another test's subject.
        conditions = {id: how for id, how in dependencies if id in self.model.jobs}
        job = JobSpec(
            self.type,
            args,
            dependencies=[
                Dependency(id, "ended" if how == "ended" else "finished")
                for id, how in conditions.items()
            ],
            priority=priority,
            max_attempts=max_attempts,
            backoff=0,
        )
        assert self.client.enqueue_many([job]) == [job.id]
        assert self.client.enqueue_many([job]) == [job.id]  # again changes nothing

        self.model.enqueue(job.id, ModelJob(args, priority, max_attempts, conditions))
        return job.id

    @rule(id=jobs)
    def enqueue_the_same_id_with_other_content(self, id: UUID) -> None:
        if id in self.model.jobs:
            with pytest.raises(JobConflict):
                self.client.enqueue(self.type, {"other": "content"}, id=id)

    @rule()
    def enqueue_with_an_unknown_dependency(self) -> None:
        with pytest.raises(JobNotExist):
            self.client.enqueue(self.type, dependencies=[new_id()])

    @rule(id=jobs)
    def cancel(self, id: UUID) -> None:
        if id not in self.model.jobs:
            with pytest.raises(JobNotExist):
                self.client.cancel(id)
            return
        job = self.model.jobs[id]
        did = not job.has_ended

        assert self.client.cancel(id) is did

        if did:
            if held := self.held.pop(id, None):
                self.lost.append((held, JobCanceled))
            self.model.end(id, "canceled")

    @rule(id=jobs)
    def retry(self, id: UUID) -> None:
        job = self.model.jobs.get(id)
        if job is None or job.dependents or job.dependencies:
            return  # what a retry draws with it is the core's tests' subject
        if job.state in ("failed", "canceled"):
            assert self.client.retry(id) == [id]
            job.used, job.state = 0, "blocked"
            self.model.settle()
        elif job.state == "finished":
            with pytest.raises(JobConflict):
                self.client.retry(id)
        else:
            assert self.client.retry(id) == []

    @rule(id=jobs)
    def delete(self, id: UUID) -> None:
        job = self.model.jobs.get(id)
        if job is None:
            with pytest.raises(JobNotExist):
                self.client.delete(id)
        elif not job.dependents and job.has_ended:
            assert self.client.delete(id) == [id]
            del self.model.jobs[id]
            for other in self.model.jobs.values():
                other.dependents = [each for each in other.dependents if each != id]
                other.dependencies.pop(id, None)
        elif not job.has_ended:
            with pytest.raises(PointsmanError):
                self.client.delete(id)

    @rule(id=jobs)
    def ask_for_the_result(self, id: UUID) -> None:
        job = self.model.jobs.get(id)
        if job is None:
            with pytest.raises(JobNotExist):
                self.client.result(id, timeout=0)
        elif job.state == "finished":
            assert self.client.result(id, timeout=0) == job.result
        else:
            with pytest.raises(PointsmanError) as caught:
                self.client.result(id, timeout=0)
            assert isinstance(caught.value, WaitTimeout) is not job.has_ended

    # ---- the worker ----

    @rule()
    def dequeue(self) -> None:
        expected = self.model.ready()

        got = self.session.dequeue(timeout=PATIENCE_S if expected else 0)

        if not expected:
            assert got is None
            return
        assert got is not None
        assert got.id in expected
        self._note_start(got)

    @rule(id=jobs)
    def dequeue_one(self, id: UUID) -> None:
        job = self.model.jobs.get(id)
        if job is not None and job.state == "ready":
            got = self.session.dequeue(timeout=PATIENCE_S, id=id)
            assert got is not None
            assert got.id == id
            self._note_start(got)
            return
        wanted: type[PointsmanError] = JobNotReady
        if job is None:
            wanted = JobNotExist
        elif job.state == "canceled":
            wanted = JobCanceled
        with pytest.raises(wanted):
            self.session.dequeue(timeout=PATIENCE_S, id=id)

    def _note_start(self, got: SessionJob) -> None:
        job = self.model.jobs[got.id]
        job.state = "running"
        assert got.attempt > job.attempt
        assert got.args == job.args
        inputs = {id: self.model.jobs[id] for id in job.dependencies}
        finished = {id: each.result for id, each in inputs.items() if each.state == "finished"}
        assert {id: got.inputs[id] for id in finished} == finished
        job.attempt = got.attempt
        job.used += 1
        self.held[got.id] = got

    def _any_held(self, data: st.DataObject) -> SessionJob | None:
        if not self.held:
            return None
        return self.held.pop(data.draw(st.sampled_from(sorted(self.held))))

    @rule(data=st.data(), result=st.one_of(st.integers(), st.text(max_size=3)))
    def finish(self, data: st.DataObject, result: Any) -> None:
        if job := self._any_held(data):
            job.finish(result)
            self.model.end(job.id, "finished", result)
            self.lost.append((job, JobNotRunning))

    @rule(data=st.data(), retry=st.booleans())
    def fail(self, data: st.DataObject, retry: bool) -> None:
        if job := self._any_held(data):
            job.fail("it broke", retry=retry)
            known = self.model.jobs[job.id]
            if retry and known.used < known.max_attempts:
                known.state = "blocked"
                self.model.settle()
            else:
                self.model.end(job.id, "failed")
            self.lost.append((job, JobNotRunning))

    @rule(data=st.data())
    def finish_what_is_over(self, data: st.DataObject) -> None:
        if self.lost:
            job, error = data.draw(st.sampled_from(self.lost))
            with pytest.raises(error):
                job.finish("too late")

    @rule()
    def leave_and_come_back(self) -> None:
        self.session.close()
        for id in self.held:
            job = self.model.jobs[id]
            job.state = "blocked"
            job.used -= 1
        self.model.settle()
        self.held.clear()
        self.lost.clear()
        self.session = WorkerSession([self.type], self.broker.endpoint)

    # ---- what must be true at any time ----

    @invariant()
    def broker_and_model_agree(self) -> None:
        if not hasattr(self, "model") or not self.model.jobs:
            return
        ids = list(self.model.jobs)
        for job in self.client.status(ids):
            known = self.model.jobs[job.id]
            assert job.state == known.state, (job, known)
            assert job.result == known.result
            assert job.attempt == known.attempt or job.state == "ready"


def test_queue_does_what_the_model_says() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    with LocalBroker() as broker, Client(broker.endpoint) as client:
        QueueMachine.broker, QueueMachine.client = broker, client
        run_state_machine_as_test(
            QueueMachine,
            settings=settings(
                max_examples=40,
                stateful_step_count=30,
                deadline=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
