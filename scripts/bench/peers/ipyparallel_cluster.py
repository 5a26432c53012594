"""ipyparallel: a controller and one engine, through a load-balanced view."""

import importlib
import importlib.metadata
import os
import time
from collections.abc import Iterator
from typing import Any

from scripts.bench.clients import ARGS
from scripts.bench.figures import Figure
from scripts.bench.peers import rows
from scripts.bench.peers.trips import timed
from scripts.bench.processes import Say, run
from scripts.bench.setting import Setting

NAME = "ipyparallel"
DIFFERS = "keeps everything in memory; a job is lost with its engine or its controller."
CHUNK_JOBS = 100


def version() -> str | None:
    """The installed version."""
    try:
        return importlib.metadata.version("ipyparallel")
    except importlib.metadata.PackageNotFoundError:
        return None


def measure(setting: Setting) -> Iterator[Figure]:
    """Rates, by single calls and by a map in chunks, and round trips."""
    sizes = setting.sizes
    found = run(
        "scripts.bench.peers.ipyparallel_cluster:ask",
        setting.folder,
        jobs=sizes.slow_jobs,
        trips=sizes.trips // 4,
    )
    yield rows.rate(NAME, "each by its own call", found["rate"])
    yield rows.rate(NAME, f"map, {CHUNK_JOBS} jobs a message", found["bulk_rate"])
    yield from rows.round_trips(NAME, found)


def nothing(args: Any = None) -> None:
    """The job."""
    return


def ask(say: Say, jobs: int, trips: int) -> None:
    """Rates until all results are here, and round trips."""
    os.environ["IPYTHONDIR"] = str(os.getcwd())
    ipyparallel = importlib.import_module("ipyparallel")
    with ipyparallel.Cluster(n=1, log_level=40) as client:
        view = client.load_balanced_view()

        def trip() -> None:
            view.apply_sync(nothing, ARGS)

        times = timed(trip, trips)
        began = time.perf_counter()
        results = [view.apply_async(nothing, ARGS) for _ in range(jobs)]
        client.wait(results)
        rate = jobs / (time.perf_counter() - began)
        began = time.perf_counter()
        view.map(nothing, [ARGS] * (5 * jobs), chunksize=CHUNK_JOBS, ordered=False).get()
        bulk_rate = 5 * jobs / (time.perf_counter() - began)
    # Only now: whoever hears this ends this process, and the cluster outlives it.
    say({"rate": rate, "bulk_rate": bulk_rate, **times})
