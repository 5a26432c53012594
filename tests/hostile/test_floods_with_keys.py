"""The memory defence on encrypted connections: a key that is let in may still do harm."""

import sys
import time
from pathlib import Path

import pytest
import zmq

from tests.hostile.stage import besieged
from tests.security.keyed import House
from worker_sdk import Client
from worker_sdk.encoding import pack
from worker_sdk.messages import Status

MIB = 1024 * 1024
QUEUED_MIB = 32

linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is looked at on Linux alone")
pytestmark = [pytest.mark.timeout(120), linux]


def test_answers_that_a_known_key_does_not_read_are_dropped(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    folder.mkdir()
    house = House(folder)
    good, bad = house.key("good", "enqueue", "read"), house.key("bad", "read")
    keys = "--key", str(folder / "broker.key"), "--policy", str(house.policy)
    with (
        besieged(tmp_path, "--max-queued", f"{QUEUED_MIB}MiB", *keys) as broker,
        Client(broker.endpoint, 20, key=good, broker_key=house.broker_key) as client,
        zmq.Context() as context,
        context.socket(zmq.DEALER) as greedy,
    ):
        id = str(client.enqueue("t", "x" * (8 * MIB)))
        before = broker.memory_bytes()
        greedy.set(zmq.RCVHWM, 1)
        greedy.set(zmq.RCVBUF, 4096)
        greedy.set(zmq.LINGER, 0)
        house.keys(bad.stem).put_on(greedy)
        greedy.connect(broker.endpoint)
        for _ in range(100):  # for 800 MiB
            greedy.send_multipart(pack(Status(ids=(id,), args=True)))

        peak = 0
        deadline = time.monotonic() + 20
        while "cut off" not in broker.log.read_text() and time.monotonic() < deadline:
            broker.serves(client)
            peak = max(peak, broker.memory_bytes() - before)

        assert "cut off" in broker.log.read_text()
        assert peak / MIB < QUEUED_MIB + 96  # what is answered in a turn, plain and encrypted
