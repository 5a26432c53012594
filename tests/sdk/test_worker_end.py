"""How a worker ends: told to, refused, without a broker, by an error of its own; and how not."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from broker import LocalBroker
from worker_sdk import Worker

pytest_plugins = ["worker_sdk.testing"]

WAIT_S = 10.0


@pytest.fixture
def worker(pointsman_broker: LocalBroker) -> Iterator[Worker]:
    """A worker with one handler, that is stopped at the end of the test."""
    worker = Worker(pointsman_broker.endpoint, concurrency=1, grace=5)
    worker.add("t", lambda job: job.args)
    yield worker
    worker.stop()


def until(is_true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < deadline, f"{what}: not within {WAIT_S} s"
        time.sleep(0.005)


class Background:
    """A call in a thread of its own, and what it raised."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as error:  # noqa: BLE001 - it is what the test looks at
            self.error = error

    def has_ended(self) -> bool:
        self.thread.join(WAIT_S)
        return not self.thread.is_alive()


def running(worker: Worker) -> Background:
    """The worker's `run`, once it has begun."""
    run = Background(worker.run)
    until(lambda: worker.is_running, "the worker runs")
    return run


def test_a_run_that_is_refused_leaves_the_one_that_is_under_way_its_end(worker: Worker) -> None:
    run = running(worker)

    with pytest.raises(RuntimeError, match="runs already"):
        worker.run()
    worker.stop()

    assert run.has_ended()
    assert run.error is None
