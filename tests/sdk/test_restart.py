"""Workers and sessions while their broker is restarted: nothing is lost, nothing is run twice."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker import LocalBroker
from worker_sdk import Client, Job, JobSpec, JobStatus, Worker, WorkerSession

WAIT_S = 20.0


class RestartableBroker:
    """A broker that comes back on the same file and endpoint."""

    def __init__(self, file: Path) -> None:
        self._store = f"sqlite:{file}"
        self._broker = LocalBroker(self._store, grace=2)
        self._broker.start()
        self.endpoint = self._broker.endpoint

    def go(self) -> None:
        self._broker.stop()

    def come_back(self) -> None:
        self._broker = LocalBroker(self._store, bind=self.endpoint, grace=2)
        self._broker.start()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RestartableBroker]:
    broker = RestartableBroker(tmp_path / "jobs.db")
    yield broker
    broker.go()


@pytest.fixture
def client(broker: RestartableBroker) -> Iterator[Client]:
    with Client(broker.endpoint, timeout=WAIT_S) as client:
        yield client


def status(client: Client, id: Any) -> JobStatus:
    found = client.status(id)
    assert isinstance(found, JobStatus)
    return found


def test_a_running_attempt_goes_on_over_a_restart(
    broker: RestartableBroker, client: Client
) -> None:
    worker = Worker(broker.endpoint, concurrency=1)
    begun, go_on = threading.Event(), threading.Event()

    @worker.job("t")
    def handle(job: Job) -> int:
        begun.set()
        go_on.wait(WAIT_S)
        return job.attempt

    with worker:
        id = client.enqueue("t")
        begun.wait(WAIT_S)
        broker.go()
        broker.come_back()
        assert status(client, id).state == "running"
        go_on.set()
        assert client.result(id, timeout=WAIT_S) == 1


def test_a_result_found_without_a_broker_is_delivered_later(
    broker: RestartableBroker, client: Client
) -> None:
    worker = Worker(broker.endpoint, concurrency=1)
    begun, go_on, over = threading.Event(), threading.Event(), threading.Event()

    @worker.job("t")
    def handle(job: Job) -> int:
        begun.set()
        go_on.wait(WAIT_S)
        over.set()
        return job.attempt

    with worker:
        id = client.enqueue("t")
        begun.wait(WAIT_S)
        broker.go()
        go_on.set()
        over.wait(WAIT_S)
        broker.come_back()
        assert client.result(id, timeout=WAIT_S) == 1


def test_no_job_is_lost_or_run_twice_over_restarts_under_load(
    broker: RestartableBroker, client: Client
) -> None:
    worker = Worker(broker.endpoint, concurrency=2)
    runs: Counter[int] = Counter()

    @worker.job("t")
    def handle(job: Job) -> Any:
        runs[job.args] += 1
        time.sleep(0.0002)
        return job.args

    with worker:
        ids = client.enqueue_many([JobSpec("t", n) for n in range(4000)])
        for _ in range(3):
            time.sleep(0.1)
            broker.go()
            broker.come_back()
        results = [each.outcome() for each in client.wait(ids, timeout=WAIT_S)]

    assert results == list(range(4000))
    assert set(runs.values()) == {1}


def test_a_session_finishes_over_a_restart_what_it_took_before(
    broker: RestartableBroker, client: Client
) -> None:
    with WorkerSession(["t"], broker.endpoint) as session:
        first = client.enqueue("t")
        job = session.dequeue(timeout=WAIT_S)
        assert job is not None
        broker.go()
        finishing = threading.Thread(target=job.finish, args=("done",))
        finishing.start()
        broker.come_back()
        finishing.join(WAIT_S)
        assert client.result(first, timeout=0) == "done"

        second = client.enqueue("t")
        job = session.dequeue(timeout=WAIT_S)
        assert job is not None
        assert job.id == second
