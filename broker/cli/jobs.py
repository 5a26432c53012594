"""The commands of a client: enqueue jobs, look at them, change them."""

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import click
from msgspec import Raw

from broker.cli.options import (
    EXIT_REFUSED,
    CommandError,
    Invocation,
    TakesNegativeNumbers,
    broker_option,
    dependency,
    job_id,
    job_name,
    json_option,
    json_value,
    moment,
    positive_seconds,
    seconds,
    whole_number,
)
from broker.cli.output import clean, write_counts, write_job, write_json, write_list, write_more
from worker_sdk import Client, Dependency, JobSpec, JobStatus, WaitTimeout
from worker_sdk.messages import DEFAULT_CHANNEL

STATES = ("blocked", "scheduled", "ready", "running", "finished", "failed", "canceled")
PAGE_JOBS = 1000
"""How many jobs ``list --all`` asks for at a time."""

ids_argument = click.argument("ids", nargs=-1, required=True, type=job_id, metavar="ID...")


@click.command(cls=TakesNegativeNumbers)
@click.argument("type", type=job_name)
@click.argument("args", type=json_value, required=False, metavar="[ARGS-JSON]")
@click.option(
    "--after",
    type=dependency,
    multiple=True,
    metavar="ID[:ended]",
    help="Wait for this job to finish, or with :ended to end in any way. Repeatable.",
)
@click.option("--wait", "waiting", is_flag=True, help="Wait until the job has ended; show it.")
@click.option(
    "--channel",
    type=job_name,
    default=DEFAULT_CHANNEL,
    metavar="CHANNEL",
    show_default=True,
    help="The lane to use.",
)
@click.option(
    "--priority",
    type=whole_number("priority"),
    default=0,
    show_default=True,
    help="Higher runs first.",
)
@click.option(
    "--delay", type=seconds, metavar="TIME", help="Start the job after this time at the earliest."
)
@click.option(
    "--timeout", type=positive_seconds, metavar="TIME", help="The longest an attempt runs."
)
@click.option(
    "--expires",
    type=positive_seconds,
    metavar="TIME",
    help="Cancel the job if it has not started by then.",
)
@click.option(
    "--max-attempts",
    type=whole_number("max_attempts"),
    default=3,
    show_default=True,
    help="Attempts at most.",
)
@click.option(
    "--backoff", type=seconds, metavar="TIME", help="How long to wait before the first retry."
)
@click.option("--no-inputs", is_flag=True, help="Do not send the dependencies' results along.")
@click.option("--id", type=job_id, help="The job's id, if not a new one.")
@broker_option
@json_option
def enqueue(
    type: str,
    args: Raw | None,
    after: tuple[Dependency, ...],
    waiting: bool,
    id: UUID | None,
    no_inputs: bool,
    delay: float | None,
    broker: str | None,
    patience: float,
    as_json: bool,
    **terms: Any,
) -> int:
    """Enqueue a job of TYPE and write its id.

    ARGS-JSON is any JSON value, null if left out; - reads it from stdin. Enqueuing again with the
    same --id and the same content creates nothing new.
    """
    if id is not None:
        terms["id"] = id
    spec = JobSpec(
        type,
        Raw(b"null") if args is None else args,
        dependencies=after,
        delay=delay or 0.0,
        inputs=not no_inputs,
        **terms,
    )
    with _connect(broker, patience) as client:
        (job,) = client.enqueue_many([spec])
        if not waiting:
            write_json({"id": job}) if as_json else click.echo(str(job))
            return 0
        return _wait_for(client, [job], None, as_json)


@click.command()
@ids_argument
@click.option("--args", "with_args", is_flag=True, help="Show the jobs' args too.")
@broker_option
@json_option
def status(
    ids: tuple[UUID, ...], with_args: bool, broker: str | None, patience: float, as_json: bool
) -> None:
    """Show the present state of each job."""
    with _connect(broker, patience) as client:
        _write_jobs(client.status(list(ids), args=with_args), as_json)


@click.command()
@ids_argument
@click.option("--timeout", type=seconds, metavar="TIME", help="Wait no longer than this.")
@broker_option
@json_option
def wait(
    ids: tuple[UUID, ...],
    timeout: float | None,
    broker: str | None,
    patience: float,
    as_json: bool,
) -> int:
    """Wait until all of the jobs have ended, then show them.

    Exit code 1 if one of them failed, was canceled, or has not ended in time.
    """
    with _connect(broker, patience) as client:
        return _wait_for(client, ids, timeout, as_json)


@click.command(short_help="End jobs that have not ended.")
@ids_argument
@broker_option
@json_option
def cancel(ids: tuple[UUID, ...], broker: str | None, patience: float, as_json: bool) -> None:
    """End each of the jobs that has not ended, and with it those that depend on it.

    Writes the ids of the named jobs that this call ended; one that had ended already stays as
    it is.
    """
    _change(Client.cancel, ids, broker, patience, as_json)


