"""The newest attempts of live jobs in SQLite: written a turn at a time, dropped when outdated."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from broker.core.job import Job
from broker.store.rows import Attempt, packed_attempts, unpacked_attempts

_MOST_IN_A_ROW = 128
"""So that one long attempt cannot keep the rest of a large turn on disk."""


class Attempts:
    """What live jobs have beyond what they were enqueued with: attempts, and when they are due.

    A job's later entry replaces its earlier one; a row whose entries are all outdated is deleted.
    In memory a job with an entry costs about 100 bytes: few are running, compared to those queued.

    Methods that write run inside a transaction of the caller, who says how it ended by `settle`
    or `forget`.
    """

    def __init__(self, db: sqlite3.Connection, is_live: Callable[[int], bool]) -> None:
        self._db = db
        # seq -> the row with the job's newest entry.
        self._row_of: dict[int, int] = {}
        # Row -> how many entries in it are valid.
        self._valid: dict[int, int] = {}
        self._last_row = 0
        # What the present transaction changes.
        self._new: list[tuple[int, list[int]]] = []
        self._outdated: Counter[int] = Counter()
        self._dropped: list[int] = []
        for row, attempt in self._all():
            self._last_row = row
            self._valid.setdefault(row, 0)
            if is_live(attempt.seq):
                before = self._row_of.get(attempt.seq)
                if before is not None:
                    self._valid[before] -= 1
                self._row_of[attempt.seq] = row
                self._valid[row] += 1

    def _all(self) -> Iterator[tuple[int, Attempt]]:
        for row, packed in self._db.execute("SELECT row, attempts FROM attempts ORDER BY row"):
            for attempt in unpacked_attempts(packed):
                yield row, attempt

    def newest(self) -> dict[int, Attempt]:
        """Give the newest attempt of each live job that has one, by seq."""
        # Later rows replace earlier ones; those of ended jobs are in nobody's way.
        return {attempt.seq: attempt for _, attempt in self._all()}

    def write(self, jobs: Sequence[Job]) -> None:
        """Write the present attempts of live jobs. Before `drop`, and once a transaction."""
        for start in range(0, len(jobs), _MOST_IN_A_ROW):
            some = jobs[start : start + _MOST_IN_A_ROW]
            row = self._last_row + len(self._new) + 1
            self._db.execute("INSERT INTO attempts VALUES (?, ?)", (row, packed_attempts(some)))
            seqs = [job.seq for job in some]
            self._new.append((row, seqs))
            self._outdate(seqs)

    def drop(self, seqs: Sequence[int]) -> None:
        """Forget the attempts of jobs that are no longer live."""
        if self._row_of:
            self._outdate(seqs)
            self._dropped.extend(seqs)

    def _outdate(self, seqs: Sequence[int]) -> None:
        row_of, valid, outdated = self._row_of, self._valid, self._outdated
        for seq in seqs:
            row = row_of.get(seq)
            if row is not None:
                outdated[row] += 1
                if outdated[row] == valid[row]:
                    self._db.execute("DELETE FROM attempts WHERE row = ?", (row,))

    def settle(self) -> None:
        """Take note that the transaction is committed."""
        for row, count in self._outdated.items():
            self._valid[row] -= count
            if not self._valid[row]:
                del self._valid[row]
        for seq in self._dropped:
            self._row_of.pop(seq, None)
        for row, seqs in self._new:
            self._row_of.update(dict.fromkeys(seqs, row))
            self._valid[row] = len(seqs)
            self._last_row = row
        self.forget()

    def forget(self) -> None:
        """Take note that the transaction was rolled back."""
        self._new.clear()
        self._outdated.clear()
        self._dropped.clear()
