"""A broker in a process of its own, under attack, and somebody who means well."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from tests.crash.processes import Broker
from tests.hostile.zmtp import RawPeer
from worker_sdk import Client

SERVED_S = 5.0
"""How long an innocent peer may wait for an answer during an attack: far above what is measured."""


class Besieged(Broker):
    """A daemon, and what it takes of the machine."""

    def __init__(self, folder: Path, *flags: str, shell_limit: str = "") -> None:
        super().__init__(folder, "--heartbeat-limit", "10s", *flags, shell_limit=shell_limit)
        self.store = "memory"

    def memory_bytes(self) -> int:
        """How much memory the process has."""
        statm = Path(f"/proc/{self.process.pid}/statm").read_text()
        return int(statm.split()[1]) * 4096

    def serves(self, client: Client) -> float:
        """See that a request is answered; give how long that took."""
        began = time.monotonic()
        client.ping()
        took_s = time.monotonic() - began
        assert took_s < SERVED_S
        assert self.process.is_alive, self.log.read_text()
        return took_s

    def peer(self, *, receive_buffer_bytes: int | None = None) -> RawPeer:
        """A peer that has shaken hands."""
        return RawPeer(self.endpoint, receive_buffer_bytes=receive_buffer_bytes).shake_hands()


@contextlib.contextmanager
def besieged(folder: Path, *flags: str, shell_limit: str = "") -> Iterator[Besieged]:
    """A running broker."""
    broker = Besieged(folder, *flags, shell_limit=shell_limit)
    try:
        broker.start()
        yield broker
    finally:
        broker.kill()
