"""pytest fixtures that run a real broker for the tests of those who use Pointsman.

In a ``conftest.py``: ``pytest_plugins = ["worker_sdk.testing"]``. Each test that asks for one of
them gets a broker of its own, in this process, with nothing in it.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from worker_sdk.aio import AsyncClient
from worker_sdk.client import Client
from worker_sdk.keys import BROKER_KEY_VARIABLE, KEY_VARIABLE

if TYPE_CHECKING:
    from broker import LocalBroker


@pytest.fixture
def pointsman_broker(monkeypatch: pytest.MonkeyPatch) -> "Iterator[LocalBroker]":
    """A broker; clients and workers made during the test find it by themselves."""
    from broker import LocalBroker

    with LocalBroker() as broker:
        monkeypatch.setenv("POINTSMAN_BROKER", broker.endpoint)
        for variable in (KEY_VARIABLE, BROKER_KEY_VARIABLE):  # this broker has no keys
            monkeypatch.delenv(variable, raising=False)
        yield broker


@pytest.fixture
def pointsman_client(pointsman_broker: "LocalBroker") -> Iterator[Client]:
    """A Client of ``pointsman_broker``."""
    with Client(pointsman_broker.endpoint) as client:
        yield client


@pytest.fixture
def pointsman_async_client(pointsman_broker: "LocalBroker") -> Iterator[AsyncClient]:
    """An AsyncClient of ``pointsman_broker``, for the event loop that first uses it."""
    client = AsyncClient(pointsman_broker.endpoint)
    yield client
    client.close_now()
