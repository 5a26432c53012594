"""Handlers in processes of their own: results, inputs, progress, deaths, cancel."""

import errno
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import SpawnProcess
from typing import Any

import pytest

from broker import LocalBroker
from tests.sdk import process_handlers
from worker_sdk import Client, Job, JobFailed, JobStatus, Worker
from worker_sdk.executors import Child
from worker_sdk.handlers import Failed, Verdict, make_handler
from worker_sdk.ids import new_id
from worker_sdk.messages import Assignment

pytest_plugins = ["worker_sdk.testing"]

WAIT_S = 20.0


@pytest.fixture
def client(pointsman_broker: LocalBroker, pointsman_client: Client) -> Iterator[Client]:
    """A client, with a worker of one place that has all handlers there are."""
    worker = Worker(concurrency=1, executor="process", grace=1)
    for name in ("pid", "total", "hang", "hang_unimpressed", "leave", "crash", "reject"):
        worker.add(name, getattr(process_handlers, name))
    worker.add("broken_result", process_handlers.broken_result)
    worker.add("number", lambda job: job.args, executor="thread")
    with worker:
        yield pointsman_client


def until(look: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + WAIT_S
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what}: not within {WAIT_S} s"
        time.sleep(0.01)
    return found


def status(client: Client, id: Any) -> JobStatus:
    found = client.status(id)
    assert isinstance(found, JobStatus)
    return found


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_jobs_run_in_one_other_process_with_their_inputs(client: Client) -> None:
    parts = [client.enqueue("number", n) for n in (1, 2, 3)]
    total = client.enqueue("total", 10, dependencies=parts)
    pids = {client.run("pid", wait_timeout=WAIT_S) for _ in range(2)}

    assert client.result(total, timeout=WAIT_S) == 16
    assert len(pids) == 1
    assert pids != {os.getpid()}


@pytest.mark.parametrize(
    ("type", "said"),
    [
        ("leave", "ProcessDied: .* ended with exit code 7"),
        ("crash", "ProcessDied: .* was killed by SIGKILL"),
        ("broken_result", "NotEncodable: result is nan"),
    ],
)
def test_a_process_that_dies_or_fails_fails_the_attempt_only(
    client: Client, type: str, said: str
) -> None:
    with pytest.raises(JobFailed, match=said):
        client.run(type, max_attempts=1, wait_timeout=WAIT_S)

    assert client.run("pid", wait_timeout=WAIT_S) != os.getpid()


def test_a_rejected_job_is_not_tried_again(client: Client) -> None:
    id = client.enqueue("reject", backoff=0)

    with pytest.raises(JobFailed, match="never again"):
        client.result(id, timeout=WAIT_S)
    assert status(client, id).attempt == 1


@pytest.mark.parametrize("type", ["hang", "hang_unimpressed"])
def test_a_canceled_job_is_killed_with_its_process(client: Client, type: str) -> None:
    id = client.enqueue(type)
    pid = until(lambda: status(client, id).progress, "the job runs")

    client.cancel(id)

    until(lambda: not is_alive(pid), "the process has ended")
    assert client.run("pid", wait_timeout=WAIT_S) not in (pid, os.getpid())


def test_an_attempt_beyond_its_timeout_is_killed(client: Client) -> None:
    client.run("pid", wait_timeout=WAIT_S)
    id = client.enqueue("hang", timeout=0.3, max_attempts=1)

    with pytest.raises(JobFailed):
        client.result(id, timeout=WAIT_S)
    assert client.run("pid", wait_timeout=WAIT_S) != os.getpid()


def test_the_process_ends_with_its_worker(
    pointsman_broker: LocalBroker, pointsman_client: Client
) -> None:
    worker = Worker(concurrency=1, executor="process", grace=0.2)
    worker.add("hang", process_handlers.hang)
    with worker:
        id = pointsman_client.enqueue("hang")
        pid = until(lambda: status(pointsman_client, id).progress, "the job runs")

    until(lambda: not is_alive(pid), "the process has ended")
    assert status(pointsman_client, id).state == "ready"


def refuse_starts(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Have the system refuse so many new processes."""
    refusals = [BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))] * times
    start = SpawnProcess.start

    def start_or_not(process: SpawnProcess) -> None:
        if refusals:
            raise refusals.pop()
        start(process)

    monkeypatch.setattr(SpawnProcess, "start", start_or_not)


def test_a_process_that_cannot_be_started_fails_the_attempt_only(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_starts(monkeypatch, 2)

    with pytest.raises(JobFailed, match=r"BlockingIOError: .*temporarily unavailable"):
        client.run("pid", max_attempts=1, wait_timeout=WAIT_S)
    id = client.enqueue("pid", backoff=0)

    assert client.result(id, timeout=WAIT_S) != os.getpid()
    assert status(client, id).attempt == 2


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child("child")
    yield child
    child.close()


def run_in(
    child: Child, function: Callable[[Job], Any], report: Any = None, type: str = "t"
) -> Verdict:
    """Run a job with this handler in the child."""
    handler = make_handler(type, function, "process", "thread", None)
    no_desk: Any = None
    return child.run(handler, Job(Assignment(new_id(), 1, type), no_desk), report)


def test_a_result_that_json_cannot_carry_is_a_failure_for_good(child: Child) -> None:
    verdict = run_in(child, process_handlers.broken_result)

    assert verdict == Failed(
        "NotEncodable: result is nan: JSON has neither NaN nor infinity", False
    )


def test_a_process_that_cannot_be_started_anew_is_ended_all_the_same(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_in(child, process_handlers.leave)
    refuse_starts(monkeypatch, 1)

    verdict = run_in(child, process_handlers.pid)

    assert isinstance(verdict, Failed)  # and the fixture closes what is left


def test_what_a_thread_reports_that_was_left_behind_is_not_the_next_jobs(child: Child) -> None:
    reports: list[tuple[str, bytes]] = []

    def report(job: Job, value: bytes) -> None:
        reports.append((job.type, value))

    run_in(child, process_handlers.leave_a_thread_behind, report, type="first")
    run_in(child, process_handlers.let_it_report, report, type="second")

    assert reports == [("first", b'"in time"'), ("second", b'"its own"')]
