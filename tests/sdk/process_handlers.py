"""Handlers that run in processes of their own: found there by name."""

import os
import signal
import time
from typing import Any

from worker_sdk import Job, JobRejected


def pid(job: Job) -> int:
    return os.getpid()


def total(job: Job) -> int:
    job.progress("adding")
    return int(sum(job.inputs.values()) + job.args)


def hang(job: Job) -> None:
    job.progress(os.getpid())
    time.sleep(60)


def hang_unimpressed(job: Job) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hang(job)


def leave(job: Job) -> None:
    os._exit(7)


def crash(job: Job) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def reject(job: Job) -> None:
    raise JobRejected("never again")


def broken_result(job: Job) -> Any:
    return float("nan")
