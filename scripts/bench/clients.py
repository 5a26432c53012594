"""What the client processes of the benchmark do, by the public API and nothing else.

Each says the seconds (or the times of round trips) that it took, and what it used of the CPU.
The time starts before the first job is made and ends when the broker has recorded the result of
the last: the client runs one more job, behind all others, and then asks for the broker's totals
until these say that all have finished (with one worker they do at once). Both cost next to
nothing, whatever the number of jobs.
"""

import asyncio
import resource
import time
from collections.abc import Awaitable, Callable
from typing import Any

from scripts.bench.processes import Say
from scripts.bench.statistics import percentile
from scripts.bench.workers import TYPE
from worker_sdk import AsyncClient, Client, JobSpec, WorkerSession

ARGS = {"payload": "x" * 86}
"""100 bytes of JSON."""
CALLERS = 1000
"""W1 single: coroutines that enqueue one job after the other; as many as the relay's window."""
CHUNK_JOBS = 2_000
"""W1 bulk: jobs in one call of ``enqueue_many``; from 1,000 to 10,000 it makes no difference."""
CHUNKS_UNDER_WAY = 2
WARM_UP_JOBS = 1_000
WARM_UP_TRIPS = 200
TIMEOUT_S = 300.0


# ---- W1 --------------------------------------------------------------------------------------


def single(say: Say, endpoint: str, jobs: int) -> None:
    """Each job by its own call of ``AsyncClient.enqueue``."""
    _say_seconds(say, endpoint, jobs, _enqueue_singly)


def bulk(say: Say, endpoint: str, jobs: int) -> None:
    """All jobs by ``AsyncClient.enqueue_many``, in chunks."""
    _say_seconds(say, endpoint, jobs, _enqueue_in_chunks)


async def _enqueue_singly(client: AsyncClient, jobs: int) -> None:
    left = iter(range(jobs))

    async def caller() -> None:
        for _ in left:
            await client.enqueue(TYPE, ARGS)

    await asyncio.gather(*(caller() for _ in range(min(CALLERS, jobs))))


async def _enqueue_in_chunks(client: AsyncClient, jobs: int) -> None:
    starts = iter(range(0, jobs, CHUNK_JOBS))

    async def caller() -> None:
        for start in starts:
            count = min(CHUNK_JOBS, jobs - start)
            await client.enqueue_many([JobSpec(TYPE, ARGS) for _ in range(count)])

    await asyncio.gather(*(caller() for _ in range(CHUNKS_UNDER_WAY)))


def _say_seconds(
    say: Say, endpoint: str, jobs: int, enqueue: Callable[[AsyncClient, int], Awaitable[None]]
) -> None:
    async def measure() -> None:
        async with AsyncClient(endpoint, timeout=TIMEOUT_S) as client:
            await enqueue(client, WARM_UP_JOBS)
            await _until_all_finished(client)
            used_before, began = _cpu_s(), time.perf_counter()
            await enqueue(client, jobs)
            enqueued = time.perf_counter()
            await _until_all_finished(client)
            ended = time.perf_counter()
            cpu = {"client us": round((_cpu_s() - used_before) / jobs * 1e6, 2)}
            say({"seconds": ended - began, "enqueue_s": enqueued - began, "cpu": cpu})

    asyncio.run(measure())


async def _until_all_finished(client: AsyncClient) -> None:
    # A job behind all others: when it has ended they have, but for those of other workers.
    await client.run(TYPE)
    while True:
        totals = (await client.stats())["totals"]
        if totals["finished"] == totals["enqueued"]:
            return
        await asyncio.sleep(0.001)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# ---- W2 --------------------------------------------------------------------------------------


def latency(say: Say, endpoint: str, way: str, trips: int) -> None:
    """One job at a time, until its result is here: times of the round trips.

    `way`: "run" and "enqueue, result" by Client, "async run" by AsyncClient.
    """
    if way == "async run":
        asyncio.run(_async_trips(say, endpoint, trips))
        return
    with Client(endpoint) as client:

        def enqueue_and_ask() -> None:
            client.result(client.enqueue(TYPE, ARGS))

        def run() -> None:
            client.run(TYPE, ARGS)

        trip = run if way == "run" else enqueue_and_ask
        clock = time.perf_counter
        times = []
        for _ in range(WARM_UP_TRIPS):
            trip()
        used_before = _cpu_s()
        for _ in range(trips):
            began = clock()
            trip()
            times.append(clock() - began)
        _say_times(say, times, _cpu_s() - used_before)


