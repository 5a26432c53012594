"""Dramatiq on Redis: broker and result backend."""

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

NAME = "Dramatiq on Redis"
DIFFERS = f"{redis_server.DURABILITY}. Worker: one process with 8 threads, its default."
TIMEOUT_MS = 600_000


def version() -> str | None:
    """The installed version."""
    return redis_server.version_of("dramatiq")


def measure(setting: Setting) -> Iterator[Figure]:
    """Rate and round trips."""
    here = "scripts.bench.peers.dramatiq_redis"
    sizes = setting.sizes
    with ExitStack() as stack:
        port = stack.enter_context(server(setting.folder, redis_server.command))
        stack.enter_context(start(f"{here}:work", setting.folder, port=port))
        found = run(
            f"{here}:ask", setting.folder, port=port, jobs=sizes.slow_jobs, trips=sizes.trips // 4
        )
        yield rows.rate(NAME, "each by its own call", found["rate"])
        yield from rows.round_trips(NAME, found)


def _actor(port: int) -> tuple[Any, Any]:
    dramatiq = importlib.import_module("dramatiq")
    brokers = importlib.import_module("dramatiq.brokers.redis")
    results = importlib.import_module("dramatiq.results")
    backends = importlib.import_module("dramatiq.results.backends")
    broker = brokers.RedisBroker(url=redis_server.url(port))
    broker.add_middleware(
        results.Results(backend=backends.RedisBackend(url=redis_server.url(port)))
    )
    dramatiq.set_broker(broker)

    def noop(args: Any = None) -> None:
        return None

    return broker, dramatiq.actor(noop, store_results=True)


def work(say: Say, port: int) -> None:
    """A worker, until killed."""
    broker, _ = _actor(port)
    worker = importlib.import_module("dramatiq").Worker(broker, worker_threads=8)
    worker.start()
    while True:
        time.sleep(60)


def ask(say: Say, port: int, jobs: int, trips: int) -> None:
    """The rate until all results are here, and round trips."""
    _, actor = _actor(port)

    def trip() -> None:
        actor.send(ARGS).get_result(block=True, timeout=TIMEOUT_MS)

    times = timed(trip, trips)
    began = time.perf_counter()
    messages = [actor.send(ARGS) for _ in range(jobs)]
    for message in messages[-8:]:
        message.get_result(block=True, timeout=TIMEOUT_MS)
    say({"rate": jobs / (time.perf_counter() - began), **times})
