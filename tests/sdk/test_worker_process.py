"""A worker as a process of its own: what signals do to it."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker import LocalBroker
from worker_sdk import Client, JobFailed, JobStatus

pytest_plugins = ["worker_sdk.testing"]

WAIT_S = 20.0

PROGRAM = """
import sys, time
from worker_sdk import Worker

worker = Worker(concurrency=1, grace=float(sys.argv[1]))

@worker.job("t")
def handle(job):
    job.progress("begun")
    deadline = time.monotonic() + job.args
    while time.monotonic() < deadline and not job.canceled:
        time.sleep(0.01)
    return "done"

@worker.job("run again")
def run_again(job):
    worker.run()

worker.run()
print("left")
"""

Start = Callable[[float], "subprocess.Popen[str]"]


@pytest.fixture
def start(pointsman_broker: LocalBroker) -> Iterator[Start]:
    """Starts a worker process with a grace time."""
    processes = []

    def start(grace_s: float) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(grace_s)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def status(client: Client, id: Any) -> JobStatus:
    found = client.status(id)
    assert isinstance(found, JobStatus)
    return found


def begin(client: Client, seconds: float) -> Any:
    """A job that takes so long, and runs."""
    id = client.enqueue("t", seconds)
    deadline = time.monotonic() + WAIT_S
    while status(client, id).progress != "begun":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return id


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_running_job_end_and_hands_back_the_next(
    start: Start, pointsman_client: Client, number: signal.Signals
) -> None:
    process = start(30)
    running = begin(pointsman_client, 0.3)
    waiting = pointsman_client.enqueue("t", 0)

    process.send_signal(number)
    said, _ = process.communicate(timeout=WAIT_S)

    assert (process.returncode, said) == (0, "left\n")
    assert pointsman_client.result(running, timeout=0) == "done"
    assert status(pointsman_client, waiting).state == "ready"


def test_beyond_the_grace_time_the_running_job_is_handed_back(
    start: Start, pointsman_client: Client
) -> None:
    process = start(0.1)
    id = begin(pointsman_client, 60)

    process.terminate()
    process.communicate(timeout=WAIT_S)

    assert process.returncode == 0
    assert status(pointsman_client, id).state == "ready"


def test_a_second_signal_ends_the_grace_time(start: Start, pointsman_client: Client) -> None:
    process = start(60)
    id = begin(pointsman_client, 60)

    process.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.terminate()
    process.communicate(timeout=WAIT_S)

    assert process.returncode == 0
    assert status(pointsman_client, id).state == "ready"


def test_a_second_run_is_refused_and_leaves_the_signals_to_the_first(
    start: Start, pointsman_client: Client
) -> None:
    process = start(30)
    with pytest.raises(JobFailed, match="the worker runs already"):
        pointsman_client.run("run again", max_attempts=1, wait_timeout=WAIT_S)

    process.terminate()
    said, _ = process.communicate(timeout=WAIT_S)

    assert (process.returncode, said) == (0, "left\n")


def test_a_killed_worker_s_job_is_run_by_another(start: Start) -> None:
    with LocalBroker(heartbeat_limit=0.3) as broker, Client(broker.endpoint) as client:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("POINTSMAN_BROKER", broker.endpoint)
            first = start(1)
            id = begin(client, 0.5)
            first.kill()
            start(1)
            assert client.result(id, timeout=WAIT_S) == "done"
    assert first.wait(WAIT_S) == -signal.SIGKILL
