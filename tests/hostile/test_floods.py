"""Whatever one peer does, the broker's memory stays bounded and others are served.

Sizes are small where size is not the point; ``--max-queued`` is set low, so that an attack that
would take gigabytes by default is over in a second.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.crash.processes import until
from tests.hostile.stage import Besieged, besieged
from tests.hostile.zmtp import GREETING, RawPeer, command, frame, header, message, ready
from worker_sdk import Client, WorkerSession

MIB = 1024 * 1024
CROWD = 5_000
QUEUED_MIB = 32
"""The bound on queued messages in these tests."""
SWING_MIB = 256
"""What a fast sender may get in over the bound between two looks, with a good margin."""

linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is looked at on Linux alone")
pytestmark = [pytest.mark.timeout(120), linux]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Besieged]:
    with besieged(tmp_path, "--max-queued", f"{QUEUED_MIB}MiB") as broker:
        yield broker


@pytest.fixture
def client(broker: Besieged) -> Iterator[Client]:
    """Somebody who means well, and is connected already."""
    with Client(broker.endpoint, timeout=20) as client:
        client.ping()
        yield client


def flood(
    broker: Besieged, client: Client, send: Callable[[], bool], *, most_mib: int
) -> tuple[bool, float]:
    """Send again and again, up to so much; whether that was stopped, and the most MiB it took."""
    before = broker.memory_bytes()
    peak = 0
    sent_mib = 0.0
    looked = 0.0
    stopped = False
    while sent_mib < most_mib and not stopped:
        stopped = not send()
        sent_mib += 1
        if time.monotonic() - looked > 0.05:
            looked = time.monotonic()
            peak = max(peak, broker.memory_bytes() - before)
            broker.serves(client)
    return stopped, max(peak, broker.memory_bytes() - before) / MIB


def impatient(peer: RawPeer) -> RawPeer:
    """A peer that takes a stop of the flow for the end."""
    peer.socket.settimeout(1.5)
    return peer


# ---- what libzmq would hold for ever -------------------------------------------------------------


@pytest.mark.parametrize("frame_bytes", [0, 100, 65_536])
def test_message_that_never_ends_is_cut_off(
    broker: Besieged, client: Client, frame_bytes: int
) -> None:
    one = frame(b"x" * frame_bytes, more=True)
    mib_of_them = one * (MIB // len(one))

    with broker.peer() as peer:
        impatient(peer)
        stopped, took_mib = flood(broker, client, lambda: peer.send(mib_of_them), most_mib=1000)

    assert stopped
    assert took_mib < QUEUED_MIB + SWING_MIB
    until(lambda: "cut off" in broker.log.read_text(), "the log says so")  # right after it did it


def test_many_messages_that_never_end_are_cut_off_together(
    broker: Besieged, client: Client
) -> None:
    small = frame(b"", more=True) * 8192  # 16 KiB on the wire, 512 KiB in memory
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(impatient(broker.peer())) for _ in range(100)]
        before = broker.memory_bytes()
        for _ in range(16):
            for peer in peers:
                peer.send(small)
            broker.serves(client)

        until(lambda: "cut off" in broker.log.read_text(), "somebody is cut off")
        until(
            lambda: broker.memory_bytes() - before < (QUEUED_MIB + SWING_MIB) * MIB,
            "memory is given back",
        )


def test_large_messages_that_come_faster_than_they_are_taken_are_cut_off(
    broker: Besieged, client: Client
) -> None:
    large = message(b'{"op":"ping","x":"' + b"x" * (15 * MIB) + b'"}')

    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(impatient(broker.peer())) for _ in range(4)]

        def send() -> bool:
            return sum(peer.send(large) for peer in peers) == len(peers)

        _, took_mib = flood(broker, client, send, most_mib=20)

    assert took_mib < QUEUED_MIB + SWING_MIB


def test_answers_that_nobody_reads_are_dropped(broker: Besieged, client: Client) -> None:
    id = str(client.enqueue("t", "x" * (8 * MIB))).encode()
    ask = message(b'{"op":"status","args":true,"ids":["' + id + b'"]}')
    before = broker.memory_bytes()
    peak = 0

    with broker.peer(receive_buffer_bytes=4096) as peer:
        for _ in range(100):  # for 800 MiB
            peer.send(ask)
        deadline = time.monotonic() + 20
        while "cut off" not in broker.log.read_text() and time.monotonic() < deadline:
            broker.serves(client)
            peak = max(peak, broker.memory_bytes() - before)

    assert "cut off" in broker.log.read_text()
    assert peak / MIB < QUEUED_MIB + 64  # what is answered in a turn, as text and as messages


def test_slow_but_honest_sender_and_reader_are_left_alone(broker: Besieged) -> None:
    text = "x" * (4 * MIB)
    with broker.peer(receive_buffer_bytes=4096) as slow, Client(broker.endpoint) as client:
        enqueue = b'{"op":"enqueue","req":1,"jobs":[{"id":"%s","type":"t","args":"%s"}]}'
        id = b"0198c2f0-8a00-7000-8000-00000000000a"
        whole = message(enqueue % (id, text.encode()))
        for start in range(0, len(whole), 256 * 1024):
            slow.send(whole[start : start + 256 * 1024])
            time.sleep(0.05)
            client.enqueue("other", text)  # memory grows meanwhile, by right
        assert b'"ok"' in slow.receive_message()
        slow.send(message(b'{"op":"status","args":true,"ids":["' + id + b'"]}'))
        time.sleep(1)

        assert len(slow.receive_message()) > 4 * MIB
    assert "cut off" not in broker.log.read_text()


# ---- crowds --------------------------------------------------------------------------------------


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Descriptors enough for a crowd, here and in what is started from here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CROWD + 200
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"{hard} descriptors are allowed here, {wanted} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
def test_five_thousand_connections_are_served(tmp_path: Path) -> None:
    # As most systems have it; the broker raises it by itself.
    with besieged(tmp_path, shell_limit="ulimit -S -n 1024") as broker:
        before = broker.memory_bytes()
        with Client(broker.endpoint, timeout=20) as client, contextlib.ExitStack() as stack:
            crowd = [stack.enter_context(RawPeer(broker.endpoint)) for _ in range(CROWD)]
            for peer in crowd:
                peer.send(GREETING + ready())
            for peer in crowd:
                peer.skip_greeting()
                peer.send(message(b'{"op":"hello","types":["t"]}'))
            for peer in crowd:
                assert b"welcome" in peer.receive_message()

            assert client.stats()["workers"] == CROWD
            broker.serves(client)
            took = broker.memory_bytes() - before
        with Client(broker.endpoint, timeout=20) as client:
            broker.serves(client)

    assert took < CROWD * 64 * 1024


def test_storm_of_connections_that_come_and_go_leaves_nothing_behind(
    broker: Besieged, client: Client
) -> None:
    def storm(connections: int) -> None:
        for number in range(connections):
            with broker.peer() as peer:
                peer.send(message(b'{"op":"hello","types":["t"]}'))
            if number % 250 == 0:
                broker.serves(client)

    storm(1000)
    before = broker.memory_bytes()
    storm(3000)

    broker.serves(client)
    assert broker.memory_bytes() - before < 8 * MIB


def test_worker_and_client_work_on_during_a_storm(broker: Besieged, client: Client) -> None:
    with WorkerSession(["t"], broker.endpoint) as session:
        for number in range(20):
            for _ in range(50):
                with RawPeer(broker.endpoint) as peer:
                    peer.send(GREETING[: number * 3])
            id = client.enqueue("t", number)
            job = session.dequeue(timeout=20)
            assert job is not None
            job.finish(number)
            assert client.result(id, timeout=20) == number


# ---- nonsense ------------------------------------------------------------------------------------


def test_garbage_on_the_port_is_dropped(broker: Besieged, client: Client) -> None:
    before = broker.memory_bytes()
    pieces = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500,
        b"\xff" * 4096,
        GREETING[:20],
        GREETING + b"\x04\xff\x00",
        GREETING + ready(b"NONSENSE"),
        GREETING + ready(b"ROUTER"),
        GREETING + ready() + frame(b"before the handshake is over"),
        GREETING.replace(b"NULL", b"XXXX") + ready(),
    ]
    after_the_handshake = [
        b"\x07\xff" + b"\xff" * 8,
        b"\x02" + (2**63).to_bytes(8, "big"),
        frame(b"only one"),
        frame(b""),
        frame(b"a", more=True) * 20 + frame(b""),
        command(b"PING", b"\0"),
        command(b"NONSENSE", b"x" * 100),
        command(b"", b""),
    ]
    for _ in range(20):
        for piece in (*pieces, os.urandom(300)):
            with RawPeer(broker.endpoint) as peer:
                peer.send(piece)
        for piece in (*after_the_handshake, os.urandom(300)):
            with broker.peer() as peer:
                peer.send(piece)
        broker.serves(client)

    assert broker.memory_bytes() - before < 16 * MIB
    assert "fault" not in broker.log.read_text()


def test_frame_that_is_announced_and_never_sent_takes_no_memory(
    broker: Besieged, client: Client
) -> None:
    before = broker.memory_bytes()
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            peer = stack.enter_context(broker.peer())
            peer.send(header(30 * MIB) + b"x" * 1000)  # within what a frame may have
        broker.serves(client)

        assert broker.memory_bytes() - before < 32 * MIB


def test_broker_without_descriptors_serves_those_it_has(tmp_path: Path) -> None:
    with besieged(tmp_path, shell_limit="ulimit -n 100") as broker:
        with Client(broker.endpoint, timeout=20) as client, contextlib.ExitStack() as stack:
            client.ping()
            for _ in range(300):
                stack.enter_context(socket.create_connection(RawPeer.place(broker.endpoint)))
            for _ in range(20):
                broker.serves(client)
        with Client(broker.endpoint, timeout=20) as client:
            broker.serves(client)
