"""Giving out what is ready: which worker gets which jobs."""

from __future__ import annotations

from msgspec import UNSET, Raw, Struct, UnsetType

from broker.core.job import Job
from broker.core.lanes import Lane
from broker.core.life import Life
from broker.core.workers import Origin, Pool, Worker


class Dispatch(Struct, eq=False):
    """Running attempts to send to the worker that got them, as they are after the commit."""

    origin: Origin
    jobs: list[Job]
    req: Raw | UnsetType = UNSET


def give_out(life: Life) -> list[Dispatch]:
    """Start all jobs that workers have credit for; what each of those workers got."""
    for worker in life.moved:
        if worker.pool.update(worker):
            life.stirred[worker.pool] = None
    life.moved.clear()
    served: dict[Worker, None] = {}
    for pool in life.stirred:
        _serve(life, pool, served)
    life.stirred.clear()
    dispatches = []
    for worker in served:
        dispatches.append(Dispatch(worker.origin, worker.outgoing))
        worker.outgoing = []
    return dispatches


def _serve(life: Life, pool: Pool, served: dict[Worker, None]) -> None:
    """Give out jobs until the pool has no free worker or no ready job."""
    while (worker := pool.least_loaded()) is not None:
        lane = pool.best_lane()
        if lane is None:
            return
        if len(lane.pools) > 1:
            for other in lane.pools:
                rival = other.least_loaded()
                if (
                    rival is not None
                    and len(rival.running) < len(worker.running)
                    and other.best_lane() is lane
                ):
                    worker = rival
        _give_run(life, worker, lane)
        served[worker] = None
        worker.pool.update(worker)


def _give_run(life: Life, worker: Worker, lane: Lane) -> None:
    """Give some jobs to one worker, the first of them from `lane`, in the order of its pool."""
    pool = worker.pool
    left = pool.run_length(worker, lane)
    while left > 0:
        # One by one where the best of the next may be elsewhere.
        several = pool.has_several_heads
        jobs = lane.take(1 if several else left)
        if not jobs:
            return
        life.start(jobs, worker)
        left -= len(jobs)
        if several:
            best = pool.best_lane()
            if best is None:
                return
            if best is not lane:
                if len(best.pools) > 1:
                    return  # somebody in another pool may be the one for this
                lane = best
