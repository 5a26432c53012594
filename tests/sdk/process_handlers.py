"""Handlers that run in processes of their own: found there by name."""

import os
import signal
import threading
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

from worker_sdk import Job, JobRejected, Worker


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


_go_on = threading.Event()
_left_behind: list[threading.Thread] = []


def leave_a_thread_behind(job: Job) -> None:
    def report_late() -> None:
        _go_on.wait()
        job.progress("late")

    _left_behind.append(threading.Thread(target=report_late, daemon=True))
    _left_behind[0].start()
    job.progress("in time")


def let_it_report(job: Job) -> None:
    _go_on.set()
    _left_behind[0].join()
    job.progress("its own")


worker = Worker(executor="process")
hiding_worker = Worker(executor="process")


def doubled(function: Callable[[Job], int]) -> Callable[[Job], int]:
    @wraps(function)
    def call(job: Job) -> int:
        return 2 * function(job)

    return call


@worker.job("two")
@worker.job("again two")
@doubled
def two(job: Job) -> int:
    return 1


@doubled
@hiding_worker.job("one")
def one(job: Job) -> int:
    return 1


class Counting:
    @staticmethod
    def static(job: Job) -> int:
        return 1

    @classmethod
    def of_class(cls, job: Job) -> int:
        return 1

    def of_object(self, job: Job) -> int:
        return 1
