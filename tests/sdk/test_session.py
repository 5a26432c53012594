"""The pull style: jobs are taken one by one, and their outcomes confirmed."""

import contextlib
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from msgspec import UNSET, Raw

from broker import LocalBroker
from tests.sdk.scripted_broker import ScriptedBroker
from worker_sdk import (
    Client,
    ClientClosed,
    InvalidRequest,
    JobCanceled,
    JobFailed,
    JobNotExist,
    JobNotReady,
    JobNotRunning,
    JobStatus,
    NotEncodable,
    ProtocolError,
    SessionJob,
    TooLarge,
    WaitTimeout,
    WorkerSession,
)
from worker_sdk.errors import Denied
from worker_sdk.ids import new_uuid

pytest_plugins = ["worker_sdk.testing"]

WAIT_S = 10.0


@pytest.fixture
def session(pointsman_broker: LocalBroker) -> Iterator[WorkerSession]:
    with WorkerSession(types=["t"]) as session:
        yield session


@pytest.fixture
def client(pointsman_client: Client) -> Client:
    return pointsman_client


def take(session: WorkerSession, id: UUID | None = None) -> SessionJob:
    job = session.dequeue(timeout=WAIT_S, id=id)
    assert job is not None
    return job


def status(client: Client, id: Any) -> JobStatus:
    found = client.status(id)
    assert isinstance(found, JobStatus)
    return found


