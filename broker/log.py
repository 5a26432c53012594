"""Structured logs: an event in a few constant words, and its fields.

``log = get_logger("server")``, then ``log.info("worker joined", worker=name, types=types)``. On
a terminal an event is a line for eyes, elsewhere one JSON object; `set_up` chooses. Without it
(a broker inside another process) events go to that process's own logging, under the logger
``pointsman``, with their fields in the record's ``fields``.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

ROOT = "pointsman"
_RESERVED = frozenset({"time", "level", "logger", "event", "exception"})
_COLORS = {"DEBUG": "\x1b[2m", "INFO": "\x1b[32m", "WARNING": "\x1b[33m", "ERROR": "\x1b[31m"}
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"

logging.getLogger(ROOT).addHandler(logging.NullHandler())


class Logger:
    """Logs events of one part of the program; fields are keywords, of any type."""

    __slots__ = ("_logger",)

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, event: str, /, **fields: object) -> None:
        """Log what only somebody who looks for a fault wants to see."""
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        """Log what happens as it should."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Log what somebody should look into some day."""
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        """Log what somebody has to look into now."""
        self._log(logging.ERROR, event, fields)

    def exception(self, event: str, /, **fields: object) -> None:
        """Log an error together with the exception that is being handled."""
        self._log(logging.ERROR, event, fields, with_exception=True)

    def _log(
        self, level: int, event: str, fields: Mapping[str, object], with_exception: bool = False
    ) -> None:
        if self._logger.isEnabledFor(level):
            # The event is an argument of the message, so that a % in it stays what it is.
            self._logger.log(
                level, "%s", event, extra={"fields": fields}, exc_info=with_exception, stacklevel=3
            )


def get_logger(part: str) -> Logger:
    """The logger of one part of the program, named ``pointsman.<part>``."""
    return Logger(logging.getLogger(f"{ROOT}.{part}"))


def set_up(
    level: str = "info", form: str = "auto", stream: TextIO | None = None, *, above: str = ROOT
) -> None:
    """Send events of ``level`` and above to ``stream`` (stderr), as ``human``, ``json``, ``auto``.

    It holds for all loggers under the one named ``above``, "" standing for all there are. Called
    again, it replaces what was set up before.
    """
    target = sys.stderr if stream is None else stream
    root = logging.getLogger(above)
    handler = _QuietHandler(target)
    handler.setFormatter(_formatter(form, target))
    for old in [each for each in root.handlers if isinstance(each, _QuietHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    root.propagate = False


def _formatter(form: str, stream: TextIO) -> logging.Formatter:
    terminal = stream.isatty()
    if form == "json" or (form == "auto" and not terminal):
        return JsonLines()
    return Human(color=terminal and not os.environ.get("NO_COLOR"))


class _QuietHandler(logging.StreamHandler[TextIO]):
    """Writes to a stream, and lets an event go when the stream has gone (a closed pipe)."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        pass


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, event, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The event as a line of JSON, in ASCII."""
        moment = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": _part(record),
            "event": record.getMessage(),
        }
        for name, value in _fields(record).items():
            line[name + "_" if name in _RESERVED else name] = value
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _json(line)


class Human(logging.Formatter):
    """One line for eyes: local time, level, part, event, then the fields as name=value."""

    def __init__(self, *, color: bool) -> None:
        super().__init__()
        self.color = color

    def format(self, record: logging.LogRecord) -> str:
        """The event as a line; an exception's traceback follows on further lines."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = f"{record.levelname.lower():7}"
        fields = " ".join(f"{name}={_bare(value)}" for name, value in _fields(record).items())
        if self.color:
            clock = f"{_DIM}{clock}{_PLAIN}"
            level = f"{_COLORS.get(record.levelname, '')}{level}{_PLAIN}"
            fields = f"{_DIM}{fields}{_PLAIN}" if fields else ""
        line = f"{clock} {level} {_part(record):8} {record.getMessage()}"
        if fields:
            line += "  " + fields
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _part(record: logging.LogRecord) -> str:
    return record.name.removeprefix(ROOT + ".")


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, Mapping) else {}


def _bare(value: object) -> str:
    """The value as short as it stays one word: quoted only if it would not be."""
    if isinstance(value, str):
        return value if value.isprintable() and value and " " not in value else _json(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return _json(value)


def _json(value: object) -> str:
    try:
        return json.dumps(value, default=_foreign, allow_nan=False)
    except (ValueError, TypeError):  # NaN, a cycle, keys that are no strings
        return json.dumps(repr(value))


def _foreign(value: object) -> object:
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    if isinstance(value, bytes | bytearray):
        return bytes(value).decode(errors="backslashreplace")
    return str(value)
