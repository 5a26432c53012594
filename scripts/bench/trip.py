"""``python -m scripts.bench.trip``: where the time of one job alone goes, step by step.

Broker, worker and client run as ever, each with a clock beside its seams; the clock is the
machine's and so the same for all three. What is shown are medians over all trips, in the order in
which things happen; writing the stamps down makes a trip a few microseconds longer.
"""

import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from broker import server
from broker.config import Config
from broker.core.engine import Engine
from broker.store import open_store
from broker.watch import Watch
from scripts.bench.clients import ARGS, WARM_UP_TRIPS
from scripts.bench.processes import Say, start
from scripts.bench.statistics import median
from scripts.bench.workers import TYPE
from worker_sdk import Client, Job, Worker, dealer, pool
from worker_sdk.exchange import Exchange
from worker_sdk.rest import Rest

PATH = (
    "client: called",
    "client: sends",
    "broker: woken",
    "broker: decoded",
    "broker: applied",
    "broker: sends",
    "worker: woken",
    "worker: handler",
    "worker: sends",
    "broker: woken",
    "broker: decoded",
    "broker: applied",
    "broker: sends",
    "client: woken",
    "client: returns",
)

Stamp = tuple[str, float]


class Stamps:
    """What happened in this process, and when."""

    def __init__(self) -> None:
        self.taken: list[Stamp] = []

    def take(self, name: str) -> None:
        """Note that something happens now."""
        self.taken.append((name, time.monotonic()))

    def at(self, owner: Any, function: str, *, before: str = "", after: str = "") -> None:
        """Note each call of a function of a class or module: when it begins, when it returns."""
        original: Callable[..., Any] = getattr(owner, function)

        def stamped(*args: Any, **named: Any) -> Any:
            if before:
                self.take(before)
            result = original(*args, **named)
            if after:
                self.take(after)
            return result

        setattr(owner, function, stamped)


# ---- the three processes ---------------------------------------------------------------------


def broker_side(say: Say, store: str) -> None:
    """A broker, until it is told to leave; then it says its stamps."""
    stamps = Stamps()
    stamps.at(Watch, "wait", after="broker: woken")
    stamps.at(Engine, "apply", before="broker: decoded", after="broker: applied")
    stamps.at(server, "send_frames", before="broker: sends")
    running = server.Server(Config(bind=("tcp://127.0.0.1:*",)), open_store(store))

    def leave(*_: object) -> None:
        running.drain()
        running.drain()

    signal.signal(signal.SIGTERM, leave)
    say(running.endpoints[0])
    running.run()
    say(stamps.taken)


def worker_side(say: Say, endpoint: str) -> None:
    """A worker, until it is told to leave; then it says its stamps."""
    stamps = Stamps()
    stamps.at(Rest, "rest", after="worker: woken")
    stamps.at(dealer, "send_frames", before="worker: sends")
    worker = Worker(endpoint, concurrency=1)

    @worker.job(TYPE)
    def do_nothing(job: Job) -> None:
        stamps.take("worker: handler")

    say("ready")
    worker.run()
    say(stamps.taken)


def client_side(say: Say, endpoint: str, trips: int) -> None:
    """Trips one after the other; says its stamps."""
    stamps = Stamps()
    stamps.at(pool, "send_frames", before="client: sends")
    stamps.at(Exchange, "receive", before="client: woken")
    with Client(endpoint) as caller:
        for _ in range(WARM_UP_TRIPS):
            caller.run(TYPE, ARGS)
        stamps.taken.clear()
        for _ in range(trips):
            stamps.take("client: called")
            caller.run(TYPE, ARGS)
            stamps.take("client: returns")
    say(stamps.taken)


# ---- what they come to -----------------------------------------------------------------------


def measure(store: str, trips: int) -> list[Stamp]:
    """All stamps of all processes, in order."""
    here = "scripts.bench.trip"
    stamps: list[Stamp] = []
    with tempfile.TemporaryDirectory(prefix="pm-trip-") as place:
        folder = Path(place)
        url = "memory" if store == "memory" else f"sqlite:{folder / 'jobs.db'}"
        with start(f"{here}:broker_side", folder, store=url) as broker:
            endpoint = broker.hear()
            with start(f"{here}:worker_side", folder, endpoint=endpoint) as worker:
                worker.hear()
                with start(f"{here}:client_side", folder, endpoint=endpoint, trips=trips) as caller:
                    stamps += caller.hear()
                worker.ask_to_leave()
                stamps += worker.hear()
            broker.ask_to_leave()
            stamps += broker.hear()
    return sorted(stamps, key=lambda stamp: stamp[1])


def steps(stamps: list[Stamp]) -> Iterator[tuple[str, float]]:
    """Each step of a trip with the median of its microseconds."""
    begins = [at for at, (name, _) in enumerate(stamps) if name == PATH[0]]
    trips = [
        times
        for begin, end in pairwise([*begins, len(stamps)])
        if (times := _times_of(stamps[begin:end])) is not None
    ]
    if not trips:
        raise click.ClickException("no trip went the usual way")
    for number, (before, name) in enumerate(pairwise(PATH)):
        took = [times[number + 1] - times[number] for times in trips]
        yield f"{before} -> {name}", median(took) * 1e6


def _times_of(trip: list[Stamp]) -> list[float] | None:
    """When each step of PATH was reached: for the first time after the one before."""
    times: list[float] = []
    found = iter(trip)
    for wanted in PATH:
        at = next((at for name, at in found if name == wanted), None)
        if at is None:
            return None
        times.append(at)
    return times


@click.command()
@click.option("--store", type=click.Choice(["memory", "sqlite"]), default="memory")
@click.option("--trips", type=click.IntRange(1), default=2_000, show_default=True)
def main(store: str, trips: int) -> None:
    """Show the steps of one job's trip from the client's call to its return, in microseconds."""
    total = 0.0
    for name, took_us in steps(measure(store, trips)):
        total += took_us
        click.echo(f"{took_us:7.0f}  {name}")
    click.echo(f"{total:7.0f}  in all")


if __name__ == "__main__":
    main()
