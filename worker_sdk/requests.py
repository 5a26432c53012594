"""What each method of the clients asks of the broker, and what it makes of the answers.

A method is a generator: it yields requests, is sent what their answers say, and returns the
method's value. Both clients carry out the same generators; only how a request travels is theirs.
"""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Generic, TypedDict, TypeVar, cast
from uuid import UUID

from msgspec import UNSET, Raw, UnsetType

from worker_sdk import status as job_status
from worker_sdk.encoding import ENVELOPE_BYTES, as_list, decode_value
from worker_sdk.errors import (
    InvalidRequest,
    JobNotExist,
    PointsmanError,
    ProtocolError,
    TooLarge,
    WaitTimeout,
)
from worker_sdk.exchange import Call
from worker_sdk.graph import (
    AnyJob,
    Batch,
    Dependency,
    Duration,
    Graph,
    JobSpec,
    as_spec,
    too_large,
)
from worker_sdk.ids import AnyId, as_text, as_texts, as_uuid
from worker_sdk.limit import MessageLimit
from worker_sdk.messages import (
    Backoff,
    Cancel,
    ClientRequest,
    Delete,
    Enqueue,
    JobInfo,
    List,
    NewJob,
    Ok,
    Ping,
    Retry,
    Stats,
    Status,
    Wait,
)
from worker_sdk.status import JobStatus

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

LONGEST_HOLD_S = 10.0
"""A longer wait is asked for in parts, so that a lost one is noticed."""

IDS_A_REQUEST = 10_000
"""More ids are asked for in pieces: an answer can be many times as large as its request."""

_ID_BYTES = 39
"""An id in a list: with its quotes and the comma."""


class JobOptions(TypedDict, total=False):
    """What ``enqueue`` and ``run`` take besides a type and args. See JobSpec."""

    id: AnyId | None
    dependencies: Iterable[AnyId | JobSpec | Dependency]
    channel: str
    priority: int
    delay: Duration
    timeout: Duration | None
    expires: Duration | None
    max_attempts: int
    backoff: Backoff | Duration | None
    inputs: bool


class Page(list[JobStatus]):
    """Some jobs, and ``after``: where the next page begins, None at the end."""

    after: str | None = None


class Request(Generic[T_co]):
    """One message to the broker, and how to read the answer."""

    __slots__ = ("_done_before", "_read", "hold_s", "message")

    def __init__(
        self,
        message: ClientRequest,
        read: Callable[[Ok], T_co],
        *,
        hold_s: float = 0.0,
        done_before: Callable[[PointsmanError], T_co | None] | None = None,
    ) -> None:
        self.message = message
        self.hold_s = hold_s
        self._read = read
        # Whether an error means that an earlier attempt, whose answer was lost, succeeded.
        self._done_before = done_before

    def answer(self, call: Call) -> T_co:
        """What the settled call says; raises the error that it ended with."""
        outcome = call.outcome
        if isinstance(outcome, PointsmanError):
            if call.attempts > 1 and self._done_before is not None:
                done = self._done_before(outcome)
                if done is not None:
                    return done
            raise outcome
        if outcome is None:
            raise RuntimeError(f"call {call.req} is not settled")
        return self._read(outcome)


Steps = Generator[Request[Any] | Iterator[Request[Any]], Any, T]
"""Yields a request and is sent its answer; or many independent ones, and is sent none."""


# ---- enqueue ---------------------------------------------------------------------------------


def enqueue_message(jobs: bytes, wait_s: float | None = None) -> Enqueue:
    """An ``enqueue`` of jobs that are a JSON list already."""
    return Enqueue(jobs=cast(tuple[NewJob, ...], Raw(jobs)), wait=wait_s)


def _limit_for(size_bytes: int, limit: MessageLimit) -> Steps[int]:
    """The limit of messages, of which it matters whether one of that size is within it."""
    known = limit.known_for(size_bytes)
    if known is None:
        known = yield Request(Ping(), limit.learn)
    return known


