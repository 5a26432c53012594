"""beanstalkd, over bare sockets with commands sent in bursts: faster than its Python libraries."""

import re
import shutil
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

NAME = "beanstalkd"
DIFFERS = (
    "keeps no results: done means deleted; in the latency rows the worker puts its answer into a "
    "second tube. In memory nothing survives a restart; durable (-b -f 0) it syncs each command "
    "on its own. No dependencies."
)
BODY = b'{"type":"noop","args":"' + b"x" * 100 + b'"}'
PUT = b"put 0 0 600 %d\r\n%b\r\n" % (len(BODY), BODY)
BURST = 200
"""Commands in one write, and in the server at a time."""


def version() -> str | None:
    """The installed version."""
    if shutil.which("beanstalkd") is None:
        return None
    said = subprocess.run(["beanstalkd", "-v"], capture_output=True, text=True, check=True)
    return said.stdout.split()[-1]


def measure(setting: Setting) -> Iterator[Figure]:
    """Rates and round trips, in memory and durable."""
    sizes = setting.sizes
    here = "scripts.bench.peers.beanstalkd"
    for store, options, jobs in (
        ("memory", [], sizes.single_jobs),
        ("durable", ["-f", "0"], sizes.slow_jobs),
    ):

        def command(port: int, folder: Path, options: list[str] = options) -> list[str]:
            log = ["-b", str(folder), *options] if options else []
            return ["beanstalkd", "-l", "127.0.0.1", "-p", str(port), *log]

        with ExitStack() as stack:
            port = stack.enter_context(server(setting.folder, command))
            stack.enter_context(start(f"{here}:work", setting.folder, port=port))
            rate = run(f"{here}:put_all", setting.folder, port=port, jobs=jobs)
            what = f"pipelined, worker asks for {BURST} jobs in one write"
            yield rows.rate(f"{NAME} {store}", what, rate)
        with ExitStack() as stack:
            port = stack.enter_context(server(setting.folder, command))
            stack.enter_context(start(f"{here}:answer", setting.folder, port=port))
            times = run(f"{here}:ask", setting.folder, port=port, trips=sizes.trips)
            yield from rows.round_trips(f"{NAME} {store}", times)


# ---- the processes ---------------------------------------------------------------------------


def put_all(say: Say, port: int, jobs: int) -> None:
    """Put jobs in bursts; the rate until all are deleted."""
    stream = Stream(port)
    began = time.perf_counter()
    for first in range(0, jobs, BURST):
        count = min(BURST, jobs - first)
        stream.send(PUT * count)
        for _ in range(count):
            stream.line()
    while True:
        stream.send(b"stats-tube default\r\n")
        size = int(stream.line().split()[1])
        stats = stream.take(size + 2)
        deleted = re.search(rb"cmd-delete: (\d+)", stats)
        if deleted and int(deleted[1]) >= jobs:
            break
        time.sleep(0.001)
    say(jobs / (time.perf_counter() - began))


def work(say: Say, port: int) -> None:
    """Reserve and delete in bursts, until killed: as many at a time as there are."""
    stream = Stream(port)
    ask_for_one, ask_for_more = b"reserve\r\n", b"reserve-with-timeout 0\r\n" * (BURST - 1)
    deleted = b""
    while True:
        # The first one is waited for; what else is there by then goes with it.
        stream.send(deleted + ask_for_one + ask_for_more)
        ids = []
        for _ in range(BURST):
            id = _reserved(stream)
            if id is not None:
                ids.append(id)
        deleted = b"".join([b"delete %b\r\n" % id for id in ids])


def _reserved(stream: Stream) -> bytes | None:
    """The id of the next job; None if there is none at present."""
    while True:
        words = stream.line().split()
        if words[0] == b"RESERVED":
            stream.take(int(words[2]) + 2)
            return words[1]
        if words[0] == b"TIMED_OUT":
            return None


def ask(say: Say, port: int, trips: int) -> None:
    """Put a job, wait for the answer in the tube of answers; times of the round trips."""
    stream = Stream(port)
    stream.send(b"use jobs\r\nwatch answers\r\nignore default\r\n")
    for _ in range(3):
        stream.line()
    deleted = b""

    def trip() -> None:
        nonlocal deleted
        stream.send(deleted + PUT + b"reserve\r\n")
        deleted = b"delete %d\r\n" % int(_reserved(stream) or 0)

    say(timed(trip, trips))


def answer(say: Say, port: int) -> None:
    """Reserve jobs, put an answer for each and delete it, until killed."""
    stream = Stream(port)
    stream.send(b"use answers\r\nwatch jobs\r\nignore default\r\nreserve\r\n")
    while True:
        id = int(_reserved(stream) or 0)
        stream.send(b"put 0 0 600 2\r\nok\r\ndelete %d\r\nreserve\r\n" % id)
