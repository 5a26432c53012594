import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from tests.sdk.scripted_broker import Script, ScriptedBroker, in_turn
from worker_sdk.aio import AsyncClient
from worker_sdk.errors import (
    BrokerUnreachable,
    ClientClosed,
    InvalidRequest,
    JobNotExist,
    PointsmanError,
    ProtocolError,
)
from worker_sdk.ids import new_uuid
from worker_sdk.messages import DEFAULT_MESSAGE_LIMIT_BYTES as LIMIT
from worker_sdk.messages import Enqueue

T = TypeVar("T")

PONG = {"op": "ok", "version": "1.0"}
OK = {"op": "ok"}
REFUSED = {"op": "error", "code": "invalid", "message": "bad job"}


def with_broker(
    script: Script, test: Callable[[AsyncClient, ScriptedBroker], Awaitable[T]], **options: Any
) -> T:
    async def main(broker: ScriptedBroker) -> T:
        async with AsyncClient(broker.endpoint, **options) as client:
            return await test(client, broker)

    with ScriptedBroker(script) as broker:
        return asyncio.run(main(broker))


def test_calls_made_in_one_turn_share_a_message() -> None:
    async def test(client: AsyncClient, broker: ScriptedBroker) -> None:
        ids = await asyncio.gather(*(client.enqueue("a", n) for n in range(500)))

        (request,) = broker.requests
        assert [job.id for job in request.jobs] == [str(id) for id in ids]

    with_broker(in_turn(OK), test, message_limit=LIMIT)


def test_call_alone_goes_alone() -> None:
    async def test(client: AsyncClient, broker: ScriptedBroker) -> None:
        for _ in range(3):
            await client.enqueue("a")

        assert [len(request.jobs) for request in broker.requests] == [1, 1, 1]

    with_broker(in_turn(OK), test)


def test_shared_messages_are_bounded() -> None:
    async def test(client: AsyncClient, broker: ScriptedBroker) -> None:
        await asyncio.gather(*(client.enqueue("a", "x" * 200_000) for _ in range(12)))
        await asyncio.gather(*(client.enqueue("a") for _ in range(2500)))

        sizes = [len(request.jobs) for request in broker.requests]
        assert sizes == [5, 5, 2, 1000, 1000, 500]

    with_broker(in_turn(OK), test, message_limit=LIMIT)


def refuse_bad(request: Any) -> Any:
    return REFUSED if any(job.type == "bad" for job in request.jobs) else OK


def test_only_the_culprit_of_a_refused_message_gets_the_error() -> None:
    async def test(client: AsyncClient, broker: ScriptedBroker) -> None:
        types = ["good", "bad", "good", "good", "bad"]
        outcomes = await asyncio.gather(
            *(client.enqueue(type) for type in types), return_exceptions=True
        )

        refused = [isinstance(outcome, InvalidRequest) for outcome in outcomes]
        assert refused == [False, True, False, False, True]
        assert outcomes[1] is not outcomes[4]
        assert len(broker.requests) == 6

    with_broker(refuse_bad, test)


def test_job_refused_for_the_sake_of_a_shared_message_gets_another_try() -> None:
    """Its dependency was in a message that was refused for another's fault."""
    known: set[str] = set()

    def script(request: Enqueue) -> Any:
        if any(job.type == "bad" for job in request.jobs):
            return REFUSED
        here = {job.id for job in request.jobs}
        missing = {str(d) for job in request.jobs for d in job.dependencies} - known - here
        if missing:
            return {"op": "error", "code": "not_exist", "message": "?", "ids": sorted(missing)}
        known.update(here)
        return OK

    async def test(client: AsyncClient, broker: ScriptedBroker) -> None:
        first = new_uuid()
        bad = asyncio.create_task(client.enqueue("bad"))
        good = asyncio.create_task(client.enqueue("good", id=first))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        dependent = await client.enqueue("good", dependencies=[first])

        assert await good == first
        assert str(dependent) in known
        with pytest.raises(InvalidRequest):
            await bad
        with pytest.raises(JobNotExist):
            await client.enqueue("good", dependencies=[new_uuid()])

    with_broker(script, test)


def test_nan_fails_its_own_call_only() -> None:
    async def test(client: AsyncClient, broker: ScriptedBroker) -> None:
        good, bad = await asyncio.gather(
            client.enqueue("a", 1), client.enqueue("a", float("nan")), return_exceptions=True
        )

        assert isinstance(bad, InvalidRequest)
        assert [job.id for job in broker.requests[0].jobs] == [str(good)]

    with_broker(in_turn(OK), test)


def test_thousands_of_requests_are_under_way_at_once() -> None:
    async def test(client: AsyncClient, broker: ScriptedBroker) -> None:
        assert await asyncio.gather(*(client.ping() for _ in range(5000))) == ["1.0"] * 5000

    with_broker(in_turn(PONG), test)


