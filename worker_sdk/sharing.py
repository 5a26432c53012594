"""Jobs that the asynchronous client enqueues in the same turn of the loop share a message.

A message is accepted or refused whole, so when a shared one is refused its jobs are sent again,
each on its own, and only the culprit's caller gets the error. Nobody ever waits for others to come
along. Only while the broker is asked how large a message may be, all jobs wait for that, so that
they keep their order: a later one may depend on an earlier one. Other calls do not wait for them.
"""

import asyncio
import copy
from typing import NamedTuple

from worker_sdk.encoding import ENVELOPE_BYTES, as_list
from worker_sdk.errors import PointsmanError
from worker_sdk.exchange import Call, Exchange
from worker_sdk.graph import JobSpec, too_large
from worker_sdk.limit import MessageLimit
from worker_sdk.messages import Ping
from worker_sdk.requests import enqueue_message

MOST_JOBS_SHARED = 1000
MOST_BYTES_SHARED = 1024 * 1024


class NewJob(NamedTuple):
    """A job of ``enqueue``, and whom to tell that it is safely with the broker."""

    spec: JobSpec
    encoded: bytes
    enqueued: asyncio.Future[None]


class Question(NamedTuple):
    """Stands for the question how large a message may be."""

    jobs: int
    """How many had been gathered when it was asked."""


class Shared:
    """The jobs that went in one message."""

    __slots__ = ("jobs", "refusals")

    def __init__(self, jobs: list[NewJob], refusals: int) -> None:
        self.jobs = jobs
        # How many messages had been taken apart when this one was made: if another has been
        # since, this one may have been refused only because its jobs depend on that one's.
        self.refusals = refusals


class Sharing:
    """Gathers jobs and puts them into messages. The calls that it starts have a Shared or, for the
    question that may come first, a Question.
    """

    def __init__(self, exchange: Exchange, limit: MessageLimit) -> None:
        self._exchange = exchange
        self._limit = limit
        # What goes out in the next turn of the loop.
        self._gathered: list[NewJob] = []
        # Whether the broker is being asked for its limit.
        self._is_asking = False
        # Shared messages that were refused and taken apart so far.
        self._refusals = 0

    def gather(self, job: NewJob) -> None:
        """Have a job go out with the next ``share``."""
        self._gathered.append(job)

    def share(self, now: float) -> None:
        """Put what was gathered into as few messages as may be."""
        if not self._gathered or self._is_asking:
            return
        limit_bytes = self._limit.known_for(self._largest_bytes())
        if limit_bytes is not None:
            self._share_within(limit_bytes, now)
        else:
            self._is_asking = True
            self._exchange.start(Ping(), now, context=Question(len(self._gathered)))

    def _largest_bytes(self) -> int:
        """What the largest message takes that the gathered jobs are to be put into."""
        sizes = [len(job.encoded) + 1 for job in self._gathered]
        most_bytes = min(MOST_BYTES_SHARED, self._limit.likely_bytes()) - ENVELOPE_BYTES
        return max(max(sizes), min(sum(sizes), most_bytes)) + ENVELOPE_BYTES

    def _share_within(self, limit_bytes: int, now: float) -> None:
        gathered, self._gathered = self._gathered, []
        most_bytes = min(MOST_BYTES_SHARED, limit_bytes) - ENVELOPE_BYTES
        shared: list[NewJob] = []
        shared_bytes = 0
        for job in gathered:
            job_bytes = len(job.encoded) + 1
            if job_bytes + ENVELOPE_BYTES > limit_bytes:
                fail_all([job], too_large([job.spec], job_bytes + ENVELOPE_BYTES, limit_bytes))
                continue
            if shared and (
                shared_bytes + job_bytes > most_bytes or len(shared) == MOST_JOBS_SHARED
            ):
                self._start(shared, now)
                shared, shared_bytes = [], 0
            shared.append(job)
            shared_bytes += job_bytes
        if shared:
            self._start(shared, now)

    def _start(self, jobs: list[NewJob], now: float) -> None:
        message = enqueue_message(as_list([job.encoded for job in jobs]))
        self._exchange.start(message, now, context=Shared(jobs, self._refusals))

    def settled(self, call: Call, shared: Shared, now: float) -> None:
        """Tell those whose jobs were in the call; or send these again, each on its own."""
        error = call.outcome
        if not isinstance(error, PointsmanError):
            for job in shared.jobs:
                if not job.enqueued.done():
                    job.enqueued.set_result(None)
            return
        by_broker = bool(error.code) and error.code != "busy"
        alone = len(shared.jobs) == 1 and shared.refusals == self._refusals
        if not by_broker or alone:
            fail_all(shared.jobs, error)
            return
        self._refusals += 1
        for job in shared.jobs:
            self._start([job], now)

    def answered(self, call: Call, question: Question, now: float) -> None:
        """Share what waited for the answer to the question."""
        self._is_asking = False
        if isinstance(call.outcome, PointsmanError):
            # What came later has its own time.
            asked, self._gathered = (
                self._gathered[: question.jobs],
                self._gathered[question.jobs :],
            )
            fail_all(asked, call.outcome)
            self.share(now)
        elif call.outcome is not None and self._gathered:
            self._share_within(self._limit.learn(call.outcome), now)

    def give_up(self, why: PointsmanError) -> None:
        """Fail what was gathered."""
        gathered, self._gathered = self._gathered, []
        fail_all(gathered, why)


def fail_all(jobs: list[NewJob], error: PointsmanError) -> None:
    """Each caller gets an exception of its own, since raising one writes to it."""
    for job in jobs:
        if not job.enqueued.done():
            job.enqueued.set_exception(copy.copy(error))
