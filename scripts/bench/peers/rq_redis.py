"""RQ on Redis."""

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

NAME = "RQ on Redis"
DIFFERS = (
    f"{redis_server.DURABILITY}. Worker: SimpleWorker, which runs jobs in its own process; the "
    "usual one forks for each job."
)


def nothing(args: Any = None) -> None:
    """The job."""
    return


def version() -> str | None:
    """The installed version."""
    return redis_server.version_of("rq")


def measure(setting: Setting) -> Iterator[Figure]:
    """Rate, by single calls and in bulk, and round trips."""
    here = "scripts.bench.peers.rq_redis"
    sizes = setting.sizes
    with ExitStack() as stack:
        port = stack.enter_context(server(setting.folder, redis_server.command))
        stack.enter_context(start(f"{here}:work", setting.folder, port=port))
        found = run(
            f"{here}:ask", setting.folder, port=port, jobs=sizes.slow_jobs, trips=sizes.trips // 4
        )
        yield rows.rate(NAME, "each by its own call", found["rate"])
        yield rows.rate(NAME, "in bulk", found["bulk_rate"])
        yield from rows.round_trips(NAME, found)


def _queue(port: int) -> Any:
    redis, rq = importlib.import_module("redis"), importlib.import_module("rq")
    return rq.Queue(connection=redis.Redis(port=port))


def work(say: Say, port: int) -> None:
    """A worker, until killed."""
    queue = _queue(port)
    rq = importlib.import_module("rq")
    rq.SimpleWorker([queue], connection=queue.connection).work(logging_level="ERROR")


def ask(say: Say, port: int, jobs: int, trips: int) -> None:
    """Rates until the last result is here, and round trips."""
    queue = _queue(port)

    def trip() -> None:
        queue.enqueue(nothing, ARGS).latest_result(timeout=60)

    times = timed(trip, trips)
    began = time.perf_counter()
    for _ in range(jobs):
        last = queue.enqueue(nothing, ARGS)
    last.latest_result(timeout=600)
    rate = jobs / (time.perf_counter() - began)
    began = time.perf_counter()
    prepared = [queue.prepare_data(nothing, (ARGS,)) for _ in range(jobs)]
    queue.enqueue_many(prepared)[-1].latest_result(timeout=600)
    say({"rate": rate, "bulk_rate": jobs / (time.perf_counter() - began), **times})