def test_answers_in_another_order_find_their_callers() -> None:
    kept: list[Any] = []

    def script(request: Any) -> Any:
        kept.append(request)
        if len(kept) < 3:
            return None
        return tuple({"op": "ok", "version": f"{k.req!r}", "req": k.req} for k in kept[::-1])

    async def test(client: AsyncClient, broker: ScriptedBroker) -> None:
        versions = await asyncio.gather(*(client.ping() for _ in range(3)))

        assert versions == [f"{request.req!r}" for request in kept]

    with_broker(script, test)


def test_lost_and_repeated_answers_are_survived() -> None:
    async def test(client: AsyncClient, broker: ScriptedBroker) -> None:
        assert await client.ping() == "1.0"
        assert await client.ping() == "1.0"
        assert await asyncio.gather(*(client.ping() for _ in range(2))) == ["1.0", "1.0"]

    with_broker(in_turn(None, (PONG, PONG, PONG), None, PONG), test, timeout=1)


def test_busy_is_answered_with_patience() -> None:
    busy = {"op": "error", "code": "busy", "message": "full"}

    async def test(client: AsyncClient, broker: ScriptedBroker) -> None:
        await asyncio.gather(client.enqueue("a"), client.enqueue("a"))

        assert [len(request.jobs) for request in broker.requests] == [2, 2, 2]

    with_broker(in_turn(busy, busy, OK), test)


def test_garbage_is_a_protocol_error_and_the_client_goes_on() -> None:
    async def test(client: AsyncClient, broker: ScriptedBroker) -> None:
        for _ in range(3):
            with pytest.raises(ProtocolError):
                await client.ping()
        assert await client.ping() == "1.0"

    with_broker(in_turn([b"PM1"], [b"?", b"?"], [b"PM1", b"{}"], PONG), test)


def test_no_broker_is_broker_unreachable_for_each_caller() -> None:
    async def main() -> None:
        async with AsyncClient("tcp://127.0.0.1:9", timeout=0.2) as client:
            errors = await asyncio.gather(
                client.enqueue("a"), client.enqueue("a"), client.ping(), return_exceptions=True
            )

        assert [type(error) for error in errors] == [BrokerUnreachable] * 3
        assert len({id(error) for error in errors}) == 3

    asyncio.run(main())


def test_close_ends_what_is_under_way() -> None:
    async def test(client: AsyncClient, broker: ScriptedBroker) -> None:
        calls = [asyncio.ensure_future(c) for c in (client.ping(), client.wait(new_uuid()))]
        calls.append(asyncio.ensure_future(client.enqueue("a")))
        await asyncio.sleep(0)
        await client.close()

        errors = await asyncio.gather(*calls, return_exceptions=True)

        assert [type(error) for error in errors] == [ClientClosed] * 3
        with pytest.raises(ClientClosed, match="make a new one"):
            await client.ping()

    with_broker(in_turn(None), test)


def test_canceled_caller_leaves_the_others_alone() -> None:
    async def test(client: AsyncClient, broker: ScriptedBroker) -> None:
        waiting = asyncio.ensure_future(client.wait(new_uuid()))
        enqueuing = asyncio.ensure_future(client.enqueue("a"))
        await asyncio.sleep(0)
        waiting.cancel()
        enqueuing.cancel()

        assert await client.ping() == "1.0"
        assert waiting.cancelled()

    with_broker(in_turn(PONG), test)


def test_client_belongs_to_one_loop() -> None:
    with ScriptedBroker(in_turn(PONG)) as broker:
        client = AsyncClient(broker.endpoint)
        assert asyncio.run(client.ping()) == "1.0"
        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(client.ping())
        client.close_now()


def test_broker_that_comes_back_is_found_and_asked_again() -> None:
    async def main() -> None:
        with ScriptedBroker(in_turn(None)) as gone:
            client = AsyncClient(gone.endpoint, timeout=30)
            lost = asyncio.ensure_future(client.ping())
            while not gone.requests:
                await asyncio.sleep(0.001)
        again = ScriptedBroker(in_turn(PONG))
        again._router.bind(gone.endpoint)
        with again:
            # Long before the request's own patience of seconds is over.
            assert await asyncio.wait_for(lost, 2) == "1.0"
            await client.close()

    asyncio.run(main())


def test_large_graph_goes_in_several_requests_at_once() -> None:
    async def test(client: AsyncClient, broker: ScriptedBroker) -> None:
        ids = await client.enqueue_many({"type": "a", "args": "x" * 1000} for _ in range(50))

        assert len(set(ids)) == 50
        assert sum(len(request.jobs) for request in broker.requests) == 50
        assert len(broker.requests) > 5

    with_broker(in_turn(OK), test, message_limit=8000)


def test_methods_are_those_of_the_synchronous_client() -> None:
    from worker_sdk.client import Client

    def public(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert public(AsyncClient) - public(Client) == {"close_now"}
    assert public(Client) - public(AsyncClient) == set()
    assert issubclass(ClientClosed, PointsmanError)
