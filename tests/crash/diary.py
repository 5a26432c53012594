"""A file that outlives whoever writes it: one line a fact, whole or not there at all."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Diary:
    """Notes facts, each in one write, so that a SIGKILL loses none that was noted."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, what: str, **more: Any) -> None:
        """Write a fact down, with the time that all processes of a machine share."""
        line = json.dumps({"at": time.monotonic_ns(), "what": what, **more})
        os.write(self._descriptor, line.encode() + b"\n")


def read_all(folder: Path) -> list[dict[str, Any]]:
    """Give all facts from the diaries in a folder, in the order of time."""
    facts = [fact for path in folder.glob("*.diary") for fact in _read(path)]
    return sorted(facts, key=lambda fact: fact["at"])


def _read(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_bytes().split(b"\n")[:-1]:
        yield json.loads(line)
