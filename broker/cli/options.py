"""What the commands share: the types of their arguments, their common options, their errors."""

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

import click
from msgspec import Raw

from broker.cli.output import clean
from broker.kinds import Duration
from worker_sdk import Dependency

EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3

Command = TypeVar("Command", bound=Callable[..., Any])


class CommandError(Exception):
    """A command could not do what it was asked for; the message is for who called it."""

    def __init__(self, message: str, code: str = "failed") -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Invocation:
    """One run of the command line."""

    as_json: bool = False
    """Whether output, errors too, is for programs; set as soon as the flag has been read."""

    def tell_error(
        self, message: str, *, where: str = "pointsman", code: str = "", ids: Iterable[UUID] = ()
    ) -> None:
        """Write an error to stderr: one line, in JSON if that is what the command gives."""
        if self.as_json:
            error = {"code": code, "message": message, "ids": [str(each) for each in ids]}
            line = json.dumps({"error": error})
        else:
            line = f"{where}: error: {clean(message)}"
        click.echo(line, file=sys.stderr)


def _set_json(context: click.Context, _: click.Parameter, value: bool) -> bool:
    if context.obj is not None:
        context.obj.as_json = value
    return value


json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    is_eager=True,
    callback=_set_json,
    help="Write JSON, for programs.",
)


def broker_option(command: Command) -> Command:
    """Give ``command`` the options that say which broker to talk to and how patiently."""
    url = click.option(
        "--broker",
        envvar="POINTSMAN_BROKER",
        metavar="URL",
        help="The broker's endpoint (also: POINTSMAN_BROKER).  [default: tcp://127.0.0.1:5570]",
    )
    patience = click.option(
        "--patience",
        type=SecondsType(0.01),
        default="5s",
        metavar="TIME",
        show_default=True,
        help="How long to try to reach the broker.",
    )
    return url(patience(command))


class SecondsType(click.ParamType):
    """A time: seconds, or a number with ms, s, m, h or d."""

    name = "time"

    def __init__(self, least: float = 0) -> None:
        self.kind = Duration(least, 10 * 365 * 86_400)

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> float:
        """Seconds."""
        try:
            return self.kind.parse(value)
        except ValueError as error:
            self.fail(f"{value!r} is not right ({error}); expected {self.kind.right}", param)


class JobIdType(click.ParamType):
    """A job's id."""

    name = "id"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> UUID:
        """The id as a UUID."""
        if isinstance(value, UUID):
            return value
        try:
            return UUID(value)
        except ValueError:
            self.fail(f"{value!r} is not a job's id; expected a UUID", param)


class DependencyType(click.ParamType):
    """A dependency: ``ID``, or ``ID:ended`` for one that may end in any way."""

    name = "id"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> Dependency:
        """The dependency with its condition."""
        if isinstance(value, Dependency):
            return value
        id, colon, condition = value.partition(":")
        if colon and condition not in ("finished", "ended"):
            self.fail(
                f"{value!r}: {condition!r} is not a condition; expected ended or finished", param
            )
        job = JobIdType().convert(id, param, context)
        return Dependency(job, "ended" if condition == "ended" else "finished")


class JsonType(click.ParamType):
    """A JSON value, kept as it was written; ``-`` reads it from stdin."""

    name = "json"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> Raw:
        """The value as JSON that was found to be valid."""
        if isinstance(value, Raw):
            return value
        try:
            content = sys.stdin.buffer.read() if value == "-" else value.encode()
            text = content.decode()
        except UnicodeError:
            self.fail("not UTF-8", param)
        try:
            json.loads(text, parse_constant=_no_constants)
        except json.JSONDecodeError as error:
            self.fail(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}", param)
        except ValueError as error:
            self.fail(f"not JSON: {error}", param)
        except RecursionError:
            self.fail("not JSON to work with: nested too deep", param)
        return Raw(text.encode())


def _no_constants(name: str) -> None:
    raise ValueError(f"it has neither NaN nor infinity, found {name}")


class MomentType(click.ParamType):
    """A moment: ISO 8601, or how long ago, like ``1h``."""

    name = "moment"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> datetime:
        """The moment, aware; local time if the text names no zone."""
        if isinstance(value, datetime):
            return value
        try:
            return datetime.now(UTC) - timedelta(seconds=SecondsType().kind.parse(value))
        except ValueError:
            pass
        try:
            return datetime.fromisoformat(value).astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is no moment; expected ISO 8601 like 2025-01-31T12:00Z, "
                "or how long ago, like 1h",
                param,
            )
