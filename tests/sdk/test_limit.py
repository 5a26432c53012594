"""Brokers whose message limit is not the usual one, and clients that have to find that out."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from broker import LocalBroker
from broker.config import Config, ConfigError
from tests.sdk.scripted_broker import ScriptedBroker
from worker_sdk import (
    AsyncClient,
    Client,
    InternalError,
    InvalidRequest,
    JobNotExist,
    TooLarge,
    new_id,
)
from worker_sdk.ids import new_uuid
from worker_sdk.limit import SMALLEST_LIMIT_BYTES
from worker_sdk.messages import Ping

MIB = 1024 * 1024

SMALL, LARGE = "x" * 100, "x" * 50_000


class Waiting:
    """An AsyncClient with the methods of a Client."""

    def __init__(self, endpoint: str, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(endpoint, **options)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            return self._runner.run(getattr(self._client, name)(*args, **options))

        return call

    def __enter__(self) -> "Waiting":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close_now()
        self._runner.close()


both_clients = pytest.mark.parametrize("make", [Client, Waiting])


def answer(request: Any) -> Any:
    return {"op": "ok", "version": "1", "message_limit": MIB, "jobs": [], "ids": []}


def test_smallest_limit_is_the_smallest_that_a_broker_can_have() -> None:
    Config(max_message=SMALLEST_LIMIT_BYTES)
    with pytest.raises(ConfigError):
        Config(max_message=SMALLEST_LIMIT_BYTES - 1)


@both_clients
def test_broker_of_a_small_limit_takes_all_that_can_be_split(make: Any) -> None:
    with LocalBroker(max_message=8_000) as broker, make(broker.endpoint) as client:
        ids = client.enqueue_many({"type": "a", "args": "x" * 1000} for _ in range(50))

        assert [status.id for status in client.status(ids * 10)] == ids * 10
        assert client.cancel(ids) == ids
        assert [status.state for status in client.wait(ids)] == ["canceled"] * 50


@both_clients
def test_broker_of_a_small_limit_is_not_sent_what_it_does_not_take(make: Any) -> None:
    with LocalBroker(max_message=8_000) as broker, make(broker.endpoint) as client:
        for ask in (client.enqueue, client.run):
            with pytest.raises(TooLarge, match=r"job .* \(a\) takes .* at most 8,000 bytes"):
                ask("a", LARGE)
        with pytest.raises(TooLarge, match=r"1,000 ids .* at most 8,000 bytes: ask in parts"):
            client.cancel([new_id() for _ in range(1000)])


@both_clients
def test_broker_of_a_large_limit_is_sent_what_it_takes(make: Any) -> None:
    with LocalBroker(max_message=64 * MIB) as broker, make(broker.endpoint) as client:
        id = client.enqueue("a", "x" * (17 * MIB))

        assert client.status(id).state == "ready"


@both_clients
def test_limit_is_asked_for_once_and_only_when_it_matters(make: Any) -> None:
    with ScriptedBroker(answer) as broker, make(broker.endpoint) as client:
        client.enqueue("a", SMALL)
        assert broker.ops() == ["enqueue"]
        client.enqueue("a", LARGE)
        client.enqueue("a", LARGE)
        client.enqueue_many([{"type": "a", "args": LARGE}])

        assert broker.ops() == ["enqueue", "ping", "enqueue", "enqueue", "enqueue"]


@both_clients
def test_limit_that_is_given_is_not_asked_for(make: Any) -> None:
    with ScriptedBroker(answer) as broker, make(broker.endpoint, message_limit=60_000) as client:
        client.enqueue("a", LARGE)
        with pytest.raises(TooLarge, match="at most 60,000 bytes"):
            client.enqueue("a", LARGE * 2)

        assert broker.ops() == ["enqueue"]


@both_clients
@pytest.mark.parametrize(("before", "after"), [(MIB, 8_000), (8_000, MIB)])
def test_broker_that_comes_back_with_another_limit_is_asked_anew(
    make: Any, before: int, after: int
) -> None:
    with LocalBroker(max_message=before) as broker, make(broker.endpoint) as client:
        endpoint = broker.endpoint
        client.enqueue("a", "x" * 2000)
        broker.stop()
        with LocalBroker(max_message=after, bind=endpoint):
            client.ping()

            if after < len(LARGE):
                with pytest.raises(TooLarge, match="at most 8,000 bytes"):
                    client.enqueue("a", LARGE)
            else:
                client.enqueue("a", LARGE)


def test_jobs_that_wait_for_the_limit_keep_their_order() -> None:
    async def main(endpoint: str) -> None:
        first = new_uuid()
        async with AsyncClient(endpoint) as client:
            await asyncio.gather(
                client.enqueue("a", LARGE, id=first), client.enqueue("a", dependencies=[first])
            )

    with LocalBroker() as broker:
        asyncio.run(main(broker.endpoint))


def test_jobs_that_wait_for_the_limit_fail_with_the_question() -> None:
    def script(request: Any) -> Any:
        return {"op": "error", "code": "internal", "message": type(request).__name__}

    async def main(endpoint: str) -> None:
        async with AsyncClient(endpoint) as client:
            errors = await asyncio.gather(
                *(client.enqueue("a", LARGE) for _ in range(2)), return_exceptions=True
            )

        assert [str(error) for error in errors] == ["Ping", "Ping"]
        assert {type(error) for error in errors} == {InternalError}

    with ScriptedBroker(script) as broker:
        asyncio.run(main(broker.endpoint))


def test_job_that_comes_while_the_limit_is_asked_for_does_not_fail_with_the_question() -> None:
    later: list[asyncio.Task[Any]] = []

    async def main(endpoint: str) -> None:
        async with AsyncClient(endpoint) as client:

            def script(request: Any) -> Any:
                if isinstance(request, Ping):
                    loop.call_soon_threadsafe(come_later)
                    arrived.wait()
                    return {"op": "error", "code": "internal", "message": "no"}
                return answer(request)

            def come_later() -> None:
                later.append(loop.create_task(client.enqueue("a", SMALL)))
                loop.call_soon(arrived.set)

            scripts.append(script)
            with pytest.raises(InternalError):
                await client.enqueue("a", LARGE)
            await later[0]

    loop = asyncio.new_event_loop()
    arrived = threading.Event()
    scripts: list[Callable[[Any], Any]] = []
    with ScriptedBroker(lambda request: scripts[0](request)) as broker:
        loop.run_until_complete(main(broker.endpoint))
        loop.close()
        assert broker.ops() == ["ping", "enqueue"]


def test_limit_is_not_asked_for_again_where_jobs_can_be_split() -> None:
    def script(request: Any) -> Any:
        return {**answer(request), "message_limit": 64 * 1024}

    async def main(endpoint: str) -> None:
        async with AsyncClient(endpoint) as client:
            for _ in range(3):
                await asyncio.gather(*(client.enqueue("a", "x" * 1000) for _ in range(100)))

    with ScriptedBroker(script) as broker:
        asyncio.run(main(broker.endpoint))

        assert broker.ops().count("ping") == 1


def test_limit_is_forgotten_by_a_call_that_sees_the_connection_break() -> None:
    with LocalBroker(max_message=MIB) as broker, Client(broker.endpoint) as client:
        endpoint = broker.endpoint
        job = client.enqueue("a", "x" * 2000)
        waiting = threading.Thread(target=lambda: wait_for(client, job))
        waiting.start()
        until(lambda: client.stats()["waits"] == 1)
        assert client._pool.limit.likely_bytes() == MIB
        broker.stop()
        with LocalBroker(max_message=8_000, bind=endpoint):
            until(lambda: client._pool.limit.likely_bytes() != MIB)
            with pytest.raises(TooLarge, match="at most 8,000 bytes"):
                client.enqueue("a", LARGE)
            waiting.join()


def wait_for(client: Client, job: Any) -> None:
    with pytest.raises(JobNotExist):
        client.wait(job, timeout=20)


def until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize("limit", [0, -1, 1023, 1e6, "1MiB", True])
def test_limit_that_cannot_be_is_named(client: Any, limit: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"message_limit is at least 1024 .* not {limit!r}"):
        client(message_limit=limit)
