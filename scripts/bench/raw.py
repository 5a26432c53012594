"""The raw limits: what ZeroMQ from Python and the disk can do when nothing is done with it.

The relay is stateless: client DEALER -> ROUTER -> worker DEALER -> ROUTER -> client, opaque
frames of the size of a job with 100 bytes of args, one message a job. It blocks in its receives,
which needs no poll, and no exception to find out that nothing is there.

It comes in two forms. "raw" receives and sends with ``recv_multipart`` and ``send_multipart``, as
ZeroMQ is used from Python: this is the yardstick that ratios and bars refer to. "framewise" does
the same frame by frame, which spares those calls' own Python (about two thirds of all that a hop
costs): the true limit, that stands in the report too.
"""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zmq
from msgspec import Struct

from scripts.bench.figures import Figure
from scripts.bench.processes import Say, run, start
from scripts.bench.statistics import median, percentile

JOB = b"j" * 220
"""As long as an ``enqueue`` of one job with 100 bytes of args."""
OUTCOME = b"r" * 80
"""As long as a ``finish`` of one job."""
WINDOW = 1000
"""Messages under way when pipelined; neither 100 nor 5,000 is faster."""
WARM_UP = 200
RECORD = b"x" * 300


class Limits(Struct, frozen=True):
    """What one form of the relay did on one transport."""

    jobs_per_s: float
    p50_us: float
    p99_us: float


class RawLimits(Struct, frozen=True):
    """What both forms did, one right after the other."""

    raw: Limits
    framewise: Limits


def measure(transport: str, folder: Path, *, jobs: int, trips: int) -> RawLimits:
    """Run both forms: `jobs` pipelined, `trips` one after the other."""

    def form(multipart: bool) -> Limits:
        return _measure_form(transport, folder, multipart=multipart, jobs=jobs, trips=trips)

    return RawLimits(raw=form(True), framewise=form(False))


def figures(transport: str, found: RawLimits) -> Iterator[Figure]:
    """The limits as rows of their own."""
    for name, limits in (("raw", found.raw), ("framewise", found.framewise)):
        for case, unit, value in (
            ("pipelined", "jobs/s", limits.jobs_per_s),
            ("lock-step p50", "us", limits.p50_us),
            ("lock-step p99", "us", limits.p99_us),
        ):
            case = f"{name}, {transport}, {case}"
            yield Figure(workload="relay", case=case, unit=unit, value=value)


def _measure_form(
    transport: str, folder: Path, *, multipart: bool, jobs: int, trips: int
) -> Limits:
    endpoint = bind_to(transport, folder, "relay")
    here = "scripts.bench.raw"
    with start(f"{here}:relay", folder, endpoint=endpoint, multipart=multipart) as relay_process:
        endpoint = relay_process.hear()
        with start(f"{here}:worker", folder, endpoint=endpoint, multipart=multipart):
            relay_process.hear()
            found = run(
                f"{here}:client",
                folder,
                endpoint=endpoint,
                multipart=multipart,
                jobs=jobs,
                trips=trips,
            )
    return Limits(**found)


def bind_to(transport: str, folder: Path, name: str) -> str:
    """An endpoint to bind to, free for sure."""
    if transport == "tcp":
        return "tcp://127.0.0.1:*"
    return f"ipc://{folder / f'{name}-{time.monotonic_ns()}.sock'}"


_context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()


def _socket(kind: int) -> zmq.Socket[bytes]:
    socket = _context.socket(kind)
    # Without bounds, which would make the ROUTER drop messages.
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    return socket


# ---- the three processes ---------------------------------------------------------------------


def relay(say: Say, endpoint: str, multipart: bool) -> None:
    """Pass on what comes, until killed. The first who sends anything is the worker."""
    router = _socket(zmq.ROUTER)
    router.bind(endpoint)
    say(router.get_string(zmq.LAST_ENDPOINT))
    worker_id, _ = router.recv_multipart()
    say("a worker is there")
    if multipart:
        _relay_multipart(router, worker_id)
    receive, send, more = router.recv, router.send, zmq.SNDMORE
    while True:
        sender = receive()
        frame = receive()
        if sender == worker_id:
            outcome = receive()
            send(frame, more)
            send(outcome)
        else:
            send(worker_id, more)
            send(sender, more)
            send(frame)


def _relay_multipart(router: zmq.Socket[bytes], worker_id: bytes) -> None:
    while True:
        frames = router.recv_multipart()
        if frames[0] == worker_id:
            router.send_multipart(frames[1:])
        else:
            router.send_multipart([worker_id, *frames])


def worker(say: Say, endpoint: str, multipart: bool) -> None:
    """Answer each job at once, until killed."""
    dealer = _socket(zmq.DEALER)
    dealer.connect(endpoint)
    dealer.send(b"a worker")
    if multipart:
        while True:
            frames = dealer.recv_multipart()
            dealer.send_multipart([frames[0], OUTCOME])
    receive, send, more = dealer.recv, dealer.send, zmq.SNDMORE
    while True:
        sender = receive()
        receive()
        send(sender, more)
        send(OUTCOME)


def client(say: Say, endpoint: str, multipart: bool, jobs: int, trips: int) -> None:
    """Send jobs and take their outcomes: one after the other, and a window of them at a time."""
    dealer = _socket(zmq.DEALER)
    dealer.connect(endpoint)
    send, receive = dealer.send, dealer.recv
    if multipart:
        send, receive = _multipart_calls(dealer)
    times = _lock_step(send, receive, WARM_UP + trips)[WARM_UP:]
    _pipelined(send, receive, WINDOW)
    began = time.perf_counter()
    _pipelined(send, receive, jobs)
    seconds = time.perf_counter() - began
    say(
        {
            "jobs_per_s": jobs / seconds,
            "p50_us": percentile(times, 50) * 1e6,
            "p99_us": percentile(times, 99) * 1e6,
        }
    )


def _multipart_calls(dealer: zmq.Socket[bytes]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    send, receive = dealer.send_multipart, dealer.recv_multipart
    return (lambda job: send([job])), receive


def _lock_step(send: Callable[..., Any], receive: Callable[..., Any], trips: int) -> list[float]:
    clock = time.perf_counter
    times = []
    for _ in range(trips):
        began = clock()
        send(JOB)
        receive()
        times.append(clock() - began)
    return times


def _pipelined(send: Callable[..., Any], receive: Callable[..., Any], jobs: int) -> None:
    window = min(WINDOW, jobs)
    refill = max(1, window // 2)
    for _ in range(window):
        send(JOB)
    sent = window
    for received in range(1, jobs + 1):
        receive()
        if received % refill == 0:
            for _ in range(min(refill, jobs - sent)):
                send(JOB)
                sent += 1


# ---- the disk --------------------------------------------------------------------------------


def append_sync_us(folder: Path, times: int) -> float:
    """The median time of appending a record of 300 bytes to a file and having it on disk."""
    path = folder / "appended"
    took: list[float] = []
    file: Any
    with path.open("ab", buffering=0) as file:
        descriptor = file.fileno()
        for _ in range(times):
            began = time.perf_counter()
            os.write(descriptor, RECORD)
            os.fdatasync(descriptor)
            took.append(time.perf_counter() - began)
    path.unlink()
    return median(took) * 1e6
