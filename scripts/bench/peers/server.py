"""The peers' own servers as child processes, on a port that the system chooses."""

import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scripts.bench.processes import Child, ChildFailed

START_S = 20.0


@contextmanager
def server(folder: Path, command: Callable[[int, Path], Sequence[str]]) -> Iterator[int]:
    """Run `command(port, its folder)` until the end of the ``with``; give its port."""
    port = free_port()
    own = Path(tempfile.mkdtemp(prefix="peer-", dir=folder))
    with Child(command(port, own), own) as process:
        deadline = time.monotonic() + START_S
        while not _answers(port):
            process.check()
            if time.monotonic() > deadline:
                raise ChildFailed(f"no answer on port {port}: {process.last_words()}")
            time.sleep(0.02)
        yield port
    shutil.rmtree(own, ignore_errors=True)


def free_port() -> int:
    """A port of the loopback interface that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
