"""Fixtures for tests of the protocol over real sockets."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from broker.local import LocalBroker
from tests.wire.peer import Peer

Connect = Callable[..., Peer]


@pytest.fixture
def broker() -> Iterator[LocalBroker]:
    """A broker on a port of its own, with a store in memory."""
    with LocalBroker(max_message=1_000_000) as broker:
        yield broker


@pytest.fixture
def connect(broker: LocalBroker) -> Iterator[Connect]:
    """Makes peers: of the test's broker, or of the one at a given endpoint."""
    with ExitStack() as peers:

        def connect(endpoint: str | None = None, **more: int) -> Peer:
            return peers.enter_context(Peer(endpoint or broker.endpoint, **more))

        yield connect


@pytest.fixture
def client(connect: Connect) -> Peer:
    return connect()


@pytest.fixture
def worker(connect: Connect) -> Peer:
    """A connection that is about to say hello."""
    return connect()
