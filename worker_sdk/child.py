"""The process that runs handlers with ``executor="process"``, one job at a time.

It speaks with the worker's process over a pipe: JSON in, JSON out, each message with one byte
before it that says what it is. It ends when the pipe does, so none outlives its worker.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from importlib import import_module
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

import msgspec
from msgspec import Raw, Struct

from worker_sdk.handlers import Failed, Succeeded, Verdict, failed, run
from worker_sdk.job import Job
from worker_sdk.messages import Assignment

PROGRESS = b"p"
RESULT = b"r"
FAILURE = b"f"


class Call(Struct):
    """A job for the child; ``handler`` is where to find its function, ``MODULE:QUALNAME``."""

    handler: str
    job: Assignment


class Failure(Struct):
    """How a handler failed."""

    error: str
    retry: bool


class ChildDesk:
    """What a job can do from in here: report progress; whoever cancels it kills this process."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send

    def report(self, job: Job, value: bytes) -> None:
        """Pass progress on to the worker's process."""
        self._send(PROGRESS + value)

    def fetch_inputs(self, job: Job, ids: tuple[str, ...]) -> dict[str, Raw]:
        """Nothing: the worker's process fetches all before it calls."""
        return {}

    def wait_stopped(self, job: Job, timeout_s: float | None) -> bool:
        """Wait in vain: a stopped job ends with its process."""
        threading.Event().wait(timeout_s)
        return False


def main(connection: Connection) -> None:
    """Run the jobs that come over the connection until it ends."""
    # Ctrl-C reaches the whole group of processes; it is the worker that decides what follows.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    calls: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, calls), daemon=True).start()
    lock = threading.Lock()

    def send(data: bytes) -> None:
        with lock:
            connection.send_bytes(data)

    desk = ChildDesk(send)
    while True:
        send(_packed(_carry_out(calls.get(), desk)))


def _listen(connection: Connection, calls: SimpleQueue[bytes]) -> None:
    while True:
        try:
            calls.put(connection.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)


def _carry_out(data: bytes, desk: ChildDesk) -> Verdict:
    call = msgspec.json.decode(data, type=Call)
    try:
        function = find(call.handler)
    except BaseException as error:  # noqa: BLE001 - the user's module: whatever importing it does
        return failed(error)
    return run(function, Job(call.job, desk))


def find(import_name: str) -> Callable[[Job], Any]:
    """The function that ``MODULE:QUALNAME`` names."""
    module, _, qualname = import_name.partition(":")
    found: Any = import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name)
    function: Callable[[Job], Any] = found
    return function


def _packed(verdict: Verdict) -> bytes:
    if isinstance(verdict, Succeeded):
        return RESULT + verdict.result
    return FAILURE + msgspec.json.encode(Failure(verdict.error, verdict.retry))


def unpacked(data: bytes) -> Verdict:
    """The verdict that a child sent."""
    if data[:1] == RESULT:
        return Succeeded(data[1:])
    failure = msgspec.json.decode(data[1:], type=Failure)
    return Failed(failure.error, failure.retry)
