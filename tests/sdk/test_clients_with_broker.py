"""Both clients against a real broker, and the smallest possible worker."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
import zmq

from broker import LocalBroker
from worker_sdk import (
    AsyncClient,
    Client,
    Dependency,
    InvalidRequest,
    JobCanceled,
    JobConflict,
    JobFailed,
    JobNotExist,
    JobSpec,
    JobStatus,
    WaitTimeout,
)
from worker_sdk.encoding import pack, unpack_worker_event
from worker_sdk.ids import new_uuid
from worker_sdk.messages import Fail, Failure, Finish, Hello, Jobs, Message, Outcome

pytest_plugins = ["worker_sdk.testing"]

RunWorker = Callable[..., None]


@pytest.fixture
def run_worker(pointsman_client: Client) -> Iterator[RunWorker]:
    """Starts a worker of a type: it gives back its jobs' args, or fails with the args as error."""
    over = threading.Event()
    threads: list[threading.Thread] = []

    def work(type: str, fails: bool) -> None:
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.linger = 0
            socket.rcvtimeo = 20
            socket.connect(pointsman_client.endpoint)
            socket.send_multipart(pack(Hello(types=(type,), credit=100)))
            while not over.is_set():
                try:
                    event = unpack_worker_event(socket.recv_multipart())
                except zmq.Again:
                    continue
                if isinstance(event, Jobs):
                    socket.send_multipart(pack(outcome_of(event, fails)))

    def outcome_of(event: Jobs, fails: bool) -> Message:
        if fails:
            errors = (
                Failure(j.id, j.attempt, msgspec.json.decode(j.args), False) for j in event.jobs
            )
            return Fail(jobs=tuple(errors))
        return Finish(jobs=tuple(Outcome(j.id, j.attempt, j.args) for j in event.jobs))

    def start(type: str = "echo", *, fails: bool = False) -> None:
        threads.append(threading.Thread(target=work, args=(type, fails), daemon=True))
        threads[-1].start()

    yield start
    over.set()
    for thread in threads:
        thread.join()


def test_job_of_a_new_client_is_ready(pointsman_client: Client) -> None:
    id = pointsman_client.enqueue("resize", {"w": 80}, priority=5, channel="tenant")

    status = pointsman_client.status(id, args=True)

    assert (status.id, status.type, status.state) == (id, "resize", "ready")
    assert (status.args, status.priority, status.channel) == ({"w": 80}, 5, "tenant")
    assert abs(datetime.now(UTC) - status.queued) < timedelta(minutes=1)
    assert (status.started, status.finished, status.result) == (None, None, None)


def test_same_enqueue_again_is_the_same_job_and_another_is_a_conflict(
    pointsman_client: Client,
) -> None:
    id = pointsman_client.enqueue("a", 1)

    assert pointsman_client.enqueue("a", 1, id=id) == id
    with pytest.raises(JobConflict) as caught:
        pointsman_client.enqueue("a", 2, id=id)
    assert caught.value.ids == (id,)


def test_dependency_that_does_not_exist_is_named(pointsman_client: Client) -> None:
    missing = new_uuid()

    with pytest.raises(JobNotExist, match=str(missing)):
        pointsman_client.enqueue("a", dependencies=[missing])
    with pytest.raises(JobNotExist) as caught:
        pointsman_client.status([missing])
    assert caught.value.ids == (missing,)


@pytest.mark.parametrize("options", [{"priority": "high"}, {"delay": -1}, {"max_attempts": 0}])
def test_wrong_option_is_refused(pointsman_client: Client, options: Any) -> None:
    with pytest.raises(InvalidRequest):
        pointsman_client.enqueue("a", **options)


@pytest.mark.parametrize("type", ["", "x" * 201])
def test_wrong_type_name_is_refused(pointsman_client: Client, type: str) -> None:
    with pytest.raises(InvalidRequest):
        pointsman_client.enqueue(type)


def test_cancel_ends_a_job_and_its_dependents(pointsman_client: Client) -> None:
    a = pointsman_client.enqueue("a")
    b = pointsman_client.enqueue("b", dependencies=[a, str(a)])

    assert pointsman_client.status(b).dependencies == (a,)
    assert pointsman_client.status(a).dependents == (b,)
    assert pointsman_client.cancel(a) is True
    assert pointsman_client.cancel(a) is False
    with pytest.raises(JobCanceled) as caught:
        pointsman_client.result(b)
    assert (caught.value.reason, caught.value.culprit) == ("dependency", a)
    assert pointsman_client.retry(a)[0] == a
    assert pointsman_client.status(a).state == "ready"


def test_graph_in_any_order_runs_to_its_end(
    pointsman_client: Client, run_worker: RunWorker
) -> None:
    run_worker()
    jobs = [JobSpec("echo", 0)]
    for n in range(1, 50):
        jobs.append(JobSpec("echo", n, dependencies=jobs[max(0, n - 3) : n]))

    ids = pointsman_client.enqueue_many(reversed(jobs))

    statuses = pointsman_client.wait(ids, timeout=20)
    assert [status.result for status in statuses] == list(range(49, -1, -1))
    assert all(status.is_ended and status.attempt == 1 for status in statuses)