def _encode_one(spec: JobSpec, limit: MessageLimit) -> Steps[bytes]:
    """The job as it stands in an ``enqueue``; TooLarge if that would exceed the limit."""
    encoded = spec.encoded()
    size_bytes = len(encoded) + ENVELOPE_BYTES
    limit_bytes = yield from _limit_for(size_bytes, limit)
    if size_bytes > limit_bytes:
        raise too_large([spec], size_bytes, limit_bytes)
    return encoded


def enqueue(spec: JobSpec, limit: MessageLimit) -> Steps[UUID]:
    """Enqueue one job; its id."""
    encoded = yield from _encode_one(spec, limit)
    yield Request(enqueue_message(as_list([encoded])), _nothing)
    return spec.id


def enqueue_many(jobs: Iterable[AnyJob], limit: MessageLimit) -> Steps[list[UUID]]:
    """Enqueue a whole graph; its ids in the order given."""
    specs = [as_spec(job) for job in jobs]
    if not specs:
        return []
    graph = Graph(specs, limit.likely_bytes())
    batches = graph.batches((yield from _limit_for(graph.size_bytes, limit)))
    done = 0

    def read_batch(batch: Batch) -> Callable[[Ok], None]:
        def read(_: Ok) -> None:
            nonlocal done
            done += len(batch.ids)

        return read

    try:
        yield (Request(enqueue_message(each.jobs), read_batch(each)) for each in batches)
    except PointsmanError as error:
        if done:
            error.add_note(f"{done} of the {len(specs)} jobs were enqueued all the same")
        raise
    return [spec.id for spec in specs]


def run(
    spec: JobSpec, timeout: Duration | None, limit: MessageLimit, clock: Callable[[], float]
) -> Steps[Any]:
    """Enqueue one job and wait for its result, in one round trip if it ends soon."""
    end = _end(timeout, clock, "wait_timeout")
    encoded = yield from _encode_one(spec, limit)
    hold_s = _hold(end, clock)
    message = enqueue_message(as_list([encoded]), hold_s)
    infos, done = yield Request(message, _read_wait, hold_s=hold_s)
    if done:
        return job_status.outcome(_in_order(infos, (as_text(spec.id),))[0])
    left_s = None if end is None else max(0.0, end - clock())
    infos = yield from _wait_all([spec.id], left_s, limit, clock)
    return job_status.outcome(infos[0])


# ---- asking ----------------------------------------------------------------------------------


def status(
    ids: AnyId | Iterable[AnyId], args: bool, limit: MessageLimit
) -> Steps[JobStatus | list[JobStatus]]:
    """The present status of one job, or of each."""

    def ask(piece: tuple[str, ...]) -> Steps[list[JobInfo]]:
        return list((yield Request(Status(ids=piece, args=args), _read_jobs)))

    wanted = _many(ids)
    infos = yield from _in_pieces(as_texts(wanted), ask, limit)
    return _as_asked(ids, _in_order(infos, _texts_as_given(wanted)))


def wait(
    ids: AnyId | Iterable[AnyId],
    timeout: Duration | None,
    limit: MessageLimit,
    clock: Callable[[], float],
) -> Steps[JobStatus | list[JobStatus]]:
    """The status of one job or of each, when all have ended."""
    return _as_asked(ids, (yield from _wait_all(_many(ids), timeout, limit, clock)))


def result(
    id: AnyId, timeout: Duration | None, limit: MessageLimit, clock: Callable[[], float]
) -> Steps[Any]:
    """The result of a job when it has ended; JobFailed or JobCanceled if it has none."""
    return job_status.outcome((yield from _wait_all([id], timeout, limit, clock))[0])


def _wait_all(
    ids: Sequence[AnyId], timeout: Duration | None, limit: MessageLimit, clock: Callable[[], float]
) -> Steps[list[JobInfo]]:
    end = _end(timeout, clock)
    infos = yield from _in_pieces(
        as_texts(ids), lambda piece: _wait_piece(piece, end, clock), limit
    )
    return _in_order(infos, _texts_as_given(ids))


def _wait_piece(
    waiting: tuple[str, ...], end: float | None, clock: Callable[[], float]
) -> Steps[list[JobInfo]]:
    ended: list[JobInfo] = []
    while waiting:
        hold_s = _hold(end, clock)
        infos, done = yield Request(Wait(ids=waiting, timeout=hold_s), _read_wait, hold_s=hold_s)
        if done:
            return [*ended, *infos]
        left = [info for info in infos if info.state not in job_status.ENDED]
        if left and end is not None and clock() >= end:
            raise _wait_timeout(left)
        # Those that have ended are not asked for again: their results may be large.
        ended += [info for info in infos if info.state in job_status.ENDED]
        waiting = tuple(info.id for info in left)
    return ended