def until(is_true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < deadline, f"{what}: not within {WAIT_S} s"
        time.sleep(0.005)


# ---- taking and ending ---------------------------------------------------------------------------


def test_a_job_is_taken_and_finished(session: WorkerSession, client: Client) -> None:
    first = client.enqueue("t", {"x": 1})
    second = client.enqueue("t", dependencies=[first])

    job = take(session)
    assert (job.id, job.type, job.args, job.attempt) == (first, "t", {"x": 1}, 1)
    job.finish({"y": 2})
    assert client.result(first, timeout=0) == {"y": 2}

    following = take(session)
    assert following.id == second
    assert following.dependencies == (first,)
    assert following.inputs[first] == {"y": 2}
    assert "zz" not in following.inputs
    with pytest.raises(InvalidRequest, match="'zz' is not a job id"):
        following.inputs["zz"]


def test_a_job_that_fails_is_tried_again_unless_told_otherwise(
    session: WorkerSession, client: Client
) -> None:
    id = client.enqueue("t", backoff=0)

    take(session).fail("once")
    job = take(session)
    assert (job.id, job.attempt) == (id, 2)
    job.fail("for good \ud800", retry=False)

    with pytest.raises(JobFailed, match=r"for good \\ud800"):
        client.result(id, timeout=WAIT_S)


def test_nothing_to_do_is_none_after_the_time_out(session: WorkerSession) -> None:
    assert session.dequeue(timeout=0) is None
    began = time.monotonic()
    assert session.dequeue(timeout=0.2) is None
    assert 0.2 <= time.monotonic() - began < 2


def test_a_job_that_is_ready_is_taken_without_any_patience(
    session: WorkerSession, client: Client
) -> None:
    ids = [client.enqueue("t") for _ in range(20)]

    jobs = [session.dequeue(timeout=0) for _ in range(21)]

    assert [job.id for job in jobs if job] == ids
    assert jobs[20] is None


def test_nothing_is_given_to_a_session_that_does_not_ask(
    session: WorkerSession, client: Client
) -> None:
    ids = [client.enqueue("t") for _ in range(3)]
    job = take(session)
    assert [status(client, id).state for id in ids] == ["running", "ready", "ready"]

    job.finish()
    client.status(ids[0])

    assert [status(client, id).state for id in ids] == ["finished", "ready", "ready"]


def test_waiting_without_limit_ends_with_a_job(session: WorkerSession, client: Client) -> None:
    taken: list[UUID] = []
    waiting = threading.Thread(target=lambda: taken.append(session.dequeue().id))  # type: ignore[union-attr]
    waiting.start()

    id = client.enqueue("t")
    waiting.join(WAIT_S)

    assert taken == [id]


def test_several_jobs_are_held_and_ended_in_any_order(
    session: WorkerSession, client: Client
) -> None:
    ids = [client.enqueue("t") for _ in range(3)]
    jobs = [take(session) for _ in range(3)]

    for job in reversed(jobs):
        job.finish(str(job.id))

    assert [client.result(id, timeout=0) for id in ids] == [str(id) for id in ids]


def test_several_threads_share_a_session(session: WorkerSession, client: Client) -> None:
    def work() -> None:
        while job := session.dequeue(timeout=0.3):
            job.finish(job.args)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    ids = [client.enqueue("t", n) for n in range(100)]
    results = [client.result(id, timeout=WAIT_S) for id in ids]
    for thread in threads:
        thread.join(WAIT_S)

    assert results == list(range(100))


def test_progress_is_told(session: WorkerSession, client: Client) -> None:
    id = client.enqueue("t")
    job = take(session)

    job.progress([1, 2])
    job.progress([2, 2])

    until(lambda: status(client, id).progress == [2, 2], "the last progress")


def test_the_lease_is_kept_while_the_user_computes() -> None:
    with LocalBroker(heartbeat_limit=0.3) as broker, Client(broker.endpoint) as client:
        with WorkerSession(["t"], broker.endpoint) as session:
            id = client.enqueue("t")
            job = take(session)
            time.sleep(1.0)
            job.finish("in time")
            assert client.result(id, timeout=0) == "in time"


# ---- one certain job -----------------------------------------------------------------------------


def test_a_certain_job_is_taken_whatever_its_place(session: WorkerSession, client: Client) -> None:
    ids = [client.enqueue("t") for _ in range(3)]

    job = take(session, ids[2])
    job.finish("picked")

    assert client.result(ids[2], timeout=0) == "picked"
    assert take(session).id == ids[0]


def test_a_certain_job_that_cannot_be_taken_is_an_error(
    session: WorkerSession, client: Client
) -> None:
    running = client.enqueue("t")
    take(session)
    blocked = client.enqueue("t", dependencies=[running])
    canceled = client.enqueue("t")
    client.cancel(canceled)

    with pytest.raises(JobNotReady):
        session.dequeue(id=running)
    with pytest.raises(JobNotReady):
        session.dequeue(id=str(blocked))
    with pytest.raises(JobCanceled):
        session.dequeue(id=canceled)
    with pytest.raises(JobNotExist):
        session.dequeue(id=new_uuid())


# ---- what goes wrong -----------------------------------------------------------------------------


def test_an_attempt_ends_once(session: WorkerSession, client: Client) -> None:
    client.enqueue("t")
    job = take(session)
    job.finish(1)

    with pytest.raises(JobNotRunning):
        job.finish(2)
    with pytest.raises(JobNotRunning):
        job.fail("no")


def test_a_canceled_job_cannot_be_finished(session: WorkerSession, client: Client) -> None:
    id = client.enqueue("t")
    job = take(session)
    assert not job.canceled
    job.check_canceled()

    client.cancel(id)

    assert job.wait_canceled(WAIT_S)
    with pytest.raises(JobCanceled):
        job.check_canceled()
    with pytest.raises(JobCanceled):
        job.finish()


def test_finish_that_meets_the_cancel_under_way_says_so(
    session: WorkerSession, client: Client
) -> None:
    ids = [client.enqueue("t") for _ in range(30)]
    for id in ids:
        job = take(session)
        client.cancel(id)
        with pytest.raises(JobCanceled):
            job.finish()


def test_an_attempt_beyond_its_timeout_cannot_be_finished(
    session: WorkerSession, client: Client
) -> None:
    client.enqueue("t", timeout=0.05, max_attempts=1)
    job = take(session)

    assert job.wait_canceled(WAIT_S)
    with pytest.raises(JobNotRunning):
        job.finish()


def test_a_result_that_cannot_be_sent_leaves_the_job_as_it_is() -> None:
    with LocalBroker(max_message=65_536) as broker, Client(broker.endpoint) as client:
        with WorkerSession(["t"], broker.endpoint) as session:
            id = client.enqueue("t")
            job = take(session)
            with pytest.raises(NotEncodable):
                job.finish(float("nan"))
            with pytest.raises(TooLarge):
                job.finish("x" * 70_000)
            job.finish("small")
            assert client.result(id, timeout=0) == "small"


def test_args_that_cannot_be_read_are_an_error_of_that_job_alone() -> None:
    with ScriptedBroker(greeter()) as broker, WorkerSession(["t"], broker.endpoint) as session:
        job = take(session)
        job._assignment.args = Raw(b"[1, 2")
        with pytest.raises(ProtocolError, match="args cannot be read"):
            _ = job.args


def test_no_broker_means_no_job_within_the_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker_sdk.session.CONNECT_S", 60.0)  # what a new session has besides

    with WorkerSession(["t"], "tcp://127.0.0.1:9") as session:
        assert session.dequeue(timeout=0.05) is None


def test_session_made_a_while_ago_looks_for_no_broker_beyond_its_time_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker_sdk.session.CONNECT_S", 0.0)

    with WorkerSession(["t"], "tcp://127.0.0.1:9") as session:
        monkeypatch.setattr("worker_sdk.session.CONNECT_S", 60.0)
        assert session.dequeue(timeout=0) is None


@pytest.mark.parametrize("wrong", [float("nan"), "soon"])
def test_timeout_that_is_no_number_is_named(
    session: WorkerSession, client: Client, wrong: Any
) -> None:
    client.enqueue("t")
    job = take(session)

    fail = partial(job.fail, "error")
    waits: list[Callable[..., Any]] = [session.dequeue, job.finish, fail, job.wait_canceled]
    for wait in waits:
        with pytest.raises(InvalidRequest, match=f"timeout is a number of seconds .* {wrong!r}"):
            wait(timeout=wrong)

    job.finish()


def test_timeout_without_end_is_none(session: WorkerSession, client: Client) -> None:
    client.enqueue("t")
    job = session.dequeue(timeout=float("inf"))

    assert job is not None
    job.finish(timeout=float("inf"))


def test_a_broker_that_refuses_the_session_is_an_error() -> None:
    def refuse(request: Any) -> dict[str, Any]:
        return {"op": "error", "code": "denied", "message": "not you"}

    with ScriptedBroker(refuse) as broker, WorkerSession(["t"], broker.endpoint) as session:
        with pytest.raises(Denied, match="not you"):
            session.dequeue()


def test_an_unconfirmed_outcome_is_waited_for_no_longer_than_told() -> None:
    with ScriptedBroker(greeter()) as broker, WorkerSession(["t"], broker.endpoint) as session:
        with pytest.raises(WaitTimeout):
            take(session).finish(timeout=0.05)


def greeter(**parts: Any) -> Callable[[Any], Any]:
    """A script that welcomes, gives a job when asked for one, and confirms no outcome."""
    job = {"op": "jobs", "jobs": [{"id": str(new_uuid()), "attempt": 1, "type": "t", **parts}]}
    welcome = {"op": "welcome", "version": "0", "heartbeat": 1, "heartbeat_limit": 5}

    def script(request: Any) -> Any:
        op = type(request).__name__
        req = None if request.req is UNSET else request.req
        answer = {
            "Hello": {**welcome, "message_limit": 1 << 20},
            "Heartbeat": {"op": "heartbeat", "req": req},
            "Bye": {"op": "ok"},
        }.get(op)
        asks = op in ("Hello", "Heartbeat") and request.credit
        return (answer, {**job, "req": None}) if asks else answer

    return script


# ---- the end -------------------------------------------------------------------------------------


def test_closing_hands_back_what_is_held_and_ends_the_waiting(
    session: WorkerSession, client: Client
) -> None:
    id = client.enqueue("t")
    job = take(session)
    taken: list[object] = []
    waiting = threading.Thread(target=lambda: taken.append(session.dequeue()))
    waiting.start()
    until(lambda: session._waiting == 1, "somebody waits")

    session.close()
    waiting.join(WAIT_S)

    assert taken == [None]
    assert job.canceled
    assert status(client, id).state == "ready"
    with pytest.raises(ClientClosed):
        session.dequeue()
    with pytest.raises(ClientClosed):
        job.finish()
    session.close()


def test_a_session_that_is_dropped_hands_back_what_it_holds_with_a_warning(
    pointsman_broker: LocalBroker, client: Client
) -> None:
    ended, held = [client.enqueue("t") for _ in range(2)]
    session = WorkerSession(types=["t"])
    keeper = session._thread
    with contextlib.suppress(WaitTimeout):
        take(session, ended).finish(1, timeout=0)
    garbage = [session, take(session, held)]
    del session

    with pytest.warns(ResourceWarning, match="unclosed WorkerSession"):
        drop(garbage)

    keeper.join(WAIT_S)
    assert not keeper.is_alive()
    assert client.result(ended, timeout=0) == 1
    assert status(client, held).state == "ready"


def drop(garbage: list[Any]) -> None:
    garbage.clear()
    gc.collect()


def test_a_session_shows_what_it_takes_from_where() -> None:
    with WorkerSession(["resize", "fetch"], "tcp://127.0.0.1:9") as session:
        assert repr(session) == "<WorkerSession of tcp://127.0.0.1:9 for resize, fetch>"

    assert repr(session) == "<WorkerSession of tcp://127.0.0.1:9 for resize, fetch, closed>"


def test_a_session_is_of_no_use_in_a_forked_process(session: WorkerSession) -> None:
    session._pid = os.getpid() + 1  # as it is in a child
    with pytest.raises(RuntimeError, match="forked"):
        session.dequeue(timeout=0)
    session._pid = os.getpid()


def test_mistakes_in_making_a_session_are_told() -> None:
    with pytest.raises(TypeError, match="list of names"):
        WorkerSession("resize")
    with pytest.raises(ValueError, match="at least one job type"):
        WorkerSession([])
    with pytest.raises(ValueError, match="1 to 200 characters"):
        WorkerSession(["x" * 201])
    with pytest.raises(ValueError, match="not an endpoint"):
        WorkerSession(["t"], "nonsense")


@pytest.mark.parametrize(
    "wrong", [{"types": ["\ud800"]}, {"channels": ["\ud800"]}, {"name": "\ud800"}, {"name": 5}]
)
def test_names_that_cannot_be_sent_are_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"is (Unicode text|a text of 1 to 200)"):
        WorkerSession(**{"types": ["t"], **wrong})
