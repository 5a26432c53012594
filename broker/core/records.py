"""What passes between the core and a store: what a turn changed, and what is asked back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec

from broker.core.job import Dependencies, Job

_encode = msgspec.json.Encoder().encode

decode_dependencies = msgspec.json.Decoder(Dependencies).decode
"""Give a Record's dependencies as a Job has them."""


class Record(msgspec.Struct, gc=False):
    """A job as a store gives it back. Times are seconds since the epoch."""

    seq: int
    id: str
    type: str
    channel: str
    terms: bytes
    """JSON, see Terms.encoded."""
    args: bytes
    dependencies: bytes
    """JSON, a list as in NewJob.dependencies; b"[]" for none."""
    queued: float
    state: int
    """A broker.core.job.State. Of live jobs only `running` is told apart from the others."""
    attempt: int
    spared: int
    due: float | None
    started: float | None
    ended: float | None = None
    result: bytes | None = None
    error: str | None = None
    reason: str | None = None
    culprit: str | None = None
    session: str = ""
    """Of a running job: its worker's, see Hello."""


class Writes(msgspec.Struct, eq=False):
    """What one turn of the loop changed, to be committed as one transaction."""

    inserted: list[Job] = []
    """New live jobs, in the order of `seq` (some may have ended since: then in `ended` too)."""
    updated: list[Job] = []
    """Live jobs with another state, attempt, spared, due or start; none that is in `inserted`."""
    ended: list[Job] = []
    """Jobs that ended, with their outcome; live in the store until now, or in `inserted` too."""
    removed: list[str] = []
    """Ended jobs to forget: pruned, deleted, or live again by a retry (then in `inserted` too)."""
    deferred: list[str] = []
    """Ended jobs to keep for longer, since a live job depends on them: back of the line."""

    def __bool__(self) -> bool:
        return bool(self.inserted or self.updated or self.ended or self.removed or self.deferred)


class Archive(Protocol):
    """What the core asks a store for: jobs that have ended and left memory."""

    def ended_among(self, ids: Sequence[str]) -> set[str]:
        """Give those of `ids` that are ended jobs. O(log n) each."""

    def read(self, ids: Sequence[str]) -> Iterator[Record]:
        """Give those of `ids` that are ended jobs, in any order; read as they are taken, and to
        be dropped before the next commit. O(log n) each.
        """

    def dependents(self, ids: Sequence[str]) -> dict[str, list[str]]:
        """Give the ids of all committed jobs, live or ended, that depend on each of `ids`."""

    def oldest(self) -> Iterator[tuple[str, float]]:
        """Give id and end of the ended jobs, next in line to be pruned first; read as they are
        taken, and to be dropped before the next commit.
        """

    @property
    def ended_count(self) -> int:
        """How many ended jobs are kept. O(1)."""


def record_of(job: Job) -> Record:
    """Give a job, live or ended, as a store gives it back."""
    lane, run, outcome = job.terms.lane, job.run, job.outcome
    record = Record(
        seq=job.seq,
        id=job.id,
        type=lane.type,
        channel=lane.channel,
        terms=job.terms.encoded,
        args=job.args,
        dependencies=_encode(job.dependencies) if job.dependencies else b"[]",
        queued=job.queued,
        state=job.state,
        attempt=job.attempt,
        spared=job.spared,
        due=job.due,
        started=run.started if run is not None else None,
        session=run.session if run is not None else "",
    )
    if outcome is not None:
        record.started = outcome.started
        record.ended = outcome.ended
        record.result = outcome.result
        record.error = outcome.error
        record.reason = outcome.reason
        record.culprit = outcome.culprit
    return record
