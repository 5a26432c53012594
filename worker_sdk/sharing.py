"""Jobs that the asynchronous client enqueues in the same turn of the loop share a message.

A message is accepted or refused whole, so when a shared one is refused its jobs are sent again,
each on its own, and only the culprit's caller gets the error. Nobody ever waits for others to come
along.
"""

import asyncio
import copy
from typing import NamedTuple

from worker_sdk.encoding import ENVELOPE_BYTES, as_list
from worker_sdk.errors import PointsmanError
from worker_sdk.exchange import Call, Exchange
from worker_sdk.requests import enqueue_message

MOST_JOBS_SHARED = 1000
MOST_BYTES_SHARED = 1024 * 1024


class NewJob(NamedTuple):
    """A job of ``enqueue``, and whom to tell that it is safely with the broker."""

    encoded: bytes
    enqueued: asyncio.Future[None]


class Shared:
    """The jobs that went in one message."""

    __slots__ = ("jobs", "refusals")

    def __init__(self, jobs: list[NewJob], refusals: int) -> None:
        self.jobs = jobs
        # How many messages had been taken apart when this one was made: if another has been
        # since, this one may have been refused only because its jobs depend on that one's.
        self.refusals = refusals


class Sharing:
    """Gathers jobs and puts them into messages; the calls that it starts have a Shared."""

    def __init__(self, exchange: Exchange, limit_bytes: int) -> None:
        self._exchange = exchange
        self._most_bytes = min(MOST_BYTES_SHARED, limit_bytes) - ENVELOPE_BYTES
        # What goes out in the next turn of the loop.
        self._gathered: list[NewJob] = []
        # Shared messages that were refused and taken apart so far.
        self._refusals = 0

    def gather(self, job: NewJob) -> None:
        """Have a job go out with the next ``share``."""
        self._gathered.append(job)

    def share(self, now: float) -> None:
        """Put what was gathered into as few messages as may be."""
        if not self._gathered:
            return
        gathered, self._gathered = self._gathered, []
        shared: list[NewJob] = []
        shared_bytes = 0
        for job in gathered:
            job_bytes = len(job.encoded) + 1
            if shared and (
                shared_bytes + job_bytes > self._most_bytes or len(shared) == MOST_JOBS_SHARED
            ):
                self._start(shared, now)
                shared, shared_bytes = [], 0
            shared.append(job)
            shared_bytes += job_bytes
        self._start(shared, now)

    def _start(self, jobs: list[NewJob], now: float) -> None:
        message = enqueue_message(as_list([job.encoded for job in jobs]))
        self._exchange.start(message, now, context=Shared(jobs, self._refusals))

    def settled(self, call: Call, shared: Shared, now: float) -> None:
        """Tell those whose jobs were in the call; or send these again, each on its own."""
        error = call.outcome
        if not isinstance(error, PointsmanError):
            for _, enqueued in shared.jobs:
                if not enqueued.done():
                    enqueued.set_result(None)
            return
        by_broker = bool(error.code) and error.code != "busy"
        alone = len(shared.jobs) == 1 and shared.refusals == self._refusals
        if not by_broker or alone:
            fail_all(shared.jobs, error)
            return
        self._refusals += 1
        for job in shared.jobs:
            self._start([job], now)

    def give_up(self, why: PointsmanError) -> None:
        """Fail what was gathered."""
        gathered, self._gathered = self._gathered, []
        fail_all(gathered, why)


def fail_all(jobs: list[NewJob], error: PointsmanError) -> None:
    """Each caller gets an exception of its own, since raising one writes to it."""
    for _, enqueued in jobs:
        if not enqueued.done():
            enqueued.set_exception(copy.copy(error))
