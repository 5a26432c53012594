"""How jobs and counts are shown: to people, in tables and blocks; to programs, as JSON lines."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click
import msgspec

from worker_sdk import JobStatus

STATE_COLORS = {
    "blocked": "bright_black",
    "scheduled": "cyan",
    "ready": "blue",
    "running": "yellow",
    "finished": "green",
    "failed": "red",
    "canceled": "magenta",
}

LABEL_WIDTH = 14
HEADINGS = ("ID", "STATE", "TYPE", "CHANNEL", "ATTEMPT", "QUEUED")


def clean(text: str) -> str:
    """The text on one line and without control characters, whoever wrote it."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def write_json(value: object) -> None:
    """Write ``value`` as one line of JSON to stdout."""
    click.echo(_to_json(value))


def _to_json(value: object) -> bytes:
    return msgspec.json.encode(value)


def write_job(job: JobStatus, *, as_json: bool) -> None:
    """Write all that is known of one job."""
    if as_json:
        write_json(job)
        return
    for name, value in _lines(job):
        click.echo(f"{name:{LABEL_WIDTH}}" + (_colored(value) if name == "state" else value))


def _colored(state: str, width: int = 0) -> str:
    """The state in its color, where there are eyes to see it."""
    padded = f"{state:{width}}"
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return padded
    return click.style(padded, fg=STATE_COLORS.get(state))


def _lines(job: JobStatus) -> Iterator[tuple[str, str]]:
    """What there is to say about a job, name by name; nothing that does not apply to it."""
    yield "id", str(job.id)
    yield "type", clean(job.type)
    yield "state", job.state
    yield "channel", clean(job.channel)
    if job.priority:
        yield "priority", str(job.priority)
    if job.attempt:
        yield "attempt", f"{job.attempt} of {job.max_attempts}"
    for name in ("queued", "due", "started", "finished", "ended"):
        moment = getattr(job, name)
        if moment is not None and (name != "ended" or job.finished is None):
            yield name, _moment(moment)
    if job.state == "canceled":
        yield "canceled", job.reason or "yes"
    if job.culprit is not None:
        yield "culprit", str(job.culprit)
    if job.dependencies:
        yield "dependencies", " ".join(map(str, job.dependencies))
    if job.dependents:
        yield "dependents", " ".join(map(str, job.dependents))
    if job.args is not None:
        yield "args", _value(job.args)
    if job.progress is not None:
        yield "progress", _value(job.progress)
    if job.state == "finished":
        yield "result", _value(job.result)
    if job.error is not None:
        # A headline, then often a traceback: lines of their own, indented below the first.
        yield "error", f"\n{'':{LABEL_WIDTH}}".join(map(clean, job.error.splitlines()))


def write_list(jobs: Sequence[JobStatus], *, as_json: bool, heading: bool = True) -> None:
    """Write one line a job: a table on a terminal, columns in a pipe, JSON lines for programs."""
    if as_json:
        for job in jobs:
            write_json(job)
        return
    rows = [_row(job) for job in jobs]
    if not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(row))
        return
    shown = [HEADINGS, *rows]
    widths = [max(len(row[column]) for row in shown) for column in range(len(HEADINGS))]
    if heading:
        click.echo("  ".join(map(str.ljust, HEADINGS, widths)).rstrip())
    for id, state, *rest in rows:
        cells = map(str.ljust, rest, widths[2:])
        click.echo("  ".join([id, _colored(state, widths[1]), *cells]).rstrip())


def write_more(after: str, *, as_json: bool) -> None:
    """Write to stderr where the next page of a list begins: stdout has jobs alone."""
    line = _to_json({"after": after}) if as_json else f"there are more: --after {after}, or --all"
    click.echo(line, err=True)


def _row(job: JobStatus) -> tuple[str, ...]:
    attempt = f"{job.attempt}/{job.max_attempts}"
    return (
        str(job.id),
        job.state,
        clean(job.type),
        clean(job.channel),
        attempt,
        _moment(job.queued),
    )


def write_counts(counts: Mapping[str, Any], *, as_json: bool) -> None:
    """Write the broker's counts, one a line, those inside others with both names."""
    if as_json:
        write_json(counts)
        return
    lines = list(_flat(counts))
    width = max((len(name) for name, _ in lines), default=0) + 2
    for name, value in lines:
        click.echo(clean(f"{name:{width}}{value}"))


def _flat(counts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in counts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            for lane in value:  # a lane is known by its channel and type
                rest = dict(lane)
                label = f"{name}.{rest.pop('channel', '')}/{rest.pop('type', '')}"
                yield label, "  ".join(f"{key} {_number(each)}" for key, each in rest.items())
        else:
            yield prefix + name, _number(value)


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.6g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z"


def _value(value: object) -> str:
    return clean(_to_json(value).decode())
