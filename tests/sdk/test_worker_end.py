"""How a worker ends: told to, refused, without a broker, by an error of its own; and how not."""

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from broker import LocalBroker
from tests.sdk.scripted_broker import ScriptedBroker
from worker_sdk import Client, Job, JobFailed, Worker
from worker_sdk.agent import Agent, Link
from worker_sdk.executors import EventLoop
from worker_sdk.handlers import Verdict
from worker_sdk.hands import Hands
from worker_sdk.messages import Bye, Hello, WorkerRequest

pytest_plugins = ["worker_sdk.testing"]

WAIT_S = 10.0
WELCOME = {
    "op": "welcome",
    "version": "1",
    "heartbeat": 20,
    "heartbeat_limit": 60,
    "message_limit": 1 << 20,
}


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


def hands_of(worker: Worker) -> Hands:
    assert worker._hands is not None
    return worker._hands


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


def test_a_worker_without_jobs_does_not_wait_for_a_broker_that_went_away_under_its_bye(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker_sdk.hands.ANSWER_S", 3600)
    said_bye = threading.Event()

    def script(request: WorkerRequest) -> dict[str, Any] | None:
        if isinstance(request, Bye):
            said_bye.set()
        return WELCOME if isinstance(request, Hello) else None

    with ScriptedBroker(script) as broker:
        worker = Worker(broker.endpoint)
        worker.add("t", lambda job: None)
        worker.start()
        until(lambda: hands_of(worker)._agent.link is Link.WELCOMED, "the welcome")
        stop = Background(worker.stop)
        assert said_bye.wait(WAIT_S)

    assert stop.has_ended()
    assert stop.error is None


# ---- errors of the worker's own -----------------------------------------------------------------


def has_left_nothing(hands: Hands) -> bool:
    """Whether no thread and no socket is left of a worker."""
    threads = (hands._keeper_thread, *hands._threads)
    return hands._dealer._socket.closed and not any(thread.is_alive() for thread in threads)


def break_keeper(patch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    patch.setattr("worker_sdk.dealer.pack", fail)


def break_end_of_jobs(patch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(hands: Hands, job: Job, verdict: Verdict, seconds: float) -> None:
        raise error

    patch.setattr(Hands, "_end", fail)


@pytest.mark.parametrize("error", [RuntimeError("a slip"), SystemExit(3)])
@pytest.mark.parametrize("what", [break_keeper, break_end_of_jobs])
@pytest.mark.parametrize("is_async", [False, True])
def test_an_error_of_the_worker_s_own_ends_it_and_run_raises_it(
    worker: Worker,
    pointsman_client: Client,
    monkeypatch: pytest.MonkeyPatch,
    what: Callable[[pytest.MonkeyPatch, BaseException], None],
    error: BaseException,
    is_async: bool,
) -> None:
    async def handle(job: Job) -> None: ...

    worker.add("async", handle)
    run = running(worker)
    hands = hands_of(worker)
    what(monkeypatch, error)

    pointsman_client.enqueue("async" if is_async else "t")

    assert run.has_ended()
    assert run.error is error
    assert not worker.is_running
    assert has_left_nothing(hands)


def test_an_error_of_the_event_loop_s_ends_the_worker_too(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def handle(job: Job) -> None: ...

    error = OSError("a descriptor is gone")
    worker.add("async", handle)

    def fail(loop: EventLoop) -> None:
        raise error

    monkeypatch.setattr(EventLoop, "_run_on", fail)

    with pytest.raises(OSError, match="a descriptor is gone"):
        worker.run()

    assert not worker.is_running


def test_an_error_of_the_worker_s_own_is_its_fault_and_stops_its_handlers(
    worker: Worker, pointsman_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError("a slip")
    begun = threading.Event()
    canceled: list[bool] = []

    @worker.job("long")
    def handle(job: Job) -> None:
        begun.set()
        canceled.append(job.wait_canceled(WAIT_S))

    worker.start()
    hands = hands_of(worker)
    pointsman_client.enqueue("long")
    assert begun.wait(WAIT_S)

    break_keeper(monkeypatch, error)
    with hands._lock:
        hands._agent.set_credit(7)  # something to say
        hands._keeper_is_called = True
        hands._keeper.call()

    until(lambda: worker.fault is error, "the fault is known")
    until(lambda: canceled == [True], "the handler was told")
    worker.stop()
    assert not worker.is_running
    assert has_left_nothing(hands)


def test_a_worker_that_cannot_leave_as_it_should_is_over_all_the_same(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(agent: Agent, now: float) -> None:
        raise RuntimeError("a slip")

    worker.start()
    hands = hands_of(worker)
    monkeypatch.setattr(Agent, "leave", fail)

    with pytest.raises(RuntimeError, match="a slip"):
        worker.stop()

    assert not worker.is_running
    assert has_left_nothing(hands)


@pytest.mark.parametrize("refused", ["pointsman-keeper", "pointsman-async"])
def test_a_worker_that_cannot_start_leaves_nothing_open(
    pointsman_broker: LocalBroker, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    worker = Worker(pointsman_broker.endpoint)

    @worker.job("t")
    async def handle(job: Job) -> None: ...

    start = threading.Thread.start

    def start_or_not(thread: threading.Thread) -> None:
        if thread.name == refused:
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_or_not)
        with pytest.raises(RuntimeError, match="can't start"):
            worker.start()

    # It would hang if a socket were left, and warn of a loop.
    gc.collect()
    assert not worker.is_running


def test_a_log_that_fails_costs_neither_the_job_nor_the_worker(
    worker: Worker, pointsman_client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(record: logging.LogRecord) -> bool:
        raise KeyError("no request is under way")

    worker.add("fails", lambda job: 1 / 0)

    @worker.job("fails later")
    async def fail_later(job: Job) -> None:
        raise ValueError

    log = logging.getLogger("worker_sdk")
    log.addFilter(fail)
    try:
        worker.start()
        for type in ("fails", "fails later"):
            with pytest.raises(JobFailed):
                pointsman_client.run(type, max_attempts=1, wait_timeout=WAIT_S)
        assert pointsman_client.run("t", 5, wait_timeout=WAIT_S) == 5
    finally:
        log.removeFilter(fail)
    assert worker.fault is None
