"""What the worker processes of the benchmark run."""

import time

from scripts.bench.processes import Say
from worker_sdk import Job, Worker

TYPE = "noop"


def noop(say: Say, endpoint: str) -> None:
    """A worker, concurrency 1, whose handler does nothing, until it is told to leave."""
    worker = Worker(endpoint, concurrency=1)

    @worker.job(TYPE)
    def do_nothing(job: Job) -> None:
        return None

    say("ready")
    worker.run()


def rated(say: Say, endpoint: str, skipped: int, counted: int) -> None:
    """The same; says at what rate it ran `counted` jobs, after `skipped` to warm up."""
    worker = Worker(endpoint, concurrency=1)
    ran = 0
    began = 0.0

    @worker.job(TYPE)
    def count(job: Job) -> None:
        nonlocal ran, began
        ran += 1
        if ran == skipped:
            began = time.perf_counter()
        elif ran == skipped + counted:
            say(counted / (time.perf_counter() - began))

    worker.run()
