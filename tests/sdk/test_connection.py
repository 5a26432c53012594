"""What becomes of connections that nobody closes."""

import gc
import os
from typing import Any

import pytest

from tests.sdk.scripted_broker import ScriptedBroker, in_turn
from worker_sdk import Client

PONG = {"op": "ok", "version": "1.0"}

# What these tests are about would hang for ever.
pytestmark = pytest.mark.timeout(20)


def drop(held: list[Any]) -> None:
    held.clear()
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
