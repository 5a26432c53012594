"""What becomes of connections that nobody closes."""

import asyncio
import errno
import gc
import os
from collections.abc import Coroutine
from typing import Any

import pytest
import zmq

from tests.sdk.scripted_broker import ScriptedBroker, in_turn
from worker_sdk import AsyncClient, Client
from worker_sdk.connection import MonitoredSocket

PONG = {"op": "ok", "version": "1.0"}

# What these tests are about would hang for ever.
pytestmark = pytest.mark.timeout(20)


def drop(held: list[Any]) -> None:
    held.clear()
    gc.collect()


def run_and_drop(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)
    gc.collect()


@pytest.mark.parametrize("in_circle", [False, True])
def test_client_that_is_dropped_closes_its_connections_with_a_warning(in_circle: bool) -> None:
    with ScriptedBroker(in_turn(PONG)) as broker:
        held: list[Any] = [Client(broker.endpoint)]
        held[0].ping()
        context = held[0]._pool._context
        if in_circle:
            held[0].itself = held[0]

        with pytest.warns(ResourceWarning, match=f"unclosed Client of {broker.endpoint}"):
            drop(held)

        assert context.closed


def test_client_that_was_closed_or_never_used_is_dropped_without_a_word() -> None:
    with ScriptedBroker(in_turn(PONG)) as broker:
        with Client(broker.endpoint) as client:
            client.ping()
        unused = Client(broker.endpoint)

        del client, unused
        gc.collect()


def test_client_that_a_forked_child_drops_stays_its_parents() -> None:
    with ScriptedBroker(in_turn(PONG)) as broker:
        held = [Client(broker.endpoint)]
        held[0].ping()
        child = os.fork()
        if child == 0:
            drop(held)
            os._exit(0)

        assert os.waitpid(child, 0)[1] == 0
        assert held[0].ping() == "1.0"
        held[0].close()


def test_connections_can_follow_each_other_at_once() -> None:
    with zmq.Context() as context:
        for _ in range(200):
            MonitoredSocket(context, zmq.REQ, "tcp://127.0.0.1:9").close()


def refuse_monitors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the system run out of descriptors after a connection's first socket."""

    def refuse(*_: object) -> None:
        raise zmq.ZMQError(errno.EMFILE)

    monkeypatch.setattr(zmq.Socket, "get_monitor_socket", refuse)


def test_client_that_could_not_connect_can_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_monitors(monkeypatch)

    with pytest.raises(zmq.ZMQError, match="Too many open files"), Client() as client:
        client.ping()


def test_asynchronous_client_that_could_not_connect_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuse_monitors(monkeypatch)

    with pytest.raises(zmq.ZMQError, match="Too many open files") as caught:
        asyncio.run(AsyncClient().ping())

    caught.value.itself = caught  # type: ignore[attr-defined]
    del caught
    gc.collect()


def test_asynchronous_client_that_outlives_its_loop_closes_its_connection_with_a_warning() -> None:
    with ScriptedBroker(in_turn(PONG)) as broker:
        held: list[Any] = [AsyncClient(broker.endpoint)]
        held[0].itself = held[0]
        asyncio.run(held[0].ping())
        context = held[0]._connection._context

        with pytest.warns(ResourceWarning, match=f"unclosed AsyncClient of {broker.endpoint}"):
            drop(held)

        assert context.closed


def test_asynchronous_client_that_is_dropped_leaves_a_loop_that_goes_on() -> None:
    async def main(broker: ScriptedBroker) -> None:
        held = [AsyncClient(broker.endpoint, timeout=0.2)]
        await held[0].ping()
        connection = held[0]._connection
        held.clear()

        while not connection._context.closed:  # not before its timer is over
            gc.collect()
            await asyncio.sleep(0.005)

    with ScriptedBroker(in_turn(PONG)) as broker:
        with pytest.warns(ResourceWarning, match="unclosed AsyncClient"):
            run_and_drop(main(broker))


def test_call_that_nobody_holds_keeps_its_client_until_it_is_answered() -> None:
    ended: list[asyncio.Task[Any]] = []

    async def main(broker: ScriptedBroker) -> None:
        client = AsyncClient(broker.endpoint, timeout=1)
        asyncio.create_task(client.enqueue("a")).add_done_callback(ended.append)
        del client

        while not ended:
            gc.collect()
            await asyncio.sleep(0.005)

        assert ended[0].result()

    with ScriptedBroker(in_turn(None, {"op": "ok"})) as broker:
        with pytest.warns(ResourceWarning, match="unclosed AsyncClient"):
            run_and_drop(main(broker))
