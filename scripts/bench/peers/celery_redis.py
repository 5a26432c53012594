"""Celery on Redis: broker and result backend."""

import importlib
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from scripts.bench.clients import ARGS
from scripts.bench.figures import Figure
from scripts.bench.peers import redis_server, rows
from scripts.bench.peers.server import server
from scripts.bench.peers.trips import timed
from scripts.bench.processes import Say, run, start
from scripts.bench.setting import Setting

NAME = "Celery on Redis"
DIFFERS = (
    f"{redis_server.DURABILITY}; a task is acknowledged before it runs, so a killed worker loses "
    "what it has prefetched. Worker: pool solo, no gossip, mingle or heartbeat, prefetch 64."
)
TASK = "noop"


def version() -> str | None:
    """The installed version."""
    return redis_server.version_of("celery")


def measure(setting: Setting) -> Iterator[Figure]:
    """Rate, round trips and a chain."""
    here = "scripts.bench.peers.celery_redis"
    sizes = setting.sizes
    with ExitStack() as stack:
        port = stack.enter_context(server(setting.folder, redis_server.command))
        stack.enter_context(start(f"{here}:work", setting.folder, port=port))
        found = run(
            f"{here}:ask", setting.folder, port=port, jobs=sizes.slow_jobs, trips=sizes.trips // 4
        )
        yield rows.rate(NAME, "each by its own call", found["rate"])
        yield from rows.round_trips(NAME, found)
        yield rows.hop(NAME, found["hop_s"])


def _app(port: int) -> Any:
    celery = importlib.import_module("celery")
    app = celery.Celery("bench", broker=redis_server.url(port), backend=redis_server.url(port))
    app.conf.update(worker_prefetch_multiplier=64, task_track_started=False)

    def noop(args: Any = None) -> None:
        return None

    app.task(name=TASK)(noop)
    return app


def work(say: Say, port: int) -> None:
    """A worker, until killed."""
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=ERROR"]
    _app(port).worker_main(["worker", "--pool=solo", "--concurrency=1", *quiet])


def ask(say: Say, port: int, jobs: int, trips: int) -> None:
    """The rate until the last result is here, round trips, and the time of a hop in a chain."""
    task = _app(port).tasks[TASK]

    def trip() -> None:
        task.delay(ARGS).get()

    times = timed(trip, trips)
    began = time.perf_counter()
    results = [task.delay(ARGS) for _ in range(jobs)]
    results[-1].get()
    rate = jobs / (time.perf_counter() - began)
    chain = importlib.import_module("celery").chain
    hops = max(2, jobs // 10)
    began = time.perf_counter()
    chain(*(task.si(ARGS) for _ in range(hops))).apply_async().get()
    say({"rate": rate, **times, "hop_s": (time.perf_counter() - began) / hops})
