"""What the commands share: the types of their arguments, their common options, their errors."""

import contextlib
import difflib
import itertools
import json
import math
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, get_type_hints
from uuid import UUID

import click
from msgspec import Raw

from broker.cli.output import clean
from broker.kinds import Count, Duration, Endpoints, Kind, Size
from worker_sdk import Dependency
from worker_sdk.messages import DEFAULT_ENDPOINT, NewJob
from worker_sdk.requests import LONGEST_HOLD_S

LONGEST_INTEGER_CHARACTERS = 4300
"""Clients and workers read none that is longer, its sign counted (msgspec 0.22)."""

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


def signed(kind: Kind, value: object) -> object:
    """A negative number in text as a number, so that it is found too small, and not to be none."""
    if isinstance(kind, Duration | Size | Count) and isinstance(value, str) and value[:1] == "-":
        with contextlib.suppress(ValueError):
            return -kind.parse(value[1:])
    return value


def seconds(text: str) -> float:
    """Seconds from a number or from text like ``10s``."""
    kind = Duration(0, 10 * 365 * 86_400)
    try:
        return kind.parse(signed(kind, text))
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


def _bounds(field: str) -> Any:
    """The bounds of a field of new jobs, as the wire has them: a msgspec.Meta."""
    (bounds,) = get_type_hints(NewJob, include_extras=True)[field].__metadata__
    return bounds


def whole_number(field: str) -> click.IntRange:
    """The type of an option that sets this field of a new job."""
    bounds = _bounds(field)
    return click.IntRange(bounds.ge, bounds.le)


def job_name(text: str) -> str:
    """The name of a job type or of a channel."""
    least, most = _NAME_BOUNDS.min_length, _NAME_BOUNDS.max_length
    if not least <= len(text) <= most:
        shown = repr(text) if len(text) <= 40 else f"{text[:40]!r}…"
        raise click.BadParameter(f"{shown} has {len(text)} characters; expected {least} to {most}")
    try:
        text.encode()
    except UnicodeError:
        raise click.BadParameter(f"{text!r} is not UTF-8") from None
    return text


_NAME_BOUNDS = _bounds("type")


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
        value = json.loads(
            text, parse_constant=_no_constants, parse_int=_length, parse_float=_double
        )
        if _HALF_A_CHARACTER.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise click.BadParameter(f"{half!r} is half a character: not Unicode") from None
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


_HALF_A_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")
"""What stands for one of a pair of surrogates, and is half a character if it stands alone."""


def _no_constants(name: str) -> None:
    raise ValueError(f"it has neither NaN nor infinity, found {name}")


def _length(text: str) -> int:
    """The number's length: its value does not matter, and takes long to compute."""
    if len(text) > LONGEST_INTEGER_CHARACTERS:
        raise click.BadParameter(
            f"{text[:10]}… has {len(text)} characters, and an integer of more than "
            f"{LONGEST_INTEGER_CHARACTERS} cannot be read back"
        )
    return len(text)


def _double(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        shown = text if len(text) <= 40 else f"{text[:40]}…"
        raise click.BadParameter(
            f"{shown} cannot be read back; expected numbers up to {sys.float_info.max:.4g}"
        )
    return value


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


class TakesNegativeNumbers(click.Command):
    """A command whose arguments may be negative numbers, which look like options."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Take what is no option as an argument if there may be such a number."""
        if any(map(_NEGATIVE_NUMBER.fullmatch, args)):
            context.ignore_unknown_options = True
            self._refuse_unknown(context, args)
        return super().parse_args(context, args)

    def _refuse_unknown(self, context: click.Context, args: list[str]) -> None:
        """Refuse what is neither an option nor such a number."""
        before = args[: args.index("--")] if "--" in args else list(args)
        found, words, _ = self.make_parser(context).parse_args(before)
        arguments = [
            each.name for each in self.get_params(context) if each.param_type_name == "argument"
        ]
        for word in (*words, *map(found.get, arguments)):
            if not isinstance(word, str) or _NEGATIVE_NUMBER.fullmatch(word) or word == "-":
                continue
            if word.startswith("-"):
                names = [name for each in self.get_params(context) for name in each.opts]
                alike = difflib.get_close_matches(word, names)
                raise click.NoSuchOption(word, possibilities=alike, ctx=context)


_NEGATIVE_NUMBER = re.compile(r"-[0-9][0-9.eE+-]*")


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
        help="How long to try to reach the broker; while waiting for jobs, up to "
        f"{LONGEST_HOLD_S:g}s longer.",
    )
    return url(key_options(patience(command)))


def _keep(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value == "":
        raise click.BadParameter("'' is not the path of a file", context, parameter)
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
