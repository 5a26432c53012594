"""What the commands share: the types of their arguments, their common options, their errors."""

import contextlib
import itertools
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
from broker.kinds import Duration, Endpoints
from worker_sdk import Dependency
from worker_sdk.messages import DEFAULT_ENDPOINT

EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3

Command = TypeVar("Command", bound=Callable[..., Any])


class CommandError(Exception):
    """A command could not do what it was asked for; the message is for who called it."""

    def __init__(self, message: str, code: str = "failed", *, ids: Iterable[UUID] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.ids = tuple(ids)


@dataclass
class Invocation:
    """One run of the command line."""

    as_json: bool = False
    """Whether output, errors too, is for programs; certain as soon as the flag has been read."""
    key: str | None = None
    broker_key: str | None = None
    """The key files that the command line names."""

    def tell_error(
        self, message: str, *, where: str = "pointsman", code: str = "", ids: Iterable[UUID] = ()
    ) -> None:
        """Write an error to stderr: one line, in JSON if that is what the command gives."""
        if self.as_json:
            error = {"code": code, "message": message, "ids": [str(each) for each in ids]}
            line = json.dumps({"error": error})
        else:
            line = f"{where}: error: {clean(message)}"
        # Where nobody can be told, the exit code still says it.
        with contextlib.suppress(OSError):
            click.echo(line, file=sys.stderr)


def asks_for_json(arguments: Iterable[str]) -> bool:
    """Whether --json seems to stand among the options: for errors before these have been read."""
    return "--json" in itertools.takewhile("--".__ne__, arguments)


def help_if_alone(context: click.Context) -> None:
    """Show the help of a group of commands that is called without one of them: wrong usage."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
        context.exit(EXIT_USAGE)


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


def seconds(text: str) -> float:
    """Seconds from a number or from text like ``10s``."""
    kind = Duration(0, 10 * 365 * 86_400)
    try:
        return kind.parse(text)
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r} is not right ({error}); expected {kind.right}"
        ) from None


def positive_seconds(text: str) -> float:
    """Seconds, more than none."""
    value = seconds(text)
    if value <= 0:
        raise click.BadParameter(f"{text!r} is no time at all; expected more than 0")
    return value


def endpoint(text: str) -> str:
    """An endpoint to connect to."""
    (url, *more) = [""] if not text else text.split(",")
    try:
        (checked,) = Endpoints().parse([url])
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if more or "*" in checked:
        raise click.BadParameter(f"{text!r} is not one certain endpoint, like {DEFAULT_ENDPOINT}")
    return checked


def job_id(text: str) -> UUID:
    """A job's id."""
    try:
        return UUID(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a job's id; expected a UUID") from None


def dependency(text: str) -> Dependency:
    """A dependency: ``ID``, or ``ID:ended`` for one that may end in any way."""
    id, colon, condition = text.partition(":")
    if colon and condition not in ("finished", "ended"):
        raise click.BadParameter(
            f"{text!r}: {condition!r} is not a condition; expected ended or finished"
        )
    return Dependency(job_id(id), "ended" if condition == "ended" else "finished")


def json_value(text: str) -> Raw:
    """JSON that was found to be valid, kept as it was written; ``-`` reads it from stdin."""
    try:
        content = _stdin() if text == "-" else text.encode()
        text = content.decode()
    except UnicodeError:
        raise click.BadParameter("not UTF-8") from None
    try:
        json.loads(text, parse_constant=_no_constants, parse_int=len)
    except json.JSONDecodeError as error:
        raise click.BadParameter(
            f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}") from None
    except RecursionError:
        raise click.BadParameter("nested too deep") from None
    return Raw(content)


def _stdin() -> bytes:
    if sys.stdin is None:
        raise click.BadParameter("stdin is closed")
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise click.BadParameter(f"stdin: {error.strerror or error}") from None


def _no_constants(name: str) -> None:
    raise ValueError(f"it has neither NaN nor infinity, found {name}")


def moment(text: str) -> datetime:
    """A moment from ISO 8601 (local time if it names no zone), or from how long ago it is."""
    try:
        return datetime.now(UTC) - timedelta(seconds=seconds(text))
    except click.BadParameter:
        pass
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter(
            f"{text!r} is no moment; expected ISO 8601 like 2025-01-31T12:00Z, "
            "or how long ago, like 1h"
        ) from None


def broker_option(command: Command) -> Command:
    """Give ``command`` the options that say which broker to talk to and how patiently."""
    url = click.option(
        "--broker",
        type=endpoint,
        envvar="POINTSMAN_BROKER",
        metavar="URL",
        help=f"The broker's endpoint (also: POINTSMAN_BROKER).  [default: {DEFAULT_ENDPOINT}]",
    )
    patience = click.option(
        "--patience",
        type=positive_seconds,
        default="5s",
        metavar="TIME",
        show_default=True,
        help="How long to try to reach the broker.",
    )
    return url(key_options(patience(command)))


def _keep(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if context.obj is not None and parameter.name is not None:
        setattr(context.obj, parameter.name, value)


def key_options(command: Command) -> Command:
    """Give ``command`` the options for a broker with keys; their values are the Invocation's."""
    own = click.option(
        "--key",
        metavar="FILE",
        expose_value=False,
        callback=_keep,
        help="The file of your secret key, for a broker with keys (also: POINTSMAN_KEY).",
    )
    brokers = click.option(
        "--broker-key",
        metavar="FILE",
        expose_value=False,
        callback=_keep,
        help="The file of the broker's public key (also: POINTSMAN_BROKER_KEY).",
    )
    return own(brokers(command))
