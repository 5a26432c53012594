"""Jobs to be enqueued: what they are made of, in what order they go, and in how many requests.

A dependency must stand earlier in its request than its dependents, and what hangs together by
dependencies must be enqueued together or not at all. So jobs are sorted, and when they exceed one
message they are split between, never within, the graph's connected components.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any
from uuid import UUID

from msgspec import Struct, field
from msgspec.structs import force_setattr

from worker_sdk.encoding import ENVELOPE_BYTES, as_list, encode_all, encode_value
from worker_sdk.errors import DependencyCycle, InvalidRequest, TooLarge
from worker_sdk.ids import AnyId, as_uuid, new_uuid
from worker_sdk.messages import DEFAULT_CHANNEL, Backoff, Condition

Duration = float | timedelta
"""Seconds, or a timedelta."""

PIECE_BYTES = 1024 * 1024
"""The size of the requests that jobs too many for one message are split into.

Small enough that the broker commits one while the next is under way; from 256 KiB to 4 MiB it
makes no difference that can be measured.
"""
_SMALLEST_JOB_BYTES = 56
"""No job takes less in a request: this much is a type of one character, and the id."""


class Dependency(Struct, omit_defaults=True, frozen=True):
    """A dependency with its condition: ``finished`` (it succeeded) or ``ended`` (in any way)."""

    id: UUID
    condition: Condition = "finished"

    if TYPE_CHECKING:  # what may be given; the attributes are what becomes of it

        def __init__(self, id: "AnyId | JobSpec", condition: Condition = "finished") -> None: ...

    def __post_init__(self) -> None:
        given: AnyId | JobSpec = self.id
        if type(given) is not UUID:
            id = given.id if isinstance(given, JobSpec) else as_uuid(given)
            force_setattr(self, "id", id)


class _TypeAndArgs(Struct, omit_defaults=True, gc=False):
    type: str
    args: Any = None


class JobSpec(_TypeAndArgs, omit_defaults=True, kw_only=True, gc=False):
    """A job to be enqueued. Its ``id`` is there at once, so others can depend on it.

    ``dependencies`` are ids, other JobSpecs, or ``Dependency(id, "ended")``, in any iterable.
    ``delay``, ``timeout`` (of one attempt), ``expires`` (from enqueue to the first start) and
    ``backoff`` are seconds or timedeltas; ``backoff`` can be a ``Backoff`` too. With ``inputs`` the
    job is dispatched together with its dependencies' results.
    """

    # The names, order and defaults of the fields are those of messages.NewJob: a JobSpec is
    # encoded as it stands, which takes half the time of making a NewJob of it first.
    id: UUID = field(default_factory=new_uuid)
    dependencies: tuple[UUID | Dependency, ...] = ()
    channel: str = DEFAULT_CHANNEL
    priority: int = 0
    delay: Duration = 0.0
    timeout: Duration | None = None
    expires: Duration | None = None
    max_attempts: int = 3
    backoff: Backoff | Duration | None = None
    inputs: bool = True

    if TYPE_CHECKING:  # what may be given; the attributes are what becomes of it

        def __init__(
            self,
            type: str,
            args: Any = None,
            *,
            id: AnyId | None = None,
            dependencies: Iterable["AnyId | JobSpec | Dependency"] = (),
            channel: str = DEFAULT_CHANNEL,
            priority: int = 0,
            delay: Duration = 0.0,
            timeout: Duration | None = None,
            expires: Duration | None = None,
            max_attempts: int = 3,
            backoff: Backoff | Duration | None = None,
            inputs: bool = True,
        ) -> None: ...

    def __post_init__(self) -> None:
        given: AnyId | None = self.id
        if type(given) is not UUID:
            self.id = new_uuid() if given is None else as_uuid(given)
        if self.dependencies or self.dependencies != ():
            self.dependencies = _each_once(self.dependencies)
        if self.delay.__class__ is timedelta:
            self.delay = self.delay.total_seconds()
        if self.timeout.__class__ is timedelta:
            self.timeout = self.timeout.total_seconds()
        if self.expires.__class__ is timedelta:
            self.expires = self.expires.total_seconds()
        if self.backoff.__class__ is timedelta:
            self.backoff = self.backoff.total_seconds()

    def encoded(self) -> bytes:
        """The job as it stands in an ``enqueue``; InvalidRequest if its args are not JSON."""
        try:
            return encode_value(self, "job")
        except InvalidRequest as error:
            message = f"{error}, in job {self.id} ({self.type!r})"
            raise type(error)(message, ids=(self.id,)) from None


def _each_once(
    dependencies: Iterable["AnyId | JobSpec | Dependency"],
) -> tuple[UUID | Dependency, ...]:
    """The dependencies in their normal form; ones named twice, under one condition, once."""
    if type(dependencies) is list and len(dependencies) == 1 and type(dependencies[0]) is JobSpec:
        # What most jobs of a graph have: 0.15 of 0.45 us less.
        return (dependencies[0].id,)
    # By number, because the hash and comparison of a UUID are Python code.
    once: dict[int | tuple[int, str], UUID | Dependency] = {}
    for each in _listed(dependencies):
        if type(each) is JobSpec:
            once[each.id.int] = each.id
        elif isinstance(each, Dependency):
            number = each.id.int
            once[number if each.condition == "finished" else (number, each.condition)] = each
        else:
            id = as_uuid(each)  # type: ignore[arg-type]
            once[id.int] = id
    return tuple(once.values())


def _listed(
    dependencies: Iterable["AnyId | JobSpec | Dependency"] | None,
) -> Iterable["AnyId | JobSpec | Dependency"]:
    """The dependencies as they were given; InvalidRequest if that is not a number of them."""
    if type(dependencies) is list:
        return dependencies
    if dependencies is None:
        return ()
    if isinstance(dependencies, _NO_LIST) or not isinstance(dependencies, Iterable):
        raise InvalidRequest(f"dependencies must be a list of ids, not {dependencies!r} itself")
    return dependencies


_NO_LIST = (str, bytes, UUID, dict, JobSpec, Dependency)

AnyJob = JobSpec | Mapping[str, Any]
"""A job as ``enqueue_many`` takes it: a JobSpec, or a mapping with the same keys."""


def as_spec(job: AnyJob) -> JobSpec:
    """The job as a JobSpec."""
    if isinstance(job, JobSpec):
        return job
    if isinstance(job, Mapping):
        return JobSpec(**job)
    raise InvalidRequest(f"{job!r} is not a job: expected a JobSpec or a mapping with its keys")


class Batch(Struct):
    """Jobs that go in one request: their ids in order, and they themselves as a JSON list."""

    ids: list[UUID]
    jobs: bytes


class Graph:
    """Jobs in an order in which they can be enqueued, encoded. O(jobs + dependencies).

    DependencyCycle names the cycle. The likely limit of messages only saves needless work.
    """

    def __init__(self, specs: Sequence[JobSpec], likely_limit_bytes: int) -> None:
        self._specs = specs if _in_order(specs) else _sorted(specs)
        # As one list, which is quicker; else each by itself.
        self._together: bytes | None = None
        self._encoded: list[bytes] = []
        if len(specs) * _SMALLEST_JOB_BYTES + ENVELOPE_BYTES <= likely_limit_bytes:
            self._together = encode_all(self._specs)
        if self._together is not None:
            jobs_bytes = len(self._together)
        else:
            self._encoded = [spec.encoded() for spec in self._specs]
            jobs_bytes = sum(map(len, self._encoded)) + len(specs)
        self.size_bytes = jobs_bytes + ENVELOPE_BYTES
        """What all of it takes in one message."""

    def batches(self, limit_bytes: int) -> list[Batch]:
        """All jobs as requests of at most so many bytes each, one if they fit into one.

        TooLarge names what exceeds the limit.
        """
        specs = self._specs
        if self._together is not None:
            if self.size_bytes <= limit_bytes:
                return [Batch([spec.id for spec in specs], self._together)]
            self._together = None
            self._encoded = [spec.encoded() for spec in specs]
        if self.size_bytes <= limit_bytes:
            return [_batch(specs, self._encoded, range(len(specs)))]
        pieces = _pack(specs, self._encoded, _components(specs), limit_bytes - ENVELOPE_BYTES)
        return [_batch(specs, self._encoded, piece) for piece in pieces]


def too_large(specs: Sequence[JobSpec], size_bytes: int, limit_bytes: int) -> TooLarge:
    """The error for connected jobs that no message holds."""
    what = (
        f"job {specs[0].id} ({specs[0].type})"
        if len(specs) == 1
        else f"the graph of {len(specs)} connected jobs with {specs[0].id}"
    )
    return TooLarge(
        f"{what} takes {size_bytes:,} bytes and must go in one message, "
        f"and a message holds at most {limit_bytes:,} bytes",
        ids=[spec.id for spec in specs[:100]],
    )


def _number_of(dependency: UUID | Dependency) -> int:
    """The id that a JobSpec's dependency names, as a number: the hash and comparison of a UUID are
    Python code.
    """
    return (dependency.id if isinstance(dependency, Dependency) else dependency).int


def _in_order(specs: Sequence[JobSpec]) -> bool:
    """Whether every dependency among ``specs`` stands before its dependents, as most give them."""
    if not any(spec.dependencies for spec in specs):
        return True
    return _in_order_of_ids(specs) or _in_order_by_search(specs)


def _in_order_of_ids(specs: Sequence[JobSpec]) -> bool:
    """Whether ids grow along ``specs``, as new ones do, and dependencies have lower ones.

    That is seen at a third of the cost of a search, 0.3 us a job.
    """
    last = -1
    for spec in specs:
        own = spec.id.int
        if own <= last:
            return False
        last = own
        for each in spec.dependencies:
            if _number_of(each) >= own:
                return False
    return True


def _in_order_by_search(specs: Sequence[JobSpec]) -> bool:
    to_come = {spec.id.int for spec in specs}
    for spec in specs:
        for each in spec.dependencies:
            if _number_of(each) in to_come:
                return False
        to_come.discard(spec.id.int)
    return True


def _links(specs: Sequence[JobSpec]) -> list[tuple[int, ...]]:
    """For each job the positions of its dependencies among ``specs``."""
    position = {spec.id.int: at for at, spec in enumerate(specs)}
    return [
        tuple(
            [at for each in spec.dependencies if (at := position.get(_number_of(each))) is not None]
        )
        for spec in specs
    ]


def _sorted(specs: Sequence[JobSpec]) -> list[JobSpec]:
    """The jobs so that dependencies come first; DependencyCycle if there is no such order."""
    try:
        sorter = TopologicalSorter(dict(enumerate(_links(specs))))
        return [specs[at] for at in sorter.static_order()]
    except CycleError as error:
        circle = [specs[at].id for at in error.args[1]]
        shown = " -> ".join(map(str, circle[:20])) + (" -> …" if len(circle) > 20 else "")
        raise DependencyCycle(
            f"the jobs depend on each other in a circle: {shown}", ids=circle[:-1]
        ) from None


def _components(specs: Sequence[JobSpec]) -> Iterator[list[int]]:
    """What hangs together: the positions of each part, in order."""
    if not any(spec.dependencies for spec in specs):
        return ([at] for at in range(len(specs)))
    parent = list(range(len(specs)))

    def root_of(at: int) -> int:
        while parent[at] != at:
            parent[at] = at = parent[parent[at]]
        return at

    for own, dependencies in enumerate(_links(specs)):
        for at in dependencies:
            parent[root_of(at)] = root_of(own)
    groups: dict[int, list[int]] = {}
    for at in range(len(specs)):
        groups.setdefault(root_of(at), []).append(at)
    return iter(groups.values())


def _pack(
    specs: Sequence[JobSpec],
    encoded: Sequence[bytes],
    groups: Iterable[list[int]],
    limit_bytes: int,
) -> Iterator[list[int]]:
    """Groups put together until they are a request's worth."""
    piece: list[int] = []
    piece_bytes = 0
    aim_bytes = min(PIECE_BYTES, limit_bytes)
    for group in groups:
        group_bytes = sum(len(encoded[at]) + 1 for at in group)
        if group_bytes > limit_bytes:
            connected = [specs[at] for at in group]
            raise too_large(connected, group_bytes + ENVELOPE_BYTES, limit_bytes + ENVELOPE_BYTES)
        if piece and piece_bytes + group_bytes > aim_bytes:
            yield piece
            piece, piece_bytes = [], 0
        piece += group
        piece_bytes += group_bytes
    if piece:
        yield piece


def _batch(specs: Sequence[JobSpec], encoded: Sequence[bytes], positions: Iterable[int]) -> Batch:
    positions = list(positions)
    return Batch([specs[at].id for at in positions], as_list([encoded[at] for at in positions]))
