"""The process that runs handlers with ``executor="process"``, one job at a time.

It speaks with the worker's process over a pipe: calls come in, and what goes out are a worker's
own messages, each about one attempt. It ends when the pipe does, so none outlives its worker.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec
from msgspec import Raw, Struct

from worker_sdk.handlers import Failed, Handler, Misuse, Succeeded, Verdict, failed, run
from worker_sdk.job import Job
from worker_sdk.messages import Assignment, Fail, Failure, Finish, Outcome, Progress, Step


class Call(Struct):
    """A job for the child; ``handler`` is where to find its function, ``MODULE:QUALNAME``."""

    handler: str
    job: Assignment


class ChildDesk:
    """What a job can do from in here: report progress; whoever cancels it kills this process."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send

    def report(self, job: Job, value: bytes) -> None:
        """Pass progress on to the worker's process."""
        about = job._assignment
        step = Step(about.id, about.attempt, Raw(value))
        self._send(msgspec.json.encode(Progress(jobs=(step,))))

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
        send(_carry_out(calls.get(), desk))


def _listen(connection: Connection, calls: SimpleQueue[bytes]) -> None:
    while True:
        try:
            calls.put(connection.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)


def _carry_out(data: bytes, desk: ChildDesk) -> bytes:
    call = msgspec.json.decode(data, type=Call)
    try:
        function = find(call.handler)
    except BaseException as error:  # noqa: BLE001 - the user's module: whatever importing it does
        return _packed(call.job, failed(error))
    return _packed(call.job, run(function, Job(call.job, desk)))


def find(import_name: str) -> Callable[[Job], Any]:
    """The function that ``MODULE:QUALNAME`` names."""
    module, _, qualname = import_name.partition(":")
    found: Any = import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name)
    function: Callable[[Job], Any] = found
    return function


def check_found(handler: Handler) -> None:
    """Raise Misuse if a process would not find the very function by its name.

    To be called once its module is imported: a decorator runs before the name is bound.
    """
    name = handler.import_name
    said = f"the handler of {handler.type!r} runs in a process of its own, which imports {name}"
    if name.startswith("__main__:") and not _is_main_imported():
        raise Misuse(f"{said}: it must stand in a module, not in a shell, -c, stdin or __main__.py")
    try:
        found = find(name)
    except (ImportError, AttributeError) as error:
        raise Misuse(f"{said}: {error}") from None
    if found != handler.function:
        raise Misuse(
            f"{said}: that is {found!r}, not {handler.function!r}; @worker.job must stand above "
            "all other decorators, and a method of an object cannot be found at all"
        )


def _is_main_imported() -> bool:
    """Whether multiprocessing gives the main module to its processes: only if it has a file."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:  # python -m
        return str(spec.name).rpartition(".")[2] != "__main__"
    return Path(getattr(main, "__file__", None) or "").is_file()


def _packed(job: Assignment, verdict: Verdict) -> bytes:
    message: Finish | Fail
    if isinstance(verdict, Succeeded):
        message = Finish(jobs=(Outcome(job.id, job.attempt, Raw(verdict.result)),))
    else:
        message = Fail(jobs=(Failure(job.id, job.attempt, verdict.error, verdict.retry),))
    return msgspec.json.encode(message)


def unpacked(data: bytes) -> Step | Outcome | Failure:
    """What a child said of an attempt."""
    message: Progress | Finish | Fail = _decode(data)
    (said,) = message.jobs
    return said


_decode = msgspec.json.Decoder(Progress | Finish | Fail).decode


def verdict_of(ending: Outcome | Failure) -> Verdict:
    """How an attempt ended, as its child said it."""
    if isinstance(ending, Outcome):
        return Succeeded(bytes(ending.result))
    return Failed(ending.error, ending.retry)
