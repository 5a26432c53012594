"""The job record, its states, and which change of state is legal."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from msgspec import Raw

from worker_sdk.messages import Backoff, Dependency

if TYPE_CHECKING:
    from broker.core.graph import Dependents
    from broker.core.lanes import Lane
    from broker.core.timers import Timer
    from broker.core.workers import Worker


class State(IntEnum):
    """Where a job is in its life; the three last ones end it."""

    BLOCKED = 0
    """Waits for dependencies."""
    SCHEDULED = 1
    """Waits for a time: its delay, or the back-off before a retry."""
    READY = 2
    RUNNING = 3
    FINISHED = 4
    FAILED = 5
    CANCELED = 6


BLOCKED, SCHEDULED, READY, RUNNING, FINISHED, FAILED, CANCELED = State

STATE_NAMES = tuple(state.name.lower() for state in State)

# old state -> the states that may follow it
LEGAL: dict[State, frozenset[State]] = {
    BLOCKED: frozenset({SCHEDULED, READY, CANCELED}),
    SCHEDULED: frozenset({READY, CANCELED}),
    READY: frozenset({RUNNING, CANCELED}),
    RUNNING: frozenset({READY, SCHEDULED, FINISHED, FAILED, CANCELED}),
    FINISHED: frozenset(),
    FAILED: frozenset(),
    CANCELED: frozenset(),
}
"""A retry of an ended job makes a new record, so nothing follows an end here."""


class Terms:
    """On what terms a job runs: shared by all jobs that were enqueued with the same ones."""

    __slots__ = (
        "backoff",
        "delay",
        "encoded",
        "expires",
        "inputs",
        "lane",
        "max_attempts",
        "priority",
        "timeout",
    )

    def __init__(
        self,
        lane: Lane,
        encoded: bytes,
        *,
        priority: int,
        delay: float,
        timeout: float | None,
        expires: float | None,
        max_attempts: int,
        backoff: Backoff,
        inputs: bool,
    ) -> None:
        self.lane = lane
        # The terms as JSON, defaults left out: how a store keeps them.
        self.encoded = encoded
        self.priority = priority
        self.delay = delay
        self.timeout = timeout
        self.expires = expires
        self.max_attempts = max_attempts
        self.backoff = backoff
        self.inputs = inputs


class Run:
    """A running attempt: who runs it and since when."""

    __slots__ = ("progress", "started", "worker")

    def __init__(self, worker: Worker | None, started: float) -> None:
        # None after a restart of the broker, until a worker claims the attempt.
        self.worker = worker
        # Seconds since the epoch.
        self.started = started
        # What the worker reported last, JSON; lives in memory only.
        self.progress: Raw | None = None


class Outcome:
    """How a job ended."""

    __slots__ = ("culprit", "ended", "error", "reason", "result", "started")

    def __init__(
        self,
        ended: float,
        started: float | None,
        *,
        result: bytes | None = None,
        error: str | None = None,
        reason: str | None = None,
        culprit: str | None = None,
    ) -> None:
        # Seconds since the epoch, both.
        self.ended = ended
        self.started = started
        # finished: JSON
        self.result = result
        # failed: what the last attempt said
        self.error = error
        # canceled: request, dependency or expired; with dependency, which one
        self.reason = reason
        self.culprit = culprit


class Job:
    """A live job, or one that ended in this turn and is about to leave memory."""

    __slots__ = (
        "args",
        "attempt",
        "dependencies",
        "dependents",
        "due",
        "id",
        "order",
        "outcome",
        "queued",
        "run",
        "seq",
        "spared",
        "state",
        "terms",
        "timer",
        "unsaved",
        "waiting",
    )

    def __init__(
        self,
        id: str,
        seq: int,
        terms: Terms,
        args: bytes,
        dependencies: tuple[str | Dependency, ...],
        queued: float,
    ) -> None:
        self.id = id
        # The order of enqueue, from 1; a dependency's is always lower than its dependents'.
        self.seq = seq
        self.terms = terms
        # JSON
        self.args = args
        # As enqueued, each once; a bare id means the condition `finished`.
        self.dependencies = dependencies
        # Seconds since the epoch.
        self.queued = queued
        self.state = BLOCKED
        # The newest attempt's number, 0 before the first: it only grows, across retries too.
        self.attempt = 0
        # How many of those attempts do not count against max_attempts.
        self.spared = 0
        # How many dependencies have not ended yet.
        self.waiting = 0
        # The live jobs that depend on this one, if there were ever any.
        self.dependents: Dependents | None = None
        # While scheduled: when it becomes ready, seconds since the epoch.
        self.due: float | None = None
        # The place in the order of becoming ready, across all lanes.
        self.order = 0
        # What this job waits for next: becoming due, expiry or the attempt's time-out.
        self.timer: Timer | None = None
        # While running.
        self.run: Run | None = None
        # Once ended.
        self.outcome: Outcome | None = None
        # Whether the store is behind, and so whether this turn's writes hold the job already.
        self.unsaved = False

    @property
    def attempts_used(self) -> int:
        """How many attempts count against ``max_attempts``."""
        return self.attempt - self.spared
