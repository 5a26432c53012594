"""Handlers: the user's functions by job type, and what becomes of a job when one has been run."""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from worker_sdk.delivery import LONE_ENVELOPE_BYTES, Refused
from worker_sdk.encoding import encode_value
from worker_sdk.errors import InvalidRequest
from worker_sdk.job import Job, JobRejected

log = logging.getLogger("worker_sdk")

Function = Callable[[Job], Any] | Callable[[Job], Awaitable[Any]]
Executor = Literal["thread", "process", "async"]

NAME_CHARACTERS = 200
"""The longest name that a broker takes."""
ERROR_CHARACTERS = 1_000
TRACEBACK_CHARACTERS = 6_000
"""A traceback's end says more than its start, so that is what is kept."""


@dataclass(frozen=True, slots=True)
class Handler:
    """How jobs of one type are run."""

    type: str
    function: Function
    executor: Executor
    limit: int | None
    """How many of them may run at a time in this worker; None: no other limit than its own."""

    @property
    def import_name(self) -> str:
        """Where another process finds the function: ``MODULE:QUALNAME``."""
        return f"{self.function.__module__}:{self.function.__qualname__}"


class Succeeded(NamedTuple):
    """A handler returned; ``result`` is JSON."""

    result: bytes


class Failed(NamedTuple):
    """A handler raised, or returned what cannot be a result."""

    error: str
    retry: bool = True


Verdict = Succeeded | Failed

NOTHING = Succeeded(b"null")
"""What a handler without a return value comes to."""


class Misuse(ValueError, RuntimeError):
    """A worker that cannot run as it is put together."""


def checked_name(what: str, name: object) -> str:
    """The name of a job type, a channel or a worker; ValueError for one that cannot be sent."""
    if not isinstance(name, str) or not 1 <= len(name) <= NAME_CHARACTERS:
        raise ValueError(f"{what} is a text of 1 to {NAME_CHARACTERS} characters, not {name!r}")
    if unicode_only(name) != name:
        raise ValueError(f"{what} is Unicode text, and {name!r} holds half a character")
    return name


def checked_names(what: str, names: Iterable[str]) -> tuple[str, ...]:
    """The job types or channels of a worker, each once; an error naming one that cannot be."""
    if isinstance(names, str):
        raise TypeError(f"{what}s are a list of names, not the text {names!r}")
    checked = tuple([checked_name(f"a {what}", name) for name in dict.fromkeys(names)])
    if not checked:
        raise ValueError(f"a worker needs at least one {what}")
    return checked


def is_count(value: object) -> bool:
    """Whether this is a whole number from 1 on; True is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def make_handler(
    type: str, function: Function, executor: str | None, default: str, limit: int | None
) -> Handler:
    """A handler with its executor chosen and checked."""
    checked_name("a job type", type)
    if not callable(function):
        raise TypeError(f"the handler of {type!r} is no function but {function!r}")
    if limit is not None and not is_count(limit):
        raise ValueError(f"concurrency of {type!r} is a whole number from 1 on, not {limit!r}")
    if _is_async(function):
        if executor not in (None, "async"):
            raise ValueError(
                f"the handler of {type!r} is async: it runs on an event loop, not in a {executor}"
            )
        return Handler(type, function, "async", limit)
    chosen = executor or default
    if chosen == "process":
        _check_importable(type, function)
        return Handler(type, function, "process", limit)
    if chosen == "thread":
        return Handler(type, function, "thread", limit)
    raise ValueError(f"executor of {type!r} is 'thread' or 'process', not {chosen!r}")


def _is_async(function: Function) -> bool:
    """Whether it is an ``async def``, or an object whose ``__call__`` is one."""
    call = getattr(type(function), "__call__", None)  # noqa: B004 - not whether, but how
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _check_importable(type: str, function: Function) -> None:
    qualname = getattr(function, "__qualname__", "")
    if not qualname or not all(part.isidentifier() for part in qualname.split(".")):
        raise ValueError(
            f"the handler of {type!r} runs in a process of its own, which imports it by name: "
            f"it must stand at the top level of a module, not as {qualname or function!r}"
        )


def run(function: Callable[[Job], Any], job: Job) -> Verdict:
    """Call a plain function; whatever it does is the job's outcome."""
    try:
        value = function(job)
        # In here too: to write a value down may call code of the user's own.
        return NOTHING if value is None else returned(value)
    except BaseException as error:  # noqa: BLE001 - whatever a handler raises is its outcome
        return failed(error)


