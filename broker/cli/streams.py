"""The standard streams as a program may find them: closed, full, or left by their reader."""

import contextlib
import io
import os
import sys
from typing import Any, TextIO


class OutputError(OSError):
    """What was to be written to stdout cannot be, though its reader is still there."""


class _Stdout(io.FileIO):
    """Stdout whose errors can be told from all others that the system has."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(error.errno, error.strerror) from None


def set_up() -> None:
    """Put the null device where a standard stream is closed: nobody wants what goes there.

    Else the next file or socket that is opened would get the stream's number, and whatever any
    library writes to it. Python's stdin stays None then, so that to read it can be refused. What
    is written to stdout and not taken raises OutputError, or BrokenPipeError.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    encoding = "utf-8" if sys.stdout is None else sys.stdout.encoding
    by_line = sys.stdout is not None and bool(sys.stdout.line_buffering)
    at_once = bool(getattr(sys.stdout, "write_through", False))  # python -u
    stdout: Any = _Stdout(1, "w", closefd=False)
    sys.stdout = io.TextIOWrapper(
        stdout if at_once else io.BufferedWriter(stdout),
        encoding,
        line_buffering=by_line,
        write_through=at_once,
    )
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)


def flush_or_forget(stream: TextIO) -> None:
    """See to it that nothing of what the stream holds is still to be written."""
    try:
        stream.flush()
    except OSError:
        forget(stream)


def forget(stream: TextIO) -> None:
    """Let what is still buffered for a stream fall into nothing, silently, and what follows."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