@click.command(short_help="Run failed and canceled jobs again.")
@ids_argument
@broker_option
@json_option
def retry(ids: tuple[UUID, ...], broker: str | None, patience: float, as_json: bool) -> None:
    """Run failed and canceled jobs again, and what was canceled because of them.

    Writes the ids of all jobs that this call revived.
    """
    _change(Client.retry, ids, broker, patience, as_json)


@click.command()
@ids_argument
@broker_option
@json_option
def delete(ids: tuple[UUID, ...], broker: str | None, patience: float, as_json: bool) -> None:
    """Forget ended jobs that no live job depends on."""
    _change(Client.delete, ids, broker, patience, as_json)


@click.command("list", short_help="List jobs, newest first.")
@click.option("--state", type=click.Choice(STATES), multiple=True, help="Repeatable.")
@click.option("--type", type=job_name, metavar="TYPE", help="Only jobs of this type.")
@click.option("--channel", type=job_name, metavar="CHANNEL", help="Only jobs in this channel.")
@click.option("--roots", is_flag=True, help="Only jobs without dependencies.")
@click.option(
    "--since",
    type=moment,
    metavar="MOMENT",
    help="Only jobs queued then or later: ISO 8601 (local time if it names no zone), or how long "
    "ago (1h).",
)
@click.option("--until", type=moment, metavar="MOMENT", help="Only jobs queued before then.")
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    default=100,
    show_default=True,
    help="How many at most.",
)
@click.option("--after", metavar="PLACE", help="Go on where the page before this one ended.")
@click.option("--all", "everything", is_flag=True, help="All of them, page by page.")
@broker_option
@json_option
def list_jobs(
    state: tuple[str, ...],
    limit: int,
    after: str | None,
    everything: bool,
    broker: str | None,
    patience: float,
    as_json: bool,
    **filters: str | bool | datetime | None,
) -> None:
    """List jobs: live ones first, then ended ones, each newest first.

    If there are more than --limit, where to go on stands on stderr.
    """
    given: dict[str, Any] = {name: value for name, value in filters.items() if value is not None}
    if state:
        given["state"] = state
    with _connect(broker, patience) as client:
        heading = True
        while True:
            page = client.list(limit=PAGE_JOBS if everything else limit, after=after, **given)
            write_list(page, as_json=as_json, heading=heading)
            after, heading = page.after, False
            if after is None or not everything:
                break
    if after is not None:
        write_more(after, as_json=as_json)


@click.command()
@broker_option
@json_option
def stats(broker: str | None, patience: float, as_json: bool) -> None:
    """Show the broker's counts."""
    with _connect(broker, patience) as client:
        write_counts(client.stats(), as_json=as_json)


@click.command(short_help="Ask whether the broker is there.")
@broker_option
@json_option
def ping(broker: str | None, patience: float, as_json: bool) -> None:
    """Ask whether the broker is there, which version it is, and how long it takes to answer."""
    with _connect(broker, patience) as client:
        client.ping()  # the first one also connects
        start = time.perf_counter()
        version = client.ping()
        took_s = time.perf_counter() - start
        if as_json:
            write_json({"endpoint": client.endpoint, "version": version, "round_trip": took_s})
        else:
            version = clean(version)
            click.echo(f"pointsman {version} at {client.endpoint} in {took_s * 1000:.2f} ms")


def _connect(broker: str | None, patience_s: float) -> Client:
    invocation = click.get_current_context().find_object(Invocation) or Invocation()
    return Client(broker, timeout=patience_s, key=invocation.key, broker_key=invocation.broker_key)


def _wait_for(client: Client, ids: Sequence[UUID], timeout_s: float | None, as_json: bool) -> int:
    """Wait and show; the exit code says how the jobs ended."""
    try:
        jobs = client.wait(list(ids), timeout=timeout_s)
    except WaitTimeout as error:
        raise CommandError(str(error), "timeout", ids=error.ids) from None
    _write_jobs(jobs, as_json)
    return EXIT_REFUSED if any(job.state != "finished" for job in jobs) else 0


def _write_jobs(jobs: Sequence[JobStatus], as_json: bool) -> None:
    for place, job in enumerate(jobs):
        if place and not as_json:
            click.echo()
        write_job(job, as_json=as_json)


def _change(
    change: Callable[[Client, list[UUID]], Sequence[UUID]],
    ids: tuple[UUID, ...],
    broker: str | None,
    patience_s: float,
    as_json: bool,
) -> None:
    with _connect(broker, patience_s) as client:
        changed = change(client, list(ids))
    if as_json:
        write_json({"ids": changed})
    else:
        for id in changed:
            click.echo(str(id))


COMMANDS: tuple[click.Command, ...] = (
    enqueue,
    status,
    wait,
    cancel,
    list_jobs,
    retry,
    delete,
    stats,
    ping,
)