def returned(value: Any) -> Verdict:
    """What a handler's return value comes to: JSON cannot carry every value.

    That is final, as another attempt would return a value of the same kind.
    """
    try:
        return Succeeded(encode_value(value, "result"))
    except InvalidRequest as error:
        said = _headline(error)
    if inspect.isawaitable(value):
        said += ": nothing awaited it; make the handler an `async def` that does"
        if inspect.iscoroutine(value):
            value.close()  # else Python warns that it was never awaited
    return Failed(said, retry=False)


def failed(error: BaseException) -> Failed:
    """What is said of a handler that raised: ``Type: message``, and where."""
    if isinstance(error, JobRejected):
        return Failed(_headline(error), retry=False)
    return Failed(f"{_headline(error)}\n\n{unicode_only(_traceback(error))}")


def unicode_only(text: str) -> str:
    """The text without halves of characters, which no message can carry."""
    return text.encode("utf-8", "backslashreplace").decode()


def reviewed(job: Job, verdict: Verdict, limit_bytes: int) -> Verdict:
    """The verdict as a broker takes it that bounds messages like this; logs a failure."""
    if isinstance(verdict, Succeeded):
        if len(verdict.result) + LONE_ENVELOPE_BYTES <= limit_bytes:
            return verdict
        verdict = _too_large(len(verdict.result), limit_bytes)
    if not job.canceled:
        with suppress(Exception):  # a filter of the user's may raise: the verdict counts
            _log_failure(job, verdict)
    return verdict


def _too_large(size_bytes: int, limit_bytes: int) -> Failed:
    """What is said of a result that the broker would not take."""
    return Failed(
        f"TooLarge: the result has {size_bytes:,} bytes of JSON, and the broker takes messages of "
        f"{limit_bytes:,} bytes at most",
        retry=False,
    )


def _log_failure(job: Job, verdict: Failed) -> None:
    """Tell whoever runs the worker; whether there will be another attempt, the broker knows."""
    headline, _, rest = verdict.error.partition("\n")
    log.warning(
        "job %s of type %r failed in attempt %d: %s", job.id, job.type, job.attempt, headline
    )
    if rest:
        log.debug("job %s, attempt %d: %s", job.id, job.attempt, verdict.error)


def log_refused(refused: Iterable[Refused]) -> None:
    """Tell whoever runs the worker of outcomes that came to nothing."""
    for ending, code, message in refused:
        # A job that was canceled while its outcome was under way is nobody's fault.
        level = logging.DEBUG if code == "canceled" else logging.WARNING
        log.log(
            level,
            "outcome of job %s attempt %d refused: %s: %s",
            ending.id,
            ending.attempt,
            code,
            message,
        )


def _traceback(error: BaseException) -> str:
    # The first frame is this package's own.
    frames = error.__traceback__.tb_next if error.__traceback__ else None
    try:
        text = "".join(traceback.format_exception(type(error), error, frames, limit=-20))
    except Exception:  # noqa: BLE001 - as below; a SyntaxError made by hand is enough
        return "(its traceback could not be made)"
    return text if len(text) <= TRACEBACK_CHARACTERS else "…" + text[-TRACEBACK_CHARACTERS:]


def _headline(error: BaseException) -> str:
    try:
        said = str(error)
    except Exception:  # noqa: BLE001 - the user's own class: its failure must not hide the error
        said = "(its text could not be made)"
    return unicode_only(f"{type(error).__name__}: {said}"[:ERROR_CHARACTERS])
