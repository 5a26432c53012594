"""Who is taken for a hoarder, by numbers alone."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest

from broker import hoarders
from broker.hoarders import Hoarders

MIB = 1024 * 1024
LIMIT = 256 * MIB
DAY_S = 86_400.0


class Part:
    """Stands for a frame that came over the descriptor 7."""

    def __init__(self, content: bytes, *, more: bool) -> None:
        self.bytes = content
        self.more = more

    def __len__(self) -> int:
        return len(self.bytes)

    def get(self, option: int) -> int:
        return 7


class Stage:
    """A `Hoarders` whose memory, connections and scissors are made up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.memory = 50 * MIB
        self.live = 0
        self.connections: list[tuple[int, int, int]] = []  # descriptor, acked, received
        self.cut: list[int] = []
        self.now = time.monotonic()
        self.hoarders = Hoarders(
            Mock(),
            ["tcp://127.0.0.1:1"],
            limit_bytes=LIMIT,
            frame_bytes=32 * MIB,
            live_bytes=lambda: self.live,
        )
        monkeypatch.setattr(hoarders, "_own_memory_bytes", lambda: self.memory)
        monkeypatch.setattr(hoarders, "_give_back_memory", lambda: None)
        # What the ROUTER gives next.
        self.frames: Iterator[Part] = iter(())
        monkeypatch.setattr(hoarders, "receive_frame", lambda *_: next(self.frames))
        monkeypatch.setattr(self.hoarders, "_hoards", self._hoards)
        monkeypatch.setattr(self.hoarders, "_cut_off", lambda each: self.cut.append(each.fd))
        self.hoarders.due = 0.0
        self.look()

    def _hoards(self, now: float) -> Any:
        for fd, acked, received in self.connections:
            yield self.hoarders._hoard(fd, acked, received, self.now)

    def heard(self, fd: int, read_bytes: int) -> None:
        """Have something read of a connection."""
        account = hoarders._Account(b"%d" % fd, fd, self.now)
        account.read_bytes = read_bytes
        self.hoarders._accounts[account.identity] = self.hoarders._by_fd[fd] = account

    def look(self) -> list[int]:
        """Have it look; give whom it cuts off."""
        self.cut.clear()
        self.now += 100
        self.hoarders.look(self.now)
        return list(self.cut)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


def test_nobody_is_looked_at_while_memory_grows_by_live_jobs_alone(stage: Stage) -> None:
    stage.connections = [(1, 0, 10_000 * MIB)]
    stage.memory += 1000 * MIB
    stage.live += 1000 * MIB

    assert stage.look() == []


def test_look_without_descriptors_is_put_off(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left() -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    stage.heard(3, 1)
    stage.connections = [(3, 0, 300 * MIB)]
    stage.memory += 351 * MIB
    with monkeypatch.context() as patch:
        patch.setattr(hoarders, "_own_memory_bytes", none_left)
        assert stage.look() == []

    assert stage.look() == [3]


def test_the_largest_go_until_the_rest_is_within_the_bound(stage: Stage) -> None:
    for fd in (1, 2, 3):
        stage.heard(fd, 1)
    stage.connections = [(1, 0, 20 * MIB), (2, 0, 31 * MIB), (3, 0, 300 * MIB)]
    stage.memory += 351 * MIB

    assert stage.look() == [3]


def test_small_frames_are_known_by_the_memory_that_they_take(stage: Stage) -> None:
    stage.connections = [(1, 0, 8 * MIB), (2, 0, 100)]
    stage.memory += 8 * 32 * MIB

    assert stage.look() == [1]


def test_what_suspects_may_have_taken_is_not_forgotten(stage: Stage) -> None:
    """A slow one is found too: its share is never taken for the broker's own."""
    received = 0
    for _ in range(20):
        received += MIB
        stage.connections = [(1, 0, received)]
        stage.memory += 32 * MIB
        if stage.look():
            break

    assert stage.cut == [1]
    assert received <= 8 * MIB


def test_growth_of_the_brokers_own_is_nobodys_fault(stage: Stage) -> None:
    stage.heard(1, 1000)
    stage.connections = [(1, 0, 1000), (2, 0, 300)]
    for _ in range(50):
        stage.memory += 100 * MIB

        assert stage.look() == []


def test_heartbeats_of_a_connection_idle_for_days_are_no_hoard(stage: Stage) -> None:
    stage.heard(1, 1000)
    stage.now += 7 * DAY_S
    stage.connections = [(1, 0, 1000 + int(7 * DAY_S) * 82 // 5)]
    stage.memory += 200 * MIB

    assert stage.look() == []


def test_answers_that_are_not_taken_count(stage: Stage) -> None:
    stage.heard(1, 1000)
    stage.heard(2, 1000)
    stage.hoarders.posted(b"1", 300 * MIB)
    stage.hoarders.posted(b"2", 300 * MIB)
    stage.connections = [(1, 299 * MIB, 1000), (2, 1 * MIB, 1000)]
    stage.memory += 300 * MIB

    assert stage.look() == [2]


def test_descriptor_that_is_used_again_begins_anew(stage: Stage) -> None:
    for identity in (b"one", b"two"):
        stage.frames = iter([Part(identity, more=True), Part(b"x" * 100, more=False)])
        frames, _ = stage.hoarders.receive(0)
        assert frames == [identity, b"x" * 100]

    assert set(stage.hoarders._accounts) == {b"two"}


def test_message_of_a_million_frames_is_shown_by_a_few(stage: Stage) -> None:
    count = 1_000_000
    stage.frames = (Part(b"f", more=left > 0) for left in reversed(range(count)))

    frames, _ = stage.hoarders.receive(0)

    assert len(frames) < 20
    assert next(stage.frames, None) is None
    assert stage.hoarders._accounts[b"f"].read_bytes >= count