async def _async_trips(say: Say, endpoint: str, trips: int) -> None:
    async with AsyncClient(endpoint) as client:
        clock = time.perf_counter
        times = []
        for _ in range(WARM_UP_TRIPS):
            await client.run(TYPE, ARGS)
        used_before = _cpu_s()
        for _ in range(trips):
            began = clock()
            await client.run(TYPE, ARGS)
            times.append(clock() - began)
        _say_times(say, times, _cpu_s() - used_before)


def _say_times(say: Say, times: list[float], cpu_s: float) -> None:
    say(
        {
            "p50_us": percentile(times, 50) * 1e6,
            "p99_us": percentile(times, 99) * 1e6,
            "cpu": {"client us": round(cpu_s / len(times) * 1e6, 2)},
        }
    )


# ---- W3, W4 ----------------------------------------------------------------------------------


def chain(say: Say, endpoint: str, jobs: int) -> None:
    """Jobs of which each depends on the one before, enqueued up front.

    The chain's first job is held back until all is enqueued. Its time is that from when the
    first was dispatched until the last was recorded, as the broker saw it.
    """
    with Client(endpoint, timeout=TIMEOUT_S) as client:
        _warm_up(client)
        used_before = _cpu_s()
        hold = JobSpec("held back", ARGS)
        specs = [JobSpec(TYPE, ARGS, dependencies=[hold])]
        for _ in range(jobs - 1):
            specs.append(JobSpec(TYPE, ARGS, dependencies=[specs[-1]]))
        client.enqueue_many([hold, *specs])
        _let_go(endpoint)
        last = client.wait(specs[-1].id, timeout=TIMEOUT_S)
        first = client.status(specs[0].id)
        if first.started is None or last.finished is None:
            raise RuntimeError(f"the chain did not finish: {last}")
        cpu = {"client us": round((_cpu_s() - used_before) / jobs * 1e6, 2)}
        say({"seconds": (last.finished - first.started).total_seconds(), "cpu": cpu})


def _let_go(endpoint: str) -> None:
    with WorkerSession(types=["held back"], endpoint=endpoint) as session:
        job = session.dequeue(timeout=TIMEOUT_S)
        if job is None:
            raise RuntimeError("the job that holds back the chain did not come")
        job.finish()


def fan(say: Say, endpoint: str, children: int) -> None:
    """One root, `children` that depend on it, and a sink that depends on all of them.

    The time is from before the jobs are made until the sink's result is here.
    """
    with Client(endpoint, timeout=TIMEOUT_S) as client:
        _warm_up(client)
        used_before, began = _cpu_s(), time.perf_counter()
        root = JobSpec(TYPE, ARGS)
        middle = [JobSpec(TYPE, ARGS, dependencies=[root]) for _ in range(children)]
        sink = JobSpec(TYPE, ARGS, dependencies=middle)
        client.enqueue_many([root, *middle, sink])
        enqueued = time.perf_counter()
        client.result(sink.id, timeout=TIMEOUT_S)
        ended = time.perf_counter()
        cpu = {"client us": round((_cpu_s() - used_before) / (children + 2) * 1e6, 2)}
        say({"seconds": ended - began, "enqueue_s": enqueued - began, "cpu": cpu})


def _warm_up(client: Client) -> None:
    for _ in range(WARM_UP_TRIPS):
        client.run(TYPE)


# ---- W5 --------------------------------------------------------------------------------------


def fill(say: Say, endpoint: str, jobs: int) -> None:
    """Enqueue jobs by ``enqueue_many`` and run none: how long that takes."""

    async def measure() -> None:
        async with AsyncClient(endpoint, timeout=TIMEOUT_S) as client:
            await client.ping()
            began = time.perf_counter()
            await _enqueue_in_chunks(client, jobs)
            say({"seconds": time.perf_counter() - began})

    asyncio.run(measure())


def queued(say: Say, endpoint: str) -> None:
    """How many jobs are ready."""
    with Client(endpoint, timeout=TIMEOUT_S) as client:
        stats: dict[str, Any] = client.stats()
        say(stats["jobs"]["ready"] + stats["jobs"]["running"])