def test_graph_with_a_bad_job_is_not_enqueued_at_all(pointsman_client: Client) -> None:
    good = JobSpec("a")

    with pytest.raises(JobNotExist):
        pointsman_client.enqueue_many([good, JobSpec("b", dependencies=[new_uuid()])])

    with pytest.raises(JobNotExist):
        pointsman_client.status(good.id)


def test_result_of_run_comes_back(pointsman_client: Client, run_worker: RunWorker) -> None:
    run_worker()

    args = {"text": "\u0000 \U0001f686", "n": 2**60}
    assert pointsman_client.run("echo", args, wait_timeout=20) == args
    assert pointsman_client.run("echo", wait_timeout=timedelta(seconds=20)) is None


def test_failure_comes_back_and_clean_up_runs(
    pointsman_client: Client, run_worker: RunWorker
) -> None:
    run_worker()
    run_worker("faulty", fails=True)

    a = pointsman_client.enqueue("faulty", "no space left")
    clean_up = pointsman_client.enqueue("echo", 1, dependencies=[Dependency(a, "ended")])

    with pytest.raises(JobFailed, match="no space left"):
        pointsman_client.result(a, timeout=20)
    assert pointsman_client.result(clean_up, timeout=20) == 1


def test_wait_ends_with_the_time(pointsman_client: Client) -> None:
    id = pointsman_client.enqueue("nobody-does-this")

    with pytest.raises(WaitTimeout) as caught:
        pointsman_client.wait(id, timeout=0.05)
    assert caught.value.ids == (id,)


def test_delayed_job_is_scheduled(pointsman_client: Client) -> None:
    status = pointsman_client.status(pointsman_client.enqueue("a", delay=timedelta(hours=1)))

    assert status.state == "scheduled"
    assert status.due is not None
    assert abs(status.due - status.queued - timedelta(hours=1)) < timedelta(seconds=1)


def test_pages_list_each_job_once(pointsman_client: Client) -> None:
    ids = set(pointsman_client.enqueue_many({"type": "a"} for _ in range(25)))
    pointsman_client.enqueue("b")

    page = pointsman_client.list(type="a", limit=10)
    listed = [status.id for status in pointsman_client.iter_jobs(type="a", page_size=7)]

    assert len(page) == 10
    assert page.after is not None
    assert sorted(listed) == sorted(ids)


def test_deleted_job_is_forgotten(pointsman_client: Client) -> None:
    id = pointsman_client.enqueue("a")
    with pytest.raises(JobConflict):
        pointsman_client.delete(id)
    pointsman_client.cancel(id)

    assert pointsman_client.delete(id) == [id]
    with pytest.raises(JobNotExist):
        pointsman_client.status(id)


def test_ping_and_stats_answer(pointsman_client: Client) -> None:
    assert pointsman_client.ping()
    assert isinstance(pointsman_client.stats(), dict)


def test_thousands_of_asynchronous_calls_find_their_results(
    pointsman_async_client: AsyncClient, run_worker: RunWorker
) -> None:
    run_worker()

    async def main() -> list[Any]:
        client = pointsman_async_client
        ids = await asyncio.gather(*(client.enqueue("echo", n) for n in range(3000)))
        statuses = await client.wait(ids, timeout=30)
        ran = await asyncio.gather(*(client.run("echo", n, wait_timeout=30) for n in range(300)))
        return [status.result for status in statuses] + ran

    assert asyncio.run(main()) == [*range(3000), *range(300)]


def test_asynchronous_client_does_all_that_the_other_does(
    pointsman_async_client: AsyncClient,
) -> None:
    async def main() -> None:
        client = pointsman_async_client
        a, b = await client.enqueue_many([JobSpec("a"), {"type": "b"}])
        assert (await client.status(a)).state == "ready"
        assert await client.cancel(a) is True
        assert await client.cancel([a, b]) == [b]
        assert [status.id async for status in client.iter_jobs(type="a")] == [a]
        assert await client.retry([a]) == [a]
        with pytest.raises(JobCanceled):
            await client.result(b)
        assert await client.delete(b) == [b]
        with pytest.raises(JobNotExist):
            await client.wait([a, b])
        with pytest.raises(WaitTimeout):
            await client.wait(a, timeout=0.05)
        assert await client.ping()
        assert await client.stats()

    asyncio.run(main())


def test_jobs_too_large_for_one_answer_are_asked_for_in_pieces() -> None:
    with LocalBroker(max_message=65_536) as broker, Client(broker.endpoint) as client:
        large = "x" * 30_000
        ids = [client.enqueue("a", large) for _ in range(20)]

        async def ask() -> list[JobStatus]:
            async with AsyncClient(broker.endpoint) as client:
                return await client.status(ids, args=True)

        for statuses in (client.status(ids, args=True), asyncio.run(ask())):
            assert [status.id for status in statuses] == ids
            assert all(status.args == large for status in statuses)
