"""Dask distributed: a scheduler and one worker with one thread."""

import asyncio
import importlib
import importlib.metadata
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from scripts.bench.clients import ARGS
from scripts.bench.figures import Figure
from scripts.bench.peers import rows
from scripts.bench.peers.trips import timed
from scripts.bench.processes import Say, run, start
from scripts.bench.setting import Setting

NAME = "Dask distributed"
DIFFERS = (
    "keeps everything in memory, and forgets a job as soon as the client that submitted it is "
    "gone; jobs may depend on others, and results stay on the workers."
)


def version() -> str | None:
    """The installed version."""
    try:
        return importlib.metadata.version("distributed")
    except importlib.metadata.PackageNotFoundError:
        return None


def measure(setting: Setting) -> Iterator[Figure]:
    """Rates, round trips, a chain and a fan."""
    here = "scripts.bench.peers.dask_scheduler"
    sizes = setting.sizes
    with ExitStack() as stack:
        scheduler = stack.enter_context(start(f"{here}:schedule", setting.folder))
        address = scheduler.hear()
        stack.enter_context(start(f"{here}:work", setting.folder, address=address))
        found = run(
            f"{here}:ask",
            setting.folder,
            address=address,
            jobs=sizes.slow_jobs,
            trips=sizes.trips // 4,
        )
    yield rows.rate(NAME, "each by its own call", found["rate"])
    yield rows.rate(NAME, "in bulk (map)", found["bulk_rate"])
    yield from rows.round_trips(NAME, found)
    yield rows.hop(NAME, found["hop_s"])


def schedule(say: Say) -> None:
    """The scheduler, until killed."""
    distributed = importlib.import_module("distributed")

    async def serve() -> None:
        async with distributed.Scheduler(
            host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0"
        ) as scheduler:
            say(scheduler.address)
            await scheduler.finished()

    asyncio.run(serve())


def work(say: Say, address: str) -> None:
    """The worker, until killed."""
    distributed = importlib.import_module("distributed")

    async def serve() -> None:
        async with distributed.Worker(
            address, nthreads=1, host="127.0.0.1", dashboard=False
        ) as worker:
            await worker.finished()

    asyncio.run(serve())


def nothing(args: Any = None) -> None:
    """The job."""
    return


def ask(say: Say, address: str, jobs: int, trips: int) -> None:
    """Rates until all results are here, round trips, and the time of a hop."""
    distributed = importlib.import_module("distributed")
    client = distributed.Client(address)
    client.wait_for_workers(1)

    def trip() -> None:
        client.submit(nothing, ARGS, pure=False).result()

    times = timed(trip, trips)
    began = time.perf_counter()
    client.gather([client.submit(nothing, ARGS, pure=False) for _ in range(jobs)])
    rate = jobs / (time.perf_counter() - began)
    began = time.perf_counter()
    client.gather(client.map(nothing, [ARGS] * jobs, pure=False))
    bulk_rate = jobs / (time.perf_counter() - began)
    hops = max(2, jobs // 4)
    began = time.perf_counter()
    future = client.submit(nothing, ARGS, pure=False)
    for _ in range(hops - 1):
        future = client.submit(nothing, future, pure=False)
    future.result()
    hop_s = (time.perf_counter() - began) / hops
    say({"rate": rate, "bulk_rate": bulk_rate, "hop_s": hop_s, **times})
