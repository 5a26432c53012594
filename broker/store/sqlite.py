"""The default store: one SQLite file, each commit on disk before it returns."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import msgspec

from broker.core.graph import name_of
from broker.core.job import Job
from broker.core.records import Record, Writes, decode_dependencies
from broker.store.attempts import Attempts
from broker.store.base import StoreError
from broker.store.blocks import Blocks
from broker.store.rows import (
    ENDED,
    LIVE,
    EndedRow,
    Kind,
    ended_blocks,
    ended_record,
    live_blocks,
    live_record,
    moved_block,
)
from broker.store.schema import explain, open_file

_encode = msgspec.json.Encoder().encode

_FIND_ONE = "SELECT id, place FROM places WHERE id = ?"
_FIND_MANY = "SELECT id, place FROM places WHERE id IN (SELECT value FROM json_each(?))"
_DEPENDENTS_OF_ONE = "SELECT dependency, dependent FROM edges WHERE dependency = ?"
_DEPENDENTS_OF_MANY = (
    "SELECT dependency, dependent FROM edges WHERE dependency IN (SELECT value FROM json_each(?))"
)
_HAS_EDGES = "SELECT EXISTS (SELECT 1 FROM edges)"
_INSERT_EDGE = "INSERT OR IGNORE INTO edges VALUES (?, ?)"
_DELETE_EDGE = "DELETE FROM edges WHERE dependency = ? AND dependent = ?"
_INSERT_PLACE = "INSERT INTO places VALUES (?, ?)"
_MOVE_PLACE = "UPDATE places SET place = ? WHERE id = ?"
_DELETE_PLACE = "DELETE FROM places WHERE id = ?"


class SqliteStore:
    """Keeps jobs in the SQLite file at a path, made new if there is none, and locked.

    Jobs are written many to a block, see rows.py; in memory is what tells which are left of which
    block, a few bytes a job. After an I/O error the store refuses everything: what is on disk is
    known only once it is opened anew.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._db = open_file(path)
        # Why nothing can be written or read any more, once that is so.
        self._broken: str | None = None
        try:
            with self._reading():
                self._live = Blocks(self._db, "live")
                self._attempts = Attempts(self._db, self._live.has)
                self._ended = Blocks(self._db, "ended")
                (removed_seq,) = self._db.execute("SELECT highest_seq FROM removed").fetchone()
                self._last_seq: int = max(removed_seq, self._live.top, self._ended.top)
                # The place of the job that ended last.
                self._last_place = self._ended.highest
                # The highest id of an ended job, of those in the order of time: what is above it
                # need not be looked up.
                self._newest_id = self._find_newest_id()
                # Whether there was ever an edge: most answers ask who depends on a job.
                (self._has_edges,) = self._db.execute(_HAS_EDGES).fetchone()
        except StoreError:
            self._db.close()
            raise

    def _find_newest_id(self) -> str:
        row = self._db.execute(
            "SELECT id FROM places WHERE substr(id, 15, 1) = '7' ORDER BY id DESC LIMIT 1"
        ).fetchone()
        return row[0] if row is not None else ""

    @property
    def last_seq(self) -> int:
        """The highest `seq` that was ever committed, 0 for none."""
        return self._last_seq

    @property
    def ended_count(self) -> int:
        """How many ended jobs are kept. O(1)."""
        return self._ended.size

    # ---- writes ----

    def commit(self, writes: Writes) -> None:
        """Make all of `writes` lasting in one transaction, or nothing of it and raise StoreError.

        From 0.2 ms (one job) on, mostly the disk's; 1000 jobs, inserted, started and ended, 3 ms.
        """
        self._check_usable()
        try:
            self._db.execute("BEGIN IMMEDIATE")
            last_place = self._write(writes)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back(error)
            raise StoreError(explain(self._path, error)) from error
        except msgspec.MsgspecError as error:
            self._roll_back(None)
            raise StoreError(f"{self._path} is damaged: {error}") from error
        except BaseException:
            self._roll_back(None)
            raise
        self._live.settle()
        self._attempts.settle()
        self._ended.settle()
        self._last_place = last_place
        if writes.inserted:
            self._last_seq = writes.inserted[-1].seq
        if writes.ended:
            newest = max([job.id for job in writes.ended if is_ordered(job.id)], default="")
            self._newest_id = max(newest, self._newest_id)

    def _write(self, writes: Writes) -> int:
        """Write all inside a transaction; give the last place that is then in use."""
        place = self._last_place
        if writes.removed or writes.deferred:
            place = self._remove_and_defer(writes.removed, writes.deferred)
        inserted, ended = writes.inserted, writes.ended
        left = ended
        if inserted:
            self._insert(inserted)
            left = [job for job in ended if job.seq < inserted[0].seq]
        if writes.updated:
            self._attempts.write(writes.updated)
        if ended:
            seqs = [job.seq for job in left]
            self._live.drop(seqs)
            self._attempts.drop(seqs)
            self._ended.append(ended_blocks(ended, place + 1))
            places = range(place + 1, place + len(ended) + 1)
            ids = [job.id for job in ended]
            self._db.executemany(_INSERT_PLACE, zip(ids, places, strict=True))
        return place + len(ended)

    def _insert(self, inserted: list[Job]) -> None:
        live = [job for job in inserted if job.outcome is None]
        self._live.append(live_blocks(live))
        # A retried job has attempts behind it, a delayed one is due.
        marked = [job for job in live if job.attempt or job.due is not None]
        if marked:
            self._attempts.write(marked)
        with_dependencies = [job for job in inserted if job.dependencies]
        if with_dependencies:
            self._has_edges = True
            self._db.executemany(
                _INSERT_EDGE,
                [
                    (name_of(dependency), job.id)
                    for job in with_dependencies
                    for dependency in job.dependencies
                ],
            )

    def _remove_and_defer(self, removed: list[str], deferred: list[str]) -> int:
        """Forget ended jobs, and put others last; give the last place that is then in use."""
        places = self._places_of([*removed, *deferred])
        unknown = [id for id in (*removed, *deferred) if id not in places]
        if unknown:
            raise StoreError(f"{self._path}: not an ended job: {unknown[0]}")
        db = self._db
        place = self._last_place
        to_go = set(removed)
        for row, kinds in self._ended_rows(places.values()):
            if row.id not in to_go:
                place += 1
                row.number = place
                self._ended.append([moved_block(kinds[row.kind], row)])
                db.execute(_MOVE_PLACE, (place, row.id))
            elif row.dependencies is not None:
                ids = [name_of(one) for one in decode_dependencies(row.dependencies)]
                db.executemany(_DELETE_EDGE, [(id, row.id) for id in ids])
        self._ended.drop(sorted(places.values()))
        db.executemany(_DELETE_PLACE, [(id,) for id in removed])
        if removed:
            db.execute("UPDATE removed SET highest_seq = ?", (self._last_seq,))
        return place

    def _roll_back(self, cause: sqlite3.Error | None) -> None:
        """Undo a transaction that failed, on disk and in memory."""
        self._live.forget()
        self._attempts.forget()
        self._ended.forget()
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except sqlite3.Error as error:
            self._broken = explain(self._path, error)
        if cause is not None and _is_io_error(cause):
            # A sync that failed may not be tried again: the system can have dropped the pages.
            self._broken = explain(self._path, cause)

    # ---- reads ----

    def load(self) -> Iterator[Record]:
        """Give all live jobs in the order of `seq`. 1,000,000 take 2 s."""
        with self._reading():
            attempts = self._attempts.newest()
            for first, gone, packed in self._live.up():
                kinds, rows = LIVE.all(packed)
                for row in rows:
                    if not gone >> (row.number - first) & 1:
                        yield live_record(row, kinds, attempts.get(row.number))

    def ended_among(self, ids: Sequence[str]) -> set[str]:
        """Give those of `ids` that are ended jobs. Almost free for new ids."""
        asked = self._that_may_have_ended(ids)
        if not asked:
            return set()
        with self._reading():
            return set(self._places_of(asked))

    def read(self, ids: Sequence[str]) -> Iterator[Record]:
        """Give those of `ids` that are ended jobs, first ended first. Almost free for new ids."""
        return (ended_record(row, kinds) for row, kinds in self._ended_of(ids))

    def results(self, ids: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Give the results (JSON) of those of `ids` that are finished jobs, first ended first."""
        return ((row.id, row.result) for row, _ in self._ended_of(ids) if row.result is not None)

    def dependents(self, ids: Sequence[str]) -> dict[str, list[str]]:
        """Give the ids of all committed jobs, live or ended, that depend on each of `ids`."""
        self._check_usable()
        found: dict[str, list[str]] = {}
        if not self._has_edges:
            return found
        with self._reading():
            if len(ids) == 1:
                rows = self._db.execute(_DEPENDENTS_OF_ONE, (ids[0],))
            else:
                rows = self._db.execute(_DEPENDENTS_OF_MANY, (_encode(ids).decode(),))
            for dependency, dependent in rows:
                found.setdefault(dependency, []).append(dependent)
        return found

    def oldest(self) -> Iterator[tuple[str, float]]:
        """Give id and end of the ended jobs, next in line to be pruned first; read as they are
        taken, and to be dropped before the next commit.
        """
        with self._reading():
            for first, gone, packed in self._ended.up():
                for row in ENDED.all(packed)[1]:
                    if not gone >> (row.number - first) & 1:
                        yield row.id, row.ended

    def live_down(self, before: int | None) -> Iterator[tuple[int, str]]:
        """Give seq and id of live jobs, newest first, from below the seq `before` on."""
        with self._reading():
            for first, gone, packed in self._live.down(before):
                for row in reversed(LIVE.all(packed)[1]):
                    is_below = before is None or row.number < before
                    if is_below and not gone >> (row.number - first) & 1:
                        yield row.number, row.id

    def ended_down(self, before: int | None) -> Iterator[tuple[int, Record]]:
        """Give ended jobs, latest end first, each with its place in that order, from below
        the place `before` on.
        """
        with self._reading():
            for first, gone, packed in self._ended.down(before):
                kinds, rows = ENDED.all(packed)
                for row in reversed(rows):
                    is_below = before is None or row.number < before
                    if is_below and not gone >> (row.number - first) & 1:
                        yield row.number, ended_record(row, kinds)

    def close(self) -> None:
        """Let go of the file and its lock; what was committed stays."""
        self._broken = f"{self._path} is closed"
        try:
            self._db.close()
        except sqlite3.Error as error:
            raise StoreError(explain(self._path, error)) from error

    def _that_may_have_ended(self, ids: Sequence[str]) -> list[str]:
        """Give those of `ids` of which the file must be asked."""
        self._check_usable()
        if not self._ended.size:
            return []
        newest = self._newest_id
        return [id for id in ids if id <= newest or not is_ordered(id)]

    def _places_of(self, ids: Sequence[str]) -> dict[str, int]:
        """Give the places of those of `ids` that are ended jobs."""
        if len(ids) == 1:
            return dict(self._db.execute(_FIND_ONE, ids))
        return dict(self._db.execute(_FIND_MANY, (_encode(ids).decode(),)))

    def _ended_of(self, ids: Sequence[str]) -> Iterator[tuple[EndedRow, list[Kind]]]:
        asked = self._that_may_have_ended(ids)
        if asked:
            with self._reading():
                yield from self._ended_rows(self._places_of(asked).values())

    def _ended_rows(self, places: Iterable[int]) -> Iterator[tuple[EndedRow, list[Kind]]]:
        for packed, some in self._ended.by_block(places):
            kinds, rows = ENDED.some(packed, some)
            for row in rows:
                yield row, kinds

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn what is wrong with the file into a StoreError."""
        self._check_usable()
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(explain(self._path, error)) from error
        except (msgspec.MsgspecError, KeyError, IndexError, TypeError, ValueError) as error:
            raise StoreError(f"{self._path} is damaged: {error}") from error

    def _check_usable(self) -> None:
        if self._broken is not None:
            raise StoreError(f"the store cannot go on: {self._broken}")


def is_ordered(id: str) -> bool:
    """Say whether an id is a UUID of version 7, which grow with time."""
    return id[14:15] == "7"


def _is_io_error(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR
