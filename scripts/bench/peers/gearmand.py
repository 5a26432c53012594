"""gearmand, over bare sockets with requests sent in bursts: faster than its Python libraries."""

import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from scripts.bench.figures import Figure
from scripts.bench.peers import rows
from scripts.bench.peers.server import server
from scripts.bench.peers.stream import Stream
from scripts.bench.peers.trips import timed
from scripts.bench.processes import Say, run, start
from scripts.bench.setting import Setting

NAME = "gearmand"
DIFFERS = (
    "keeps nothing: a foreground job and its result pass through memory to the client that waits "
    "for it, and a restart loses them. No dependencies."
)
WINDOW = 1000
GRABS_MOST = 64

_CAN_DO, _PRE_SLEEP, _NOOP, _SUBMIT = 1, 4, 6, 7
_GRAB, _NO_JOB, _ASSIGN, _COMPLETE = 9, 10, 11, 13


def _request(kind: int, body: bytes = b"") -> bytes:
    return b"\0REQ" + struct.pack(">II", kind, len(body)) + body


JOB = _request(_SUBMIT, b"noop\0\0" + b'{"args":"' + b"x" * 100 + b'"}')


def version() -> str | None:
    """The installed version."""
    path = shutil.which("gearmand") or shutil.which("gearmand", path="/usr/sbin")
    if path is None:
        return None
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    return (said.stdout + said.stderr).split()[1]


def measure(setting: Setting) -> Iterator[Figure]:
    """Rate and round trips of foreground jobs."""
    here = "scripts.bench.peers.gearmand"
    path = shutil.which("gearmand") or "/usr/sbin/gearmand"

    def command(port: int, folder: Path) -> list[str]:
        listen = ["--listen=127.0.0.1", f"--port={port}"]
        # Without threads of its own, which only hand messages over to each other.
        return [path, *listen, "--threads=0", f"--log-file={folder / 'log'}"]

    jobs, trips = setting.sizes.single_jobs, setting.sizes.trips
    for grabs, what in (
        (1, "pipelined, worker takes one job at a time, as its libraries do"),
        (GRABS_MOST, f"pipelined, worker asks for {GRABS_MOST} jobs in one write"),
    ):
        with ExitStack() as stack:
            port = stack.enter_context(server(setting.folder, command))
            stack.enter_context(start(f"{here}:work", setting.folder, port=port, grabs_most=grabs))
            rate = run(f"{here}:submit", setting.folder, port=port, jobs=jobs)
            yield rows.rate(NAME, what, rate)
            if grabs == 1:
                times = run(f"{here}:ask", setting.folder, port=port, trips=trips)
                yield from rows.round_trips(NAME, times)


# ---- the processes ---------------------------------------------------------------------------


def _packet(stream: Stream) -> tuple[int, bytes]:
    kind, size = struct.unpack(">II", stream.take(12)[4:])
    return kind, stream.take(size)


def _until_completed(stream: Stream) -> None:
    while _packet(stream)[0] != _COMPLETE:
        pass


def submit(say: Say, port: int, jobs: int) -> None:
    """Submit jobs, a window at a time; the rate until all results are here."""
    stream = Stream(port)
    _until_ready(stream)
    began = time.perf_counter()
    window = min(WINDOW, jobs)
    refill = max(1, window // 2)
    stream.send(JOB * window)
    sent = window
    for completed in range(1, jobs + 1):
        _until_completed(stream)
        if completed % refill == 0 and sent < jobs:
            count = min(refill, jobs - sent)
            stream.send(JOB * count)
            sent += count
    say(jobs / (time.perf_counter() - began))


def ask(say: Say, port: int, trips: int) -> None:
    """Submit one job after the other; times of the round trips."""
    stream = Stream(port)

    def trip() -> None:
        stream.send(JOB)
        _until_completed(stream)

    say(timed(trip, trips))


def _until_ready(stream: Stream) -> None:
    stream.send(JOB)
    _until_completed(stream)


def work(say: Say, port: int, grabs_most: int) -> None:
    """Take and complete jobs, until killed: as many at a time as there are, up to a bound."""
    stream = Stream(port)
    stream.send(_request(_CAN_DO, b"noop"))
    grabs = 1
    completed: list[bytes] = []
    while True:
        stream.send(b"".join(completed) + _request(_GRAB) * grabs)
        completed = []
        asked = grabs
        while asked:
            kind, body = _packet(stream)
            if kind == _ASSIGN:
                handle = body.partition(b"\0")[0]
                completed.append(_request(_COMPLETE, handle + b"\0ok"))
            asked -= kind in (_ASSIGN, _NO_JOB)
        if len(completed) == grabs:
            grabs = min(2 * grabs, grabs_most)
        elif completed:
            grabs = max(1, len(completed))
        else:
            grabs = 1
            stream.send(_request(_PRE_SLEEP))
            while _packet(stream)[0] != _NOOP:
                pass
