"""The job record, its states, and which change of state is legal."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from msgspec import Raw, Struct

from worker_sdk.messages import Backoff, Dependency

if TYPE_CHECKING:
    from broker.core.graph import Dependents
    from broker.core.lanes import Lane
    from broker.core.timers import Timer
    from broker.core.workers import Worker


Dependencies = tuple[str | Dependency, ...]
"""What a job depends on; a bare id means the condition `finished`."""


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


class Terms(Struct, eq=False):
    """On what terms a job runs: shared by all jobs that were enqueued with the same ones."""

    lane: Lane
    encoded: bytes
    """The terms as JSON, defaults left out: how a store keeps them."""
    priority: int
    delay: float
    timeout: float | None
    expires: float | None
    max_attempts: int
    backoff: Backoff
    inputs: bool


class Run(Struct, eq=False, gc=False):
    """A running attempt: who runs it and since when."""

    worker: Worker | None
    """None after a restart of the broker, until a worker claims the attempt."""
    started: float
    """Seconds since the epoch."""
    session: str = ""
    """The worker's own word for itself, by which it is known again after a restart."""
    progress: Raw | None = None
    """What the worker reported last, JSON; lives in memory only."""


class Outcome(Struct, eq=False, gc=False):
    """How a job ended."""

    ended: float
    """Seconds since the epoch."""
    started: float | None
    """When the newest attempt started, seconds since the epoch."""
    result: bytes | None = None
    """finished: JSON"""
    error: str | None = None
    """failed: what the last attempt said"""
    reason: str | None = None
    """canceled: request, dependency or expired"""
    culprit: str | None = None
    """canceled because of a dependency: which one"""


class Job(Struct, eq=False, gc=False):
    """A live job, or one that ended in this turn and is about to leave memory.

    A Struct for its size (160 bytes) and the time it takes to make (0.3 us; a class with slots and
    an __init__ 1.0). Not watched by the garbage collector, which would go through a million of
    them in half a second: the end of a job breaks every circle that it is in.
    """

    id: str
    seq: int
    """The order of enqueue, from 1; a dependency's is always lower than its dependents'."""
    terms: Terms
    args: bytes
    """JSON"""
    dependencies: Dependencies
    """As enqueued, each once."""
    queued: float
    """Seconds since the epoch."""
    state: State = BLOCKED
    attempt: int = 0
    """The newest attempt's number, 0 before the first: it only grows, across retries too."""
    spared: int = 0
    """How many of those attempts do not count against max_attempts."""
    waiting: int = 0
    """How many dependencies have not ended yet."""
    order: int = 0
    """The place in the order of becoming ready, across all lanes."""
    due: float | None = None
    """While scheduled: when it becomes ready, seconds since the epoch."""
    dependents: Job | Dependents | None = None
    """The live jobs that depend on this one; one alone, with the condition `finished`, by itself:
    250 bytes and 2 us less."""
    timer: Timer | None = None
    """What this job waits for next: becoming due, expiry or the attempt's time-out."""
    run: Run | None = None
    """While running."""
    error: str | None = None
    """The beginning of what the newest failed attempt said; lives in memory only."""
    outcome: Outcome | None = None
    """Once ended."""
    unsaved: bool = False
    """Whether this turn's writes hold the job already."""

    @property
    def attempts_used(self) -> int:
        """How many attempts count against ``max_attempts``."""
        return self.attempt - self.spared
