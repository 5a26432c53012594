"""How the SQLite store writes jobs as bytes: many to a block, one MessagePack array a job.

A block is ``[kinds, rows]``. A kind is ``[type, channel, terms]``, a row begins with its number
(a live job's seq, an ended one's place) and refers to its kind by index; args and results are in
it as the bytes that came in. A row of its own for each job, with columns, costs SQLite and its
Python binding 12 us from enqueue to end, blocks 3 (batches of 1000, fsync included).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

import msgspec
from msgspec import Raw, Struct

from broker.core.job import READY, RUNNING, Job, Terms
from broker.core.records import Record

LIVE_MOST_ROWS = 256
ENDED_MOST_ROWS = 64
"""Ended jobs are also looked up one by one: one takes 25 us among 64, 43 us among 256."""
MOST_BYTES_A_ROW = 256
"""The rows of a block hold at most this many bytes of args, results and errors on average, for the
same reason; only a row alone in its block holds more."""
WIDEST = 1024
"""How far the numbers of a block may lie apart."""
_UNPACK_ALL_FROM = 16  # rows wanted of a block, from which on it is faster to read all


class Kind(Struct, array_like=True, gc=False):
    """What rows of a block have in common."""

    type: str
    channel: str
    terms: bytes


class LiveRow(Struct, array_like=True, gc=False):
    """A live job as it was enqueued."""

    number: int
    id: str
    kind: int
    args: bytes
    dependencies: bytes | None
    """JSON; None for none."""
    queued: float


class EndedRow(Struct, array_like=True, gc=False):
    """An ended job."""

    number: int
    ended: float
    id: str
    kind: int
    seq: int
    state: int
    attempt: int
    spared: int
    queued: float
    started: float | None
    args: bytes
    dependencies: bytes | None
    result: bytes | None
    error: str | None
    reason: str | None
    culprit: str | None


class Attempt(Struct, array_like=True, gc=False):
    """What is known of a live job's newest attempt; a job without any has none of it."""

    seq: int
    running: bool
    attempt: int
    spared: int
    due: float | None
    started: float | None
    session: str


class _Numbered(Struct, array_like=True, gc=False):
    number: int


Row = TypeVar("Row", LiveRow, EndedRow)


class Block(NamedTuple):
    """Rows on their way into the store."""

    first: int
    last: int
    row_count: int
    top_seq: int
    rows: bytes


_pack = msgspec.msgpack.Encoder().encode
_pack_json = msgspec.json.Encoder().encode
_unpack_raw = msgspec.msgpack.Decoder(tuple[Raw, list[Raw]]).decode
_unpack_kinds = msgspec.msgpack.Decoder(list[Kind]).decode
_unpack_number = msgspec.msgpack.Decoder(_Numbered).decode
_unpack_attempts = msgspec.msgpack.Decoder(list[Attempt]).decode


class Format(Generic[Row]):
    """How to read the blocks of one table."""

    def __init__(self, row: type[Row]) -> None:
        self._unpack: Callable[[bytes], tuple[list[Kind], list[Row]]] = msgspec.msgpack.Decoder(
            tuple[list[Kind], list[row]]  # type: ignore[valid-type]
        ).decode
        self._unpack_row: Callable[[bytes | Raw], Row] = msgspec.msgpack.Decoder(row).decode

    def all(self, rows: bytes) -> tuple[list[Kind], list[Row]]:
        """Give the kinds and all rows of a block."""
        return self._unpack(rows)

    def some(self, rows: bytes, numbers: Sequence[int]) -> tuple[list[Kind], list[Row]]:
        """Give the kinds of a block and the rows with these numbers, in the order of `numbers`."""
        if len(numbers) >= _UNPACK_ALL_FROM:
            kinds, there = self._unpack(rows)
            by_number = {row.number: row for row in there}
            return kinds, [by_number[number] for number in numbers]
        raw_kinds, raw_rows = _unpack_raw(rows)
        found = [self._unpack_row(_row_of(raw_rows, number)) for number in numbers]
        return _unpack_kinds(raw_kinds), found


LIVE = Format(LiveRow)
ENDED = Format(EndedRow)


def _row_of(raw_rows: list[Raw], number: int) -> Raw:
    low, high = 0, len(raw_rows)
    while low < high:
        middle = (low + high) // 2
        there = _unpack_number(raw_rows[middle]).number
        if there == number:
            return raw_rows[middle]
        if there < number:
            low = middle + 1
        else:
            high = middle
    raise KeyError(number)


def without(rows: bytes, first: int, gone: int) -> tuple[int, bytes]:
    """Give a block without the rows whose bits (number - first) are set in `gone`, and how many
    rows are left.
    """
    kinds, raw_rows = _unpack_raw(rows)
    kept = [raw for raw in raw_rows if not gone >> (_unpack_number(raw).number - first) & 1]
    return len(kept), _pack((kinds, kept))


# ---- jobs to blocks --------------------------------------------------------------------------


