"""What the model keeps: jobs, workers, waits, and how it says no."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from msgspec import Raw

from worker_sdk import messages as m

ENDED = ("finished", "failed", "canceled")
Origin = tuple[bytes, ...]
Answer = tuple[Origin, m.Message]
Spec = m.NewJob


@dataclass(slots=True, eq=False, repr=False)
class MJob:
    """A job as the model sees it, live or ended."""

    spec: Spec
    seq: int
    queued: float
    conditions: dict[str, str] = field(default_factory=dict)
    state: str = "blocked"
    attempt: int = 0
    spared: int = 0
    worker: MWorker | None = None
    started: float | None = None
    due: float | None = None
    ready_no: int = 0
    session: str = ""
    """Of the worker that has or had the newest attempt: known after a restart too."""
    in_front: bool = False
    was_claimed: bool = False
    """Its old place in the queue counts if it is ready again before that has come up."""
    alarm: int = 0
    progress: Raw | None = None
    ended: float | None = None
    result: Raw | None = None
    error: str | None = None
    reason: str | None = None
    culprit: str | None = None
    place: int = 0

    def __repr__(self) -> str:
        return (
            f"{self.id}({self.state}, attempt {self.attempt}, spared {self.spared}, "
            f"seq {self.seq}, on {self.conditions}, held by {self.worker}, due {self.due})"
        )

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def used_up(self) -> bool:
        return self.attempt - self.spared >= self.spec.max_attempts


@dataclass(slots=True, eq=False)
class MWait:
    """A `wait` that has not been answered."""

    origin: Origin
    request: m.Wait
    open: set[str]


@dataclass(slots=True, eq=False, repr=False)
class MWorker:
    """A worker as the model sees it."""

    origin: Origin
    session: str
    lanes: frozenset[tuple[str, str]]
    credit: int
    seen: float
    stalled: bool = False
    jobs: dict[str, MJob] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"{self.session}({len(self.jobs)} of {self.credit}, {sorted(self.lanes)})"

    @property
    def is_free(self) -> bool:
        return not self.stalled and len(self.jobs) < self.credit


def conditions_of(spec: Spec) -> dict[str, str]:
    """Each dependency once; of two conditions the stricter one."""
    conditions: dict[str, str] = {}
    for one in spec.dependencies:
        id, condition = (one, "finished") if isinstance(one, str) else (one.id, one.condition)
        if conditions.get(id) != "finished":
            conditions[id] = condition
    return conditions


ITS_OWN_WORDS = "?"
"""Stands for what the broker itself says of an attempt that failed."""


class Refuse(Exception):
    """The model's way to say no."""

    def __init__(self, code: str, ids: Iterable[str] = ()) -> None:
        super().__init__(code)
        self.error = m.Error(code, "", tuple(ids))
