"""Workers with a real broker: handlers in threads and on the event loop, cancel, drain, limits."""

import asyncio
import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from broker import LocalBroker
from worker_sdk import (
    Client,
    Dependency,
    Job,
    JobCanceled,
    JobFailed,
    JobRejected,
    JobSpec,
    JobStatus,
    Unsupported,
    Worker,
)
from worker_sdk.errors import PointsmanError
from worker_sdk.handlers import Verdict
from worker_sdk.handlers import run as run_handler
from worker_sdk.hands import Hands
from worker_sdk.rest import Rest

pytest_plugins = ["worker_sdk.testing"]

Make = Callable[..., Worker]
WAIT_S = 10.0


@pytest.fixture
def make(pointsman_broker: LocalBroker) -> Iterator[Make]:
    """Makes workers that are stopped at the end of the test; to be started by the test."""
    with ExitStack() as stack:

        def make(**settings: Any) -> Worker:
            worker = Worker(pointsman_broker.endpoint, **{"grace": 5.0, **settings})
            stack.callback(worker.stop)
            return worker

        yield make


def until(is_true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < deadline, f"{what}: not within {WAIT_S} s"
        time.sleep(0.005)


def status(client: Client, id: Any) -> JobStatus:
    found = client.status(id)
    assert isinstance(found, JobStatus)
    return found


# ---- handlers and what becomes of their jobs -----------------------------------------------------


def test_a_handler_sees_its_job_and_its_return_value_is_the_result(
    make: Make, pointsman_client: Client
) -> None:
    worker = make(channels=["c"])

    @worker.job("t")
    def handle(job: Job) -> Any:
        return [str(job.id), job.type, job.args, job.attempt, job.channel, job.timeout]

    worker.start()
    id = pointsman_client.enqueue("t", {"x": 1}, channel="c", timeout=30)

    result = pointsman_client.result(id, timeout=WAIT_S)

    assert result == [str(id), "t", {"x": 1}, 1, "c", 30]


def test_an_async_handler_runs_many_jobs_at_a_time(make: Make, pointsman_client: Client) -> None:
    worker = make(concurrency=20)
    together = asyncio.Barrier(20)

    @worker.job("t")
    async def handle(job: Job) -> Any:
        await together.wait()
        return job.args

    worker.start()
    ids = [pointsman_client.enqueue("t", n) for n in range(20)]

    assert [pointsman_client.result(id, timeout=WAIT_S) for id in ids] == list(range(20))


def test_thread_handlers_run_as_many_at_a_time_as_the_concurrency(
    make: Make, pointsman_client: Client
) -> None:
    worker = make(concurrency=3)
    together = threading.Barrier(3, timeout=WAIT_S)

    @worker.job("t")
    def handle(job: Job) -> None:
        together.wait()

    worker.start()
    ids = [pointsman_client.enqueue("t") for _ in range(3)]

    assert [pointsman_client.result(id, timeout=WAIT_S) for id in ids] == [None] * 3


def test_thousands_of_short_jobs_each_run_once(make: Make, pointsman_client: Client) -> None:
    worker = make(concurrency=4)
    ran: list[int] = []

    @worker.job("t")
    def handle(job: Job) -> Any:
        ran.append(job.args)
        return job.args

    worker.start()
    ids = pointsman_client.enqueue_many([JobSpec("t", n) for n in range(3000)])

    assert [pointsman_client.result(id, timeout=WAIT_S) for id in ids] == list(range(3000))
    assert sorted(ran) == list(range(3000))


def test_results_of_dependencies_are_the_inputs(make: Make, pointsman_client: Client) -> None:
    worker = make()
    worker.add("number", lambda job: job.args)
    worker.add("fails", lambda job: 1 // 0)

    @worker.job("sum")
    def add_up(job: Job) -> Any:
        ids = job.dependencies
        known = [job.inputs[ids[0]], job.inputs[str(ids[1])]]
        return [known, len(job.inputs), ids[2] in job.inputs, ids[0] in job.inputs]

    worker.start()
    client = pointsman_client
    parts = [client.enqueue("number", n) for n in (1, 2)]
    broken = Dependency(client.enqueue("fails", max_attempts=1), "ended")
    id = client.enqueue("sum", dependencies=[*parts, broken])

    assert client.result(id, timeout=WAIT_S) == [[1, 2], 2, False, True]


@pytest.mark.parametrize("is_async", [False, True])
def test_inputs_too_large_for_the_dispatch_are_fetched_unnoticed(
    pointsman_client: Client, make: Make, is_async: bool
) -> None:
    worker = make(concurrency=1)
    worker.add("part", lambda job: "x" * 400_000)

    def size(job: Job) -> int:
        return sum(map(len, job.inputs.values()))

    async def size_async(job: Job) -> int:
        return size(job)

    worker.add("size", size_async if is_async else size)
    worker.start()
    parts = [pointsman_client.enqueue("part") for _ in range(8)]
    id = pointsman_client.enqueue("size", dependencies=parts)

    assert pointsman_client.result(id, timeout=WAIT_S) == 8 * 400_000


def test_an_exception_fails_the_attempt_with_its_type_message_and_place(
    make: Make, pointsman_client: Client
) -> None:
    worker = make()

    @worker.job("t")
    def handle(job: Job) -> None:
        raise ValueError("bad \ud800 luck")

    worker.start()
    id = pointsman_client.enqueue("t", max_attempts=1)

    with pytest.raises(JobFailed) as failed:
        pointsman_client.result(id, timeout=WAIT_S)

    assert failed.value.error.startswith("ValueError: bad \\ud800 luck\n")
    assert "in handle" in failed.value.error
    assert "worker_sdk" not in failed.value.error


def test_a_failed_attempt_is_followed_by_another(make: Make, pointsman_client: Client) -> None:
    worker = make()

    @worker.job("t")
    def handle(job: Job) -> Any:
        if job.attempt < 3:
            raise OSError("not yet")
        return job.attempt

    worker.start()
    id = pointsman_client.enqueue("t", backoff=0)

    assert pointsman_client.result(id, timeout=WAIT_S) == 3


def test_a_rejected_job_is_not_tried_again(make: Make, pointsman_client: Client) -> None:
    worker = make()

    @worker.job("t")
    def handle(job: Job) -> None:
        raise JobRejected("no use")

    worker.start()
    id = pointsman_client.enqueue("t", backoff=0)

    with pytest.raises(JobFailed, match="JobRejected: no use"):
        pointsman_client.result(id, timeout=WAIT_S)
    assert status(pointsman_client, id).attempt == 1


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("value", [float("nan"), object(), [float("inf")], {1: {2: {3}}, "a": len}])
def test_a_result_that_json_cannot_carry_fails_the_job_for_good(
    make: Make, pointsman_client: Client, value: Any, is_async: bool
) -> None:
    async def handle_async(job: Job) -> Any:
        return value

    worker = make()
    worker.add("t", handle_async if is_async else lambda job: value)
    worker.start()
    id = pointsman_client.enqueue("t")

    with pytest.raises(JobFailed, match="NotEncodable: result"):
        pointsman_client.result(id, timeout=WAIT_S)
    assert status(pointsman_client, id).attempt == 1


def test_an_object_with_an_async_call_is_a_handler(make: Make, pointsman_client: Client) -> None:
    class Doubler:
        async def __call__(self, job: Job) -> Any:
            await asyncio.sleep(0)
            return 2 * job.args

    worker = make()
    worker.add("t", Doubler())
    worker.start()

    assert pointsman_client.run("t", 4, wait_timeout=WAIT_S) == 8


@pytest.mark.parametrize("is_async", [False, True])
def test_a_handler_that_raises_is_told_in_the_log(
    make: Make, pointsman_client: Client, is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def handle(job: Job) -> None:
        raise ValueError("bad luck")

    async def handle_async(job: Job) -> None:
        handle(job)

    worker = make()
    worker.add("t", handle_async if is_async else handle)
    worker.start()
    id = pointsman_client.enqueue("t", max_attempts=1)

    with pytest.raises(JobFailed):
        pointsman_client.result(id, timeout=WAIT_S)

    said = f"job {id} of type 't' failed in attempt 1: ValueError: bad luck"
    assert [each.getMessage() for each in caplog.records if each.levelname == "WARNING"] == [said]


def test_a_result_too_large_for_the_broker_fails_the_job_for_good(make: Make) -> None:
    with LocalBroker(max_message=65_536) as broker, Client(broker.endpoint) as client:
        worker = Worker(broker.endpoint)
        worker.add("t", lambda job: "x" * 70_000)
        with worker:
            id = client.enqueue("t")
            with pytest.raises(JobFailed, match="TooLarge: the result has 70,002 bytes"):
                client.result(id, timeout=WAIT_S)


def test_sys_exit_in_a_handler_ends_its_attempt_only(make: Make, pointsman_client: Client) -> None:
    worker = make(concurrency=1)

    @worker.job("t")
    def handle(job: Job) -> str:
        if job.args:
            raise SystemExit(3)
        return "alive"

    worker.start()
    leaving = pointsman_client.enqueue("t", 1, max_attempts=1)
    id = pointsman_client.enqueue("t", 0)

    assert pointsman_client.result(id, timeout=WAIT_S) == "alive"
    assert status(pointsman_client, leaving).error is not None


def exit_process(job: Job) -> None:
    async def leave() -> None:
        sys.exit(4)

    task = asyncio.create_task(leave())
    task.add_done_callback(asyncio.Task.exception)  # else it is told when the memory is freed


def interrupt(job: Job) -> None:
    def call() -> None:
        raise KeyboardInterrupt

    asyncio.get_running_loop().call_soon(call)


def stop_loop(job: Job) -> None:
    asyncio.get_running_loop().stop()


@pytest.mark.parametrize("disturb", [exit_process, interrupt, stop_loop])
def test_what_ends_a_loop_does_not_end_the_loop_of_the_async_handlers(
    make: Make, pointsman_client: Client, disturb: Callable[[Job], None]
) -> None:
    worker = make()

    @worker.job("disturbing")
    async def disturbing(job: Job) -> str:
        disturb(job)
        await asyncio.sleep(0)
        return "disturbed"

    @worker.job("t")
    async def handle(job: Job) -> str:
        return "alive"

    worker.start()

    assert pointsman_client.run("disturbing", wait_timeout=WAIT_S) == "disturbed"
    assert pointsman_client.run("t", wait_timeout=WAIT_S) == "alive"


def test_an_error_outside_of_the_handler_costs_one_attempt_and_no_thread(
    make: Make, pointsman_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = [RuntimeError("a fault of the worker's own")]

    def run(function: Callable[[Job], Any], job: Job) -> Verdict:
        if faults:
            raise faults.pop()
        return run_handler(function, job)

    monkeypatch.setattr("worker_sdk.hands.run", run)
    worker = make(concurrency=1)
    worker.add("t", lambda job: job.attempt)
    worker.start()

    id = pointsman_client.enqueue("t", backoff=0)

    assert pointsman_client.result(id, timeout=WAIT_S) == 2


@pytest.mark.parametrize(
    ("name", "times"), [("pointsman-hand-1", 1), ("pointsman-hand-2", 1_000_000)]
)
def test_a_thread_that_cannot_be_started_leaves_its_work_to_others_or_for_later(
    make: Make, pointsman_client: Client, monkeypatch: pytest.MonkeyPatch, name: str, times: int
) -> None:
    refused: list[str] = []
    was_refused = threading.Event()
    start = threading.Thread.start

    def start_or_not(thread: threading.Thread) -> None:
        if thread.name == name and len(refused) < times:
            refused.append(name)
            was_refused.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_or_not)
    worker = make(concurrency=3)
    worker.add("t", lambda job: job.args)
    worker.start()

    first = pointsman_client.enqueue_many([JobSpec("t", n) for n in range(2)])
    assert was_refused.wait(WAIT_S)
    last = pointsman_client.enqueue("t", 2)

    results = [pointsman_client.result(id, timeout=WAIT_S) for id in (*first, last)]
    assert results == [0, 1, 2]


def test_a_thread_without_descriptors_for_its_rest_is_started_later(
    make: Make, pointsman_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = [OSError(errno.EMFILE, os.strerror(errno.EMFILE))] * 2

    def rest_or_not(descriptors: Iterable[int]) -> Rest:
        if refusals:
            raise refusals.pop()
        return Rest(descriptors)

    worker = make(concurrency=1)
    worker.add("t", lambda job: job.args)
    worker.start()
    monkeypatch.setattr("worker_sdk.hands.Rest", rest_or_not)

    assert pointsman_client.run("t", 1, wait_timeout=WAIT_S) == 1


def test_progress_is_seen_while_the_job_runs(make: Make, pointsman_client: Client) -> None:
    worker = make(concurrency=1)
    go_on = threading.Event()

    @worker.job("t")
    def handle(job: Job) -> None:
        for percent in range(0, 101, 10):
            job.progress({"percent": percent})
        go_on.wait(WAIT_S)

    worker.start()
    id = pointsman_client.enqueue("t")

    until(lambda: status(pointsman_client, id).progress == {"percent": 100}, "the last progress")
    go_on.set()
    pointsman_client.result(id, timeout=WAIT_S)


def test_no_more_jobs_of_a_type_run_than_its_limit(make: Make, pointsman_client: Client) -> None:
    worker = make(concurrency=4)
    running: list[int] = []
    most: list[int] = []

    @worker.job("limited", concurrency=1)
    def handle(job: Job) -> None:
        running.append(1)
        most.append(len(running))
        time.sleep(0.02)
        running.pop()

    worker.add("other", lambda job: time.sleep(0.02))
    worker.start()
    ids = [pointsman_client.enqueue(t) for t in ("limited", "limited", "other", "limited")]
    for id in ids:
        pointsman_client.result(id, timeout=WAIT_S)

    assert most == [1, 1, 1]


# ---- cancel --------------------------------------------------------------------------------------


def test_a_canceled_job_tells_its_handler(make: Make, pointsman_client: Client) -> None:
    worker = make(concurrency=1)
    begun = threading.Event()
    seen: list[object] = []

    @worker.job("t")
    def handle(job: Job) -> None:
        begun.set()
        seen.append(job.wait_canceled(WAIT_S))
        try:
            job.check_canceled()
        except JobCanceled as error:
            seen.append(error.reason)
            raise

    worker.start()
    id = pointsman_client.enqueue("t")
    begun.wait(WAIT_S)

    pointsman_client.cancel(id)

    until(lambda: seen == [True, "request"], "the handler has seen the cancel")
    assert status(pointsman_client, id).canceled


def test_a_handler_that_reports_after_its_cancel_goes_on_to_tidy_up(
    make: Make, pointsman_client: Client
) -> None:
    worker = make(concurrency=1)
    begun = threading.Event()
    tidied: list[bool] = []

    @worker.job("t")
    def handle(job: Job) -> None:
        begun.set()
        job.wait_canceled(WAIT_S)
        job.progress("late")
        tidied.append(job.canceled)

    worker.start()
    id = pointsman_client.enqueue("t")
    assert begun.wait(WAIT_S)

    pointsman_client.cancel(id)

    until(lambda: tidied == [True], "the handler has tidied up")
    assert status(pointsman_client, id).progress is None


def test_a_handler_that_computes_sees_the_cancel_at_once(
    make: Make, pointsman_client: Client
) -> None:
    worker = make(concurrency=1)
    began: list[float] = []
    ended: list[float] = []

    @worker.job("t")
    def handle(job: Job) -> None:
        began.append(time.monotonic())
        while not job.canceled and time.monotonic() < began[0] + WAIT_S:
            sum(range(1000))
        ended.append(time.monotonic())

    worker.start()
    id = pointsman_client.enqueue("t")
    until(lambda: bool(began), "the job runs")

    asked = time.monotonic()
    pointsman_client.cancel(id)
    until(lambda: bool(ended), "the handler has stopped")

    assert ended[0] - asked < 1.0


def hands_of(worker: Worker) -> Hands:
    assert worker._hands is not None
    return worker._hands


def test_a_worker_hears_what_comes_while_an_async_handler_waits() -> None:
    # With heartbeats so far apart that nothing else makes it look.
    with LocalBroker(heartbeat_limit="60s") as broker, Client(broker.endpoint) as client:
        worker = Worker(broker.endpoint, concurrency=4, grace=0)
        worker.add("plain", lambda job: "ran")
        is_waiting = threading.Event()

        @worker.job("waiting")
        async def wait(job: Job) -> None:
            is_waiting.set()
            await asyncio.sleep(60)

        with worker:
            client.run("plain", wait_timeout=WAIT_S)
            # Until then it would look because of that.
            until(lambda: hands_of(worker)._agent.settled, "the outcome is confirmed")
            waiting = client.enqueue("waiting")
            assert is_waiting.wait(WAIT_S)

            assert client.run("plain", wait_timeout=5) == "ran"
            client.cancel(waiting)


def test_an_async_handler_is_canceled_where_it_waits(make: Make, pointsman_client: Client) -> None:
    worker = make()
    seen: list[str] = []

    @worker.job("t")
    async def handle(job: Job) -> None:
        seen.append("begun")
        try:
            await asyncio.sleep(60)
        finally:
            seen.append("ended")

    worker.start()
    id = pointsman_client.enqueue("t")
    until(lambda: seen == ["begun"], "the job runs")

    pointsman_client.cancel(id)

    until(lambda: seen == ["begun", "ended"], "the task has ended")


def test_an_attempt_beyond_its_timeout_is_stopped(make: Make, pointsman_client: Client) -> None:
    worker = make()
    reasons: list[str | None] = []

    @worker.job("t")
    def handle(job: Job) -> None:
        job.wait_canceled(WAIT_S)
        try:
            job.check_canceled()
        except JobCanceled as error:
            reasons.append(error.reason)

    worker.start()
    id = pointsman_client.enqueue("t", timeout=0.1, max_attempts=1)

    with pytest.raises(JobFailed):
        pointsman_client.result(id, timeout=WAIT_S)
    until(lambda: reasons == ["timeout"], "the handler knows why")


# ---- leases, prefetch, end -----------------------------------------------------------------------


def test_heartbeats_go_on_while_a_handler_computes() -> None:
    with LocalBroker(heartbeat_limit=0.4) as broker, Client(broker.endpoint) as client:
        worker = Worker(broker.endpoint, concurrency=1)

        @worker.job("t")
        def handle(job: Job) -> int:
            until_ = time.monotonic() + 1.2
            while time.monotonic() < until_:
                sum(range(1000))
            return job.attempt

        with worker:
            id = client.enqueue("t")
            assert client.result(id, timeout=WAIT_S) == 1


def test_a_slow_type_is_not_hoarded(make: Make, pointsman_client: Client) -> None:
    hoarder, other = make(concurrency=1), make(concurrency=1)
    release = threading.Event()
    by: dict[str, list[str]] = {"hoarder": [], "other": []}
    hoarder.add("quick", lambda job: None)

    def handle(name: str) -> Callable[[Job], None]:
        def run(job: Job) -> None:
            by[name].append("slow")
            if name == "hoarder":
                release.wait(WAIT_S)

        return run

    hoarder.add("slow", handle("hoarder"))
    other.add("slow", handle("other"))
    hoarder.start()
    for id in pointsman_client.enqueue_many([JobSpec("quick") for _ in range(300)]):
        pointsman_client.result(id, timeout=WAIT_S)
    pointsman_client.enqueue_many([JobSpec("slow") for _ in range(20)])
    until(lambda: by["hoarder"] == ["slow"], "one of the slow jobs runs")

    other.start()

    until(lambda: len(by["other"]) == 19, "the other worker has run all others")
    release.set()


def test_stop_lets_running_jobs_end_and_hands_back_the_others(
    make: Make, pointsman_client: Client
) -> None:
    worker = make(concurrency=1)
    begun, go_on = threading.Event(), threading.Event()

    @worker.job("t")
    def handle(job: Job) -> str:
        begun.set()
        go_on.wait(WAIT_S)
        return "done"

    worker.start()
    running = pointsman_client.enqueue("t")
    begun.wait(WAIT_S)
    waiting = pointsman_client.enqueue("t")
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    go_on.set()
    stopping.join(WAIT_S)

    assert not worker.is_running
    assert pointsman_client.result(running, timeout=WAIT_S) == "done"
    assert status(pointsman_client, waiting).state == "ready"


def test_what_does_not_end_within_the_grace_time_is_handed_back_and_told(
    make: Make, pointsman_client: Client
) -> None:
    worker = make(grace=0.1)
    begun: list[str] = []
    canceled: list[str] = []

    @worker.job("thread")
    def handle(job: Job) -> None:
        begun.append("thread")
        job.wait_canceled(WAIT_S)
        canceled.append("thread")

    @worker.job("async")
    async def handle_async(job: Job) -> None:
        begun.append("async")
        try:
            await asyncio.sleep(WAIT_S)
        finally:
            canceled.append("async")

    worker.start()
    ids = [pointsman_client.enqueue(type) for type in ("thread", "async")]
    until(lambda: len(begun) == 2, "both run")

    worker.stop()

    assert sorted(canceled) == ["async", "thread"]
    assert [status(pointsman_client, id).state for id in ids] == ["ready", "ready"]


def test_a_worker_may_be_started_again_after_its_stop(make: Make, pointsman_client: Client) -> None:
    worker = make()
    worker.add("t", lambda job: "again")
    worker.start()
    worker.stop()

    worker.start()

    assert pointsman_client.result(pointsman_client.enqueue("t"), timeout=WAIT_S) == "again"


def test_run_ends_when_another_thread_stops_the_worker(make: Make) -> None:
    worker = make()
    worker.add("t", lambda job: None)
    running = threading.Thread(target=worker.run)
    running.start()
    until(lambda: worker.is_running, "the worker runs")

    worker.stop()
    running.join(WAIT_S)

    assert not running.is_alive()


def test_a_handler_cannot_stop_its_own_worker(make: Make, pointsman_client: Client) -> None:
    worker = make()
    worker.add("t", lambda job: worker.stop())
    worker.start()
    id = pointsman_client.enqueue("t", max_attempts=1)

    with pytest.raises(JobFailed, match="RuntimeError: a handler cannot stop its own worker"):
        pointsman_client.result(id, timeout=WAIT_S)


def test_stopping_without_a_broker_does_not_wait_for_one() -> None:
    worker = Worker("tcp://127.0.0.1:9", grace=30)
    worker.add("t", lambda job: None)
    worker.start()
    began = time.monotonic()

    worker.stop()

    assert time.monotonic() - began < 5


# ---- misuse --------------------------------------------------------------------------------------


def test_a_started_worker_is_of_no_use_in_a_forked_process(make: Make) -> None:
    worker = make()
    worker.add("t", lambda job: None)
    worker.start()

    worker._pid = os.getpid() + 1  # as it is in a child
    with pytest.raises(RuntimeError, match="forked"):
        worker.start()
    with pytest.raises(RuntimeError, match="forked"):
        worker.stop()
    worker._pid = os.getpid()


def test_run_raises_what_the_broker_refuses_the_worker_with(
    pointsman_broker: LocalBroker,
) -> None:
    worker = Worker(pointsman_broker.endpoint)
    worker.add("t", lambda job: None)
    object.__setattr__(worker, "channels", ("x" * 201,))  # past the SDK's own check

    with pytest.raises(PointsmanError) as refused:
        worker.run()

    assert not isinstance(refused.value, Unsupported)


def test_a_worker_shows_what_it_runs_from_where() -> None:
    worker = Worker("tcp://127.0.0.1:9", grace=0)
    assert repr(worker) == "<Worker of tcp://127.0.0.1:9 for nothing>"
    assert repr(Worker()) == "<Worker of the broker that its environment names for nothing>"

    worker.add("resize", lambda job: None)
    with worker:
        assert repr(worker) == "<Worker of tcp://127.0.0.1:9 for resize, running>"
