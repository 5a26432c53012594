"""The job as a handler sees it: one attempt, with its args, its inputs and ways to report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol
from uuid import UUID

from msgspec import Raw

from worker_sdk.encoding import decode_value, encode_value
from worker_sdk.errors import JobCanceled, PointsmanError, TooLarge
from worker_sdk.ids import AnyId, as_text, as_uuid
from worker_sdk.messages import Assignment

INPUTS_PAGE_JOBS = 5_000
"""How many dependencies' results are asked for at a time."""

PROGRESS_LIMIT_BYTES = 65_536
"""The most that the broker takes of one report."""


class JobRejected(PointsmanError):
    """Raised by a handler: the job is failed for good, however many attempts are left."""


class Desk(Protocol):
    """What a job needs of whoever runs it."""

    def report(self, job: Job, value: bytes) -> None:
        """Pass progress on, JSON."""

    def fetch_inputs(self, job: Job, ids: tuple[str, ...]) -> dict[str, Raw]:
        """Ask the broker for results of dependencies: some at least, {} if there are none."""

    def wait_stopped(self, job: Job, timeout_s: float | None) -> bool:
        """Wait until the attempt is over from outside; whether it is."""


class Job:
    """One attempt of a job.

    It stays usable after the handler has returned, but reports nothing any more.
    """

    __slots__ = ("_args", "_assignment", "_desk", "_inputs", "_on_stop", "_stop_reason")

    def __init__(self, assignment: Assignment, desk: Desk) -> None:
        self._assignment = assignment
        self._desk = desk
        # Decoded when first asked for.
        self._args: Any = _UNREAD
        self._inputs: Inputs | None = None
        # Why the attempt is over, once it is so from outside; and what is to be done at once then.
        self._stop_reason: str | None = None
        self._on_stop: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"<Job {self._assignment.id} {self.type!r} attempt {self.attempt}>"

    @property
    def id(self) -> UUID:
        """The job's id."""
        return as_uuid(self._assignment.id)

    @property
    def type(self) -> str:
        """The job's type."""
        return self._assignment.type

    @property
    def channel(self) -> str:
        """The channel that the job was enqueued in."""
        return self._assignment.channel

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1; some numbers may never have run anywhere."""
        return self._assignment.attempt

    @property
    def timeout(self) -> float | None:
        """How long this attempt may take, in seconds."""
        return self._assignment.timeout

    @property
    def args(self) -> Any:
        """The args as they were enqueued; the same object each time."""
        if self._args is _UNREAD:
            self._args = decode_value(self._assignment.args, "args")
        return self._args

    @property
    def dependencies(self) -> tuple[UUID, ...]:
        """The ids of the jobs that this one waited for."""
        return tuple(map(as_uuid, self._assignment.dependencies))

    @property
    def inputs(self) -> Inputs:
        """The results of the dependencies that finished, by id, in their order."""
        if self._inputs is None:
            self._inputs = Inputs(self._with_all_inputs().inputs or {})
        return self._inputs

    def progress(self, value: Any) -> None:
        """Report how far the attempt has come: any JSON value; only the newest one is kept.

        Once the attempt is over it does nothing, and raises nothing: a handler that goes on until
        `canceled` and then tidies up may be canceled just before it reports. `check_canceled`
        raises.
        """
        encoded = encode_value(value, "progress")
        if len(encoded) > PROGRESS_LIMIT_BYTES:
            raise TooLarge(
                f"progress of {len(encoded):,} bytes: {PROGRESS_LIMIT_BYTES:,} is the most"
            )
        self._desk.report(self, encoded)

    @property
    def canceled(self) -> bool:
        """Whether the attempt is over from outside: the handler should stop, its result is void.

        So it is when the job was canceled, and also when the attempt took longer than its timeout,
        when the broker gave the job to another worker, or when this worker is about to stop and
        its grace is over.
        """
        return self._stop_reason is not None

    def check_canceled(self) -> None:
        """Raise JobCanceled if the attempt is over from outside."""
        if self._stop_reason is not None:
            said = _STOP_REASONS.get(self._stop_reason, self._stop_reason)
            raise JobCanceled(f"job {self.id}: {said}", ids=[self.id], reason=self._stop_reason)

    def wait_canceled(self, timeout: float | None = None) -> bool:
        """Wait until the attempt is over from outside, at most `timeout` seconds; whether it is."""
        return self._desk.wait_stopped(self, timeout)

    @property
    def _has_inputs_to_fetch(self) -> bool:
        """Whether ``inputs`` has to ask the broker first: they did not fit into the dispatch."""
        return self._assignment.inputs_left_out

    def _with_all_inputs(self) -> Assignment:
        """The job as it came, with inputs that were left out then."""
        assignment = self._assignment
        if assignment.inputs_left_out:
            assignment.inputs = self._fetch_inputs()
            assignment.inputs_left_out = False
        return assignment

    def _fetch_inputs(self) -> dict[str, Raw]:
        found: dict[str, Raw] = {}
        ids = self._assignment.dependencies
        for start in range(0, len(ids), INPUTS_PAGE_JOBS):
            page = ids[start : start + INPUTS_PAGE_JOBS]
            while page:
                results = self._desk.fetch_inputs(self, page)
                found |= results
                # What is still missing when nothing more comes did not finish: it has no result.
                page = tuple(id for id in page if id not in found) if results else ()
        # Answers come in any order; inputs that come with the job have that of the dependencies.
        return {id: found[id] for id in ids if id in found}

    def _stop(self, reason: str) -> None:
        """Mark the attempt as over from outside; for whoever runs it, with its lock held."""
        self._stop_reason = reason
        if self._on_stop is not None:
            self._on_stop()


class Inputs(Mapping[UUID, Any]):
    """Results by dependency; ids may be given as UUIDs or as text. Each is decoded when asked for.

    A dependency that ended without finishing has no result, and is not in here.
    """

    __slots__ = ("_decoded", "_raw")

    def __init__(self, raw: dict[str, Raw]) -> None:
        self._raw = raw
        self._decoded: dict[str, Any] = {}

    def __getitem__(self, id: AnyId) -> Any:
        key = as_text(id)
        if key not in self._decoded:
            if key not in self._raw:
                raise KeyError(f"{key} is no dependency of this job that has a result")
            self._decoded[key] = decode_value(self._raw[key], f"inputs[{key}]")
        return self._decoded[key]

    def __contains__(self, id: object) -> bool:
        try:
            return as_text(id) in self._raw  # type: ignore[arg-type]
        except (ValueError, TypeError):
            return False

    def __iter__(self) -> Iterator[UUID]:
        return map(as_uuid, self._raw)

    def __len__(self) -> int:
        return len(self._raw)

    def __repr__(self) -> str:
        return f"<Inputs of {len(self)} dependencies>"


_UNREAD = object()

_STOP_REASONS = {
    "request": "was canceled",
    "dependency": "was canceled, as a dependency did not end as it should",
    "timeout": "this attempt took longer than its timeout",
    "lost": "this attempt is no longer this worker's",
    "leaving": "the worker is about to stop",
}
