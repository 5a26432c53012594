"""Where handlers run that do not run in a worker's own threads: an event loop, child processes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from time import monotonic
from typing import Any, NamedTuple

import msgspec

from worker_sdk import child
from worker_sdk.handlers import NOTHING, Failed, Handler, Verdict, failed, returned
from worker_sdk.job import Job
from worker_sdk.messages import Step

log = logging.getLogger("worker_sdk")

TERMINATE_S = 1.0
"""How long a child has from SIGTERM to SIGKILL."""


class Ended(NamedTuple):
    """A job whose handler has returned."""

    job: Job
    verdict: Verdict
    seconds: float


class EventLoop:
    """Runs ``async def`` handlers as tasks of one asyncio loop, in a thread of its own.

    `on_ended` is called in that thread with all that ended in one round of the loop. `live` is to
    call what it is given, and sees to whatever that raises.
    """

    def __init__(self, on_ended: Callable[[list[Ended]], None], live: Callable[..., None]) -> None:
        self._on_ended = on_ended
        self._live = live
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=live, args=(self._run,), name="pointsman-async", daemon=True
        )
        # Jobs that wait to become tasks, and whether the loop was told so.
        self._incoming: deque[tuple[Job, Callable[[Job], Awaitable[Any]]]] = deque()
        self._is_told = False
        self._tasks: dict[asyncio.Task[Ended], Job] = {}
        self._ended: list[Ended] = []
        # Set once nothing runs any more after `close`.
        self._is_over = False

    def open(self) -> None:
        """Start the thread."""
        self._thread.start()

    def start(self, job: Job, function: Callable[[Job], Awaitable[Any]]) -> None:
        """Run a job; returns at once. Not from two threads at the same time."""
        self._incoming.append((job, function))
        if not self._is_told:
            self._is_told = True
            self._loop.call_soon_threadsafe(self._take_in)

    def is_own_thread(self) -> bool:
        """Whether the calling thread is the loop's."""
        return threading.current_thread() is self._thread

    def close(self, patience_s: float) -> None:
        """Cancel what still runs, and end the thread if its tasks let it."""
        if self._thread.ident is None:
            self._loop.close()
            return
        # A loop that failed is closed already.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._cancel_all)
        self._thread.join(patience_s)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            while not self._is_over:
                self._run_on()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()

    def _run_on(self) -> None:
        """Run until something stops the loop: `close`, or the user's code, which is not to."""
        try:
            self._loop.run_forever()
        except (SystemExit, KeyboardInterrupt) as error:
            # asyncio ends a loop with these, whichever of its tasks raised them.
            log.error("%r in a task or callback of a handler's", error, exc_info=error)

    def _take_in(self) -> None:
        self._is_told = False
        while self._incoming:
            job, function = self._incoming.popleft()
            task = self._loop.create_task(_outcome(job, function))
            self._tasks[task] = job
            task.add_done_callback(self._take_out)
            job._on_stop = _canceler(self._loop, task)
            if job.canceled:
                task.cancel()

    def _take_out(self, task: asyncio.Task[Ended]) -> None:
        job = self._tasks.pop(task)
        job._on_stop = None
        # Only a task that was canceled before its first step has no result.
        ended = Ended(job, Failed("canceled"), 0.0) if task.cancelled() else task.result()
        self._ended.append(ended)
        if len(self._ended) == 1:
            self._loop.call_soon(self._tell)

    def _tell(self) -> None:
        ended, self._ended = self._ended, []
        self._live(self._on_ended, ended)

    def _cancel_all(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._stop_if_idle()

    def _stop_if_idle(self) -> None:
        if self._tasks:
            self._loop.call_later(0.05, self._stop_if_idle)
        else:
            self._is_over = True
            self._loop.stop()


def _canceler(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Ended]) -> Callable[[], None]:
    def cancel() -> None:
        # A loop that is closed has no tasks left.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(task.cancel)

    return cancel


async def _outcome(job: Job, function: Callable[[Job], Awaitable[Any]]) -> Ended:
    began = monotonic()
    verdict: Verdict
    try:
        if job._has_inputs_to_fetch:
            await asyncio.to_thread(getattr, job, "inputs")
        value = await function(job)
        verdict = NOTHING if value is None else returned(value)
    except BaseException as error:  # noqa: BLE001 - whatever a handler raises is its outcome
        verdict = failed(error)
    return Ended(job, verdict, monotonic() - began)


class _Process(NamedTuple):
    """A process that was started, and the pipe to it."""

    handle: SpawnProcess
    connection: Connection


class Child:
    """A process for one of a worker's threads; started when first needed, and anew when it died."""

    def __init__(self, name: str) -> None:
        self._name = name
        # Readable once the present job is to be stopped.
        self._stop_in, self._stop_out = os.pipe()
        self._process: _Process | None = None

    def run(self, handler: Handler, job: Job, report: Callable[[Job, bytes], None]) -> Verdict:
        """Run a job in the process, to its end or to the process's."""
        try:
            assignment = job._with_all_inputs()
            process = self._started()
        except Exception as error:  # noqa: BLE001 - the job's failure, whatever it is
            return failed(error)
        job._on_stop = self._ask_to_stop
        if job.canceled:
            self._ask_to_stop()
        try:
            call = child.Call(handler.import_name, assignment)
            process.connection.send_bytes(msgspec.json.encode(call))
            return self._attend(process, job, report)
        except (EOFError, OSError):
            return _died(process, job)
        finally:
            job._on_stop = None

    def _started(self) -> _Process:
        """The process, started if there is none that lives; OSError if the system has no room."""
        if self._process is not None:
            if self._process.handle.is_alive():
                return self._process
            self._process.connection.close()
            self._process = None
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        handle = context.Process(target=child.main, args=(theirs,), name=self._name, daemon=True)
        with theirs:
            try:
                handle.start()
            except BaseException:
                ours.close()
                raise
        self._process = _Process(handle, ours)
        return self._process

    def _attend(self, process: _Process, job: Job, report: Callable[[Job, bytes], None]) -> Verdict:
        """Pass on what the process says until it gives its verdict; EOFError if it ends first."""
        kill_at: float | None = None
        while True:
            left_s = None if kill_at is None else max(0.0, kill_at - monotonic())
            news = wait([process.connection, self._stop_in], left_s)
            if process.connection in news:
                said = child.unpacked(process.connection.recv_bytes())
                if (said.id, said.attempt) != (job._assignment.id, job.attempt):
                    continue  # of a job before this one, by a thread that its handler left behind
                if not isinstance(said, Step):
                    return child.verdict_of(said)
                report(job, bytes(said.value))
            elif news:
                os.read(self._stop_in, 4096)
                if job.canceled:  # else it was meant for the job before, and came too late
                    process.handle.terminate()
                    kill_at = monotonic() + TERMINATE_S
            else:
                process.handle.kill()
                kill_at = None

    def _ask_to_stop(self) -> None:
        os.write(self._stop_out, b"\0")

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            handle, connection = self._process
            connection.close()
            handle.join(TERMINATE_S)
            if handle.is_alive():
                handle.kill()
                handle.join()
        os.close(self._stop_in)
        os.close(self._stop_out)


def _died(process: _Process, job: Job) -> Verdict:
    process.handle.join()
    code = process.handle.exitcode
    if job.canceled:
        return Failed("canceled")
    if code is not None and code < 0:
        try:
            cause = f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            cause = f"was killed by signal {-code}"
    else:
        cause = f"ended with exit code {code}"
    return Failed(f"ProcessDied: the process that ran this attempt {cause}")