def live_blocks(jobs: list[Job]) -> Iterator[Block]:
    """Give new live jobs as blocks."""
    sizes = [len(job.args) for job in jobs]
    for part in _parts(sizes, [job.seq for job in jobs], LIVE_MOST_ROWS):
        some = jobs[part]
        kinds = _kinds(some)
        rows = [
            (
                job.seq,
                job.id,
                kinds[job.terms],
                job.args,
                _pack_json(job.dependencies) if job.dependencies else None,
                job.queued,
            )
            for job in some
        ]
        last = some[-1].seq
        yield Block(some[0].seq, last, len(some), last, _pack((_packed(kinds), rows)))


def ended_blocks(jobs: list[Job], place: int) -> Iterator[Block]:
    """Give jobs that have just ended as blocks, with the places from `place` on."""
    sizes = [
        len(job.args) + (len(outcome.result or b"") + 4 * len(outcome.error or ""))
        for job in jobs
        if (outcome := job.outcome) is not None
    ]
    for part in _parts(sizes, range(place, place + len(jobs)), ENDED_MOST_ROWS):
        some = jobs[part]
        kinds = _kinds(some)
        rows = [
            (
                number,
                outcome.ended,
                job.id,
                kinds[job.terms],
                job.seq,
                job.state,
                job.attempt,
                job.spared,
                job.queued,
                outcome.started,
                job.args,
                _pack_json(job.dependencies) if job.dependencies else None,
                outcome.result,
                outcome.error,
                outcome.reason,
                outcome.culprit,
            )
            for number, job in enumerate(some, place + part.start)
            if (outcome := job.outcome) is not None
        ]
        first = place + part.start
        top_seq = max([job.seq for job in some])
        packed = _pack((_packed(kinds), rows))
        yield Block(first, first + len(some) - 1, len(some), top_seq, packed)


def moved_block(kind: Kind, row: EndedRow) -> Block:
    """Give an ended job alone as a block, with the place that `row` has now."""
    row.kind = 0
    return Block(row.number, row.number, 1, row.seq, _pack(((kind,), (row,))))


def packed_attempts(jobs: Sequence[Job]) -> bytes:
    """Give the newest attempts of live jobs."""
    return _pack(
        [
            (
                job.seq,
                job.run is not None,
                job.attempt,
                job.spared,
                job.due,
                job.run.started if job.run is not None else None,
                job.run.session if job.run is not None else "",
            )
            for job in jobs
        ]
    )


def unpacked_attempts(packed: bytes) -> list[Attempt]:
    """Give back what `packed_attempts` made."""
    return _unpack_attempts(packed)


def _kinds(jobs: list[Job]) -> dict[Terms, int]:
    kinds: dict[Terms, int] = {}
    for job in jobs:
        if job.terms not in kinds:
            kinds[job.terms] = len(kinds)
    return kinds


def _packed(kinds: dict[Terms, int]) -> list[tuple[str, str, bytes]]:
    return [(terms.lane.type, terms.lane.channel, terms.encoded) for terms in kinds]


def _parts(sizes: list[int], numbers: Sequence[int], most_rows: int) -> Iterator[slice]:
    """Divide jobs into the parts that make up a block each."""
    most_bytes = most_rows * MOST_BYTES_A_ROW
    for start in range(0, len(sizes), most_rows):
        stop = min(start + most_rows, len(sizes))
        span = numbers[stop - 1] - numbers[start]
        if sum(sizes[start:stop]) <= most_bytes and span < WIDEST:
            yield slice(start, stop)
            continue
        size, begin = 0, start
        for index in range(start, stop):
            size += sizes[index]
            too_much = size > most_bytes or numbers[index] - numbers[begin] >= WIDEST
            if too_much and index > begin:
                yield slice(begin, index)
                size, begin = sizes[index], index
        yield slice(begin, stop)


# ---- rows to records -------------------------------------------------------------------------


def live_record(row: LiveRow, kinds: list[Kind], attempt: Attempt | None) -> Record:
    """Give a live job as a store gives it back."""
    kind = kinds[row.kind]
    record = Record(
        row.number,
        row.id,
        kind.type,
        kind.channel,
        kind.terms,
        row.args,
        b"[]" if row.dependencies is None else row.dependencies,
        row.queued,
        READY,
        0,
        0,
        None,
        None,
    )
    if attempt is not None:
        record.attempt, record.spared = attempt.attempt, attempt.spared
        record.due, record.started = attempt.due, attempt.started
        record.session = attempt.session
        if attempt.running:
            record.state = RUNNING
    return record


def ended_record(row: EndedRow, kinds: list[Kind]) -> Record:
    """Give an ended job as a store gives it back."""
    kind = kinds[row.kind]
    return Record(
        row.seq,
        row.id,
        kind.type,
        kind.channel,
        kind.terms,
        row.args,
        b"[]" if row.dependencies is None else row.dependencies,
        row.queued,
        row.state,
        row.attempt,
        row.spared,
        None,
        row.started,
        row.ended,
        row.result,
        row.error,
        row.reason,
        row.culprit,
    )
