"""Each option of the broker's socket, by what goes wrong without it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import pytest
import zmq

from broker import LocalBroker, sockets
from broker.server import Server
from tests.crash.processes import until
from tests.hostile.zmtp import COMMAND, GREETING, RawPeer, command, header, message
from tests.wire.peer import Peer
from worker_sdk import Client, WorkerSession

MIB = 1024 * 1024
SOON_S = 10.0
PING = b'{"op":"ping","req":1}'


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The times of the handshake and of heartbeats, short enough for a test."""
    monkeypatch.setattr(sockets, "_HANDSHAKE_MS", 200)
    monkeypatch.setattr(sockets, "_PING_MS", 100)
    monkeypatch.setattr(sockets, "_PING_TIMEOUT_MS", 300)


@pytest.fixture
def broker() -> Iterator[LocalBroker]:
    with LocalBroker(max_message="1MiB") as broker:
        yield broker


def server_of(broker: LocalBroker) -> Server:
    server = broker._server
    assert server is not None
    return server


@contextlib.contextmanager
def standing_still(broker: LocalBroker) -> Iterator[None]:
    """Hold the broker's loop up, after the turn in which it is."""
    server = server_of(broker)
    with pytest.MonkeyPatch.context() as patch:
        entered: list[bool] = []
        go_on: list[bool] = []

        def wait_in_vain() -> None:
            entered.append(True)
            until(lambda: bool(go_on), "the test lets the loop go on")

        patch.setattr(server, "_await", wait_in_vain)
        server._watch.call()
        until(lambda: bool(entered), "the loop stands still")
        patch.undo()
        try:
            yield
        finally:
            go_on.append(True)


def test_maxmsgsize_cuts_off_whoever_announces_too_large_a_frame(broker: LocalBroker) -> None:
    with RawPeer(broker.endpoint).shake_hands() as honest:
        honest.send(header(2 * MIB) + b"x" * 2 * MIB)
        assert not honest.is_cut_off_within(0.2)
    with RawPeer(broker.endpoint).shake_hands() as peer:
        peer.send(header(2 * MIB + 1))

        assert peer.is_cut_off_within(SOON_S)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "said", [b"", GREETING[:10], GREETING], ids=["nothing", "half", "greeting"]
)
def test_handshake_ivl_cuts_off_whoever_does_not_come_to_the_point(said: bytes) -> None:
    with LocalBroker() as broker, RawPeer(broker.endpoint) as peer:
        peer.send(said)

        assert peer.is_cut_off_within(SOON_S)


@pytest.mark.usefixtures("quick")
def test_heartbeats_cut_off_a_peer_that_is_no_longer_there() -> None:
    with LocalBroker() as broker:
        with RawPeer(broker.endpoint).shake_hands() as there:
            began = time.monotonic()
            while time.monotonic() - began < 1.0:
                flags, body = there.receive_frame()
                assert (flags, body[:5]) == (COMMAND, b"\x04PING")
                there.send(command(b"PONG", body[7:]))
            there.send(message(PING))
            assert b"ok" in there.receive_message()
        with RawPeer(broker.endpoint).shake_hands() as gone:
            assert gone.is_cut_off_within(SOON_S)


def test_router_mandatory_finds_at_once_that_a_worker_has_gone(broker: LocalBroker) -> None:
    with Client(broker.endpoint) as client, WorkerSession(["t"], broker.endpoint) as session:
        with RawPeer(broker.endpoint).shake_hands() as peer:
            peer.send(message(b'{"op":"hello","req":1,"types":["t"],"credit":1}'))
            assert b"welcome" in peer.receive_message()
        until(lambda: client.stats()["workers"] >= 2, "both are known")

        # One of these is given to the worker that has gone, long before its lease is over.
        ids = [client.enqueue("t", number) for number in range(4)]
        for _ in ids:
            job = session.dequeue(timeout=SOON_S / 2)
            assert job is not None, "a job was sent into the void"
            job.finish()

    assert server_of(broker).faults["gone peer"] > 0


def test_no_handover_a_peer_keeps_its_place_when_another_claims_its_identity(
    broker: LocalBroker,
) -> None:
    with (
        RawPeer(broker.endpoint).shake_hands(b"mine") as owner,
        RawPeer(broker.endpoint).shake_hands(b"mine") as thief,
    ):
        thief.send(message(PING))
        owner.send(message(PING))

        assert b"ok" in owner.receive_message()
        thief.socket.settimeout(0.2)
        with pytest.raises((TimeoutError, ConnectionError)):
            thief.receive_message()


def test_rcvhwm_leaves_what_a_busy_broker_cannot_take_with_its_sender(broker: LocalBroker) -> None:
    with RawPeer(broker.endpoint, receive_buffer_bytes=4096).shake_hands() as peer:
        peer.socket.settimeout(0.5)
        one = message(b'{"op":"ping","x":"' + b"x" * 10_000 + b'"}')
        with standing_still(broker):
            sent = 0
            while sent < 4000 and peer.send(one):
                sent += 1

    # The queue's thousand, and what the kernel keeps.
    assert 1000 <= sent < 4000


def test_sndhwm_drops_what_a_peer_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_UNSENT_MOST", 1000)
    with LocalBroker(max_message="1MiB") as broker, Client(broker.endpoint) as client:
        server = server_of(broker)
        id = str(client.enqueue("t", "x" * 10_000)).encode()
        ask = message(b'{"op":"status","args":true,"ids":["' + id + b'"]}')
        with RawPeer(broker.endpoint, receive_buffer_bytes=4096).shake_hands() as peer:
            for _ in range(4000):
                peer.send(ask)
            until(lambda: server.faults["slow peer"] > 0, "answers are dropped")

            assert client.stats()["faults"]["slow peer"] > 0


def test_peer_gets_all_answers_of_one_turn_though_it_reads_them_later(broker: LocalBroker) -> None:
    with Client(broker.endpoint) as client, Peer(broker.endpoint, RCVHWM=1) as peer:
        ids = [str(client.enqueue("t")) for _ in range(20)]
        for number in range(3000):
            peer.send({"op": "wait", "req": number, "ids": ids})
        until(lambda: client.stats()["waits"] == 3000, "all wait")

        client.cancel(ids)

        assert sorted(peer.receive()["req"] for _ in range(3000)) == list(range(3000))


@pytest.mark.parametrize(
    ("option", "wanted"),
    [
        (zmq.ROUTER_HANDOVER, 0),
        (zmq.ROUTER_MANDATORY, 1),
        (zmq.MAXMSGSIZE, 2 * MIB),
        (zmq.SNDHWM, 100_000),
        (zmq.RCVHWM, 1000),
        (zmq.HANDSHAKE_IVL, 10_000),
        (zmq.HEARTBEAT_IVL, 10_000),
        (zmq.HEARTBEAT_TIMEOUT, 15_000),
        (zmq.BACKLOG, 1024),
    ],
)
def test_options_are_set_to_what_is_documented(
    option: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: dict[int, int] = {}
    read: Callable[[zmq.Socket[bytes], int, int], None] = zmq.Socket.set

    def note(socket: zmq.Socket[bytes], each: int, value: int) -> None:
        values[int(each)] = value
        read(socket, each, value)

    monkeypatch.setattr(zmq.Socket, "set", note)
    with LocalBroker(max_message="1MiB"):
        assert values.get(int(option), 0) == wanted