def _in_pieces(
    ids: tuple[str, ...],
    ask: Callable[[tuple[str, ...]], Steps[list[JobInfo]]],
    limit: MessageLimit,
) -> Steps[list[JobInfo]]:
    """What `ask` gives for all of the ids, asked for no more at a time than one answer holds."""
    infos: list[JobInfo] = []
    limit_bytes = yield from _limit_for(_ids_bytes(min(len(ids), IDS_A_REQUEST)), limit)
    most = min(IDS_A_REQUEST, (limit_bytes - ENVELOPE_BYTES) // _ID_BYTES)
    start, size = 0, most
    while start < len(ids):
        piece = ids[start : start + size]
        try:
            infos += yield from ask(piece)
        except TooLarge:
            if len(piece) == 1:
                raise
            size = len(piece) // 2
        else:
            start += len(piece)
            # Others may have smaller results, so a few more are tried.
            size = min(size + size // 4 + 1, most)
    return infos


def _end(
    timeout: Duration | None, clock: Callable[[], float], name: str = "timeout"
) -> float | None:
    return None if timeout is None else clock() + seconds(timeout, name)


def _hold(end: float | None, clock: Callable[[], float]) -> float:
    return LONGEST_HOLD_S if end is None else min(max(0.0, end - clock()), LONGEST_HOLD_S)


def _read_jobs(ok: Ok) -> tuple[JobInfo, ...]:
    return _there(ok.jobs, "jobs")


def _read_wait(ok: Ok) -> tuple[tuple[JobInfo, ...], bool]:
    return _read_jobs(ok), _there(ok.done, "done")


def _wait_timeout(waiting: Sequence[JobInfo]) -> WaitTimeout:
    shown = ", ".join(f"{info.id} ({info.type}) is {info.state}" for info in waiting[:5])
    more = f" and {len(waiting) - 5} more have not ended" if len(waiting) > 5 else ""
    return WaitTimeout(f"the time is over: {shown}{more}", ids=[as_uuid(j.id) for j in waiting])


def list_jobs(
    *,
    state: str | Iterable[str] | None = None,
    type: str | None = None,
    channel: str | None = None,
    roots: bool = False,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int = 100,
    after: str | None = None,
) -> Steps[Page]:
    """One page of the jobs that match."""
    message = List(
        state=state if state is None or isinstance(state, str) else tuple(state),
        type=type,
        channel=channel,
        roots=roots,
        since=_unix_s(since, "since"),
        until=_unix_s(until, "until"),
        limit=limit,
        after=after,
    )
    page = Page()
    infos, page.after = yield Request(
        message, lambda ok: (_read_jobs(ok), None if ok.after is UNSET else ok.after)
    )
    page.extend(map(job_status.from_wire, infos))
    return page


def stats() -> Steps[dict[str, Any]]:
    """The broker's counts."""
    counts: dict[str, Any] = yield Request(
        Stats(), lambda ok: decode_value(_there(ok.stats, "stats"), "stats")
    )
    return counts


def ping() -> Steps[str]:
    """The broker's version."""
    version: str = yield Request(Ping(), lambda ok: _there(ok.version, "version"))
    return version


# ---- changing --------------------------------------------------------------------------------


def cancel(ids: AnyId | Iterable[AnyId], limit: MessageLimit) -> Steps[bool | list[UUID]]:
    """Whether the job was ended by this; of many, those that were."""
    texts = yield from _fitting(as_texts(_many(ids)), limit)
    ended: list[UUID] = []
    if texts:
        ended = yield Request(Cancel(ids=texts), _read_ids)
    return bool(ended) if _is_one(ids) else ended


def retry(ids: AnyId | Iterable[AnyId], limit: MessageLimit) -> Steps[list[UUID]]:
    """All jobs that run again by this; if an answer has no room for them, those asked for."""
    texts = yield from _fitting(as_texts(_many(ids)), limit)

    def read(ok: Ok) -> list[UUID]:
        # It was done, and ids that are too many to be told are left out.
        return list(map(as_uuid, texts)) if ok.ids is UNSET else _read_ids(ok)

    revived: list[UUID] = []
    if texts:
        revived = yield Request(Retry(ids=texts), read)
    return revived


def delete(ids: AnyId | Iterable[AnyId], limit: MessageLimit) -> Steps[list[UUID]]:
    """All jobs that are forgotten by this."""
    wanted = list(dict.fromkeys(map(as_uuid, _many(ids))))
    texts = yield from _fitting(as_texts(wanted), limit)

    def all_gone(error: PointsmanError) -> list[UUID] | None:
        # All or none are deleted: if none is left, the attempt without an answer did it.
        gone = isinstance(error, JobNotExist) and set(error.ids) == set(wanted)
        return wanted if gone else None

    deleted: list[UUID] = []
    if texts:
        deleted = yield Request(Delete(ids=texts), _read_ids, done_before=all_gone)
    return deleted


# ---- parts -----------------------------------------------------------------------------------


def seconds(duration: Duration, name: str) -> float:
    """A duration as seconds; InvalidRequest if it is none."""
    try:
        found = duration.total_seconds() if isinstance(duration, timedelta) else float(duration)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if math.isnan(found):
        raise InvalidRequest(f"{name} is a number of seconds or a timedelta, not {duration!r}")
    return found


def _unix_s(at: datetime | None, name: str) -> float | None:
    if at is None:
        return None
    if not isinstance(at, datetime):
        raise InvalidRequest(f"{name}={at!r} is not a time: give an aware datetime")
    if at.tzinfo is None:
        raise InvalidRequest(f"{name}={at!r} has no time zone: give an aware datetime")
    return at.timestamp()


def _is_one(ids: AnyId | Iterable[AnyId]) -> bool:
    return isinstance(ids, str | UUID)


def _many(ids: AnyId | Iterable[AnyId]) -> list[AnyId]:
    try:
        return [ids] if isinstance(ids, str | UUID) else list(ids)
    except TypeError:
        raise InvalidRequest(
            f"{ids!r} is neither a job id nor several: expected a UUID, its text or a list of them"
        ) from None


def _as_asked(ids: AnyId | Iterable[AnyId], infos: list[JobInfo]) -> JobStatus | list[JobStatus]:
    statuses = list(map(job_status.from_wire, infos))
    return statuses[0] if _is_one(ids) else statuses


def _texts_as_given(ids: Iterable[AnyId]) -> list[str]:
    """All ids in the wire's form, repeated where they are repeated."""
    return [str(as_uuid(id)) for id in ids]


def _ids_bytes(count: int) -> int:
    """What a message with so many ids takes."""
    return count * _ID_BYTES + ENVELOPE_BYTES


def _fitting(texts: tuple[str, ...], limit: MessageLimit) -> Steps[tuple[str, ...]]:
    size_bytes = _ids_bytes(len(texts))
    limit_bytes = yield from _limit_for(size_bytes, limit)
    if size_bytes > limit_bytes:
        raise TooLarge(
            f"{len(texts):,} ids take {size_bytes:,} bytes, and a message holds at most "
            f"{limit_bytes:,} bytes: ask in parts"
        )
    return texts


def _in_order(infos: Iterable[JobInfo], order: Iterable[str]) -> list[JobInfo]:
    """The answers in the order of the ids that were asked for."""
    by_id = {info.id: info for info in infos}
    try:
        return [by_id[id] for id in order]
    except KeyError as missing:
        raise ProtocolError(f"the broker's answer leaves out job {missing.args[0]}") from None


def _read_ids(ok: Ok) -> list[UUID]:
    try:
        return list(map(as_uuid, _there(ok.ids, "ids")))
    except ValueError as error:
        raise ProtocolError(f"the broker's answer cannot be read: {error}") from None


def _nothing(_: Ok) -> None:
    return None


def _there(value: T | UnsetType, name: str) -> T:
    if isinstance(value, UnsetType):
        raise ProtocolError(f"the broker's answer lacks {name!r}")
    return value
