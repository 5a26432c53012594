"""A table of blocks in SQLite: many rows to a block, and which of them are gone."""

from __future__ import annotations

import sqlite3
from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from typing import NamedTuple

from broker.store.base import StoreError
from broker.store.rows import WIDEST, Block, without

_SQUEEZE_FROM = 64
_THIN_FROM = 32
_THIN_BELOW = 8  # a block that keeps one row in so many is written anew


class _Change(NamedTuple):
    """What a transaction does to a block: what is to be known of it afterwards."""

    gone: int
    left: int
    row_count: int


class Blocks:
    """Rows by number in the blocks of one table; numbers of new rows are higher than all before.

    A row that is dropped stays in its block: its bit (number - first) is set in the row of the
    table beside, `<table>_gone`, until the last row of the block goes, or almost the last.
    In memory a block costs 14 bytes, with dropped rows some 200.

    Methods that write run inside a transaction of the caller, who says how it ended by `settle`
    or `forget`.
    """

    def __init__(self, db: sqlite3.Connection, table: str) -> None:
        self._db = db
        self._table = table
        # By block: its lowest number, its highest one beyond that, how many rows it has as written,
        # how many of them are left; 0 is a hole, where a block was.
        self._firsts = array("q")
        self._widths = array("H")
        self._counts = array("H")
        self._lefts = array("H")
        self._holes = 0
        # How many rows are left in all.
        self.size = 0
        # The highest seq of a job in any of them, as of opening.
        self.top = 0
        # First number of a block -> bits of the rows that are gone, if any are.
        self._gone: dict[int, int] = {}
        # What the present transaction changes: index -> change, and new blocks.
        self._changes: dict[int, _Change] = {}
        self._new: list[Block] = []
        self._read()
        self._insert = f"INSERT INTO {table} VALUES (?, ?, ?, ?, ?)"
        self._delete = f"DELETE FROM {table} WHERE first = ?"
        self._rewrite = f"UPDATE {table} SET count = ?, rows = ? WHERE first = ?"
        self._one = f"SELECT rows FROM {table} WHERE first = ?"
        self._upwards = f"SELECT first, rows FROM {table} ORDER BY first"
        self._downwards = f"SELECT first, rows FROM {table} WHERE first < ? ORDER BY first DESC"
        self._insert_gone = f"REPLACE INTO {table}_gone VALUES (?, ?, ?)"
        self._delete_gone = f"DELETE FROM {table}_gone WHERE first = ?"

    def _read(self) -> None:
        for first, last, count, top_seq in self._db.execute(
            f"SELECT first, last, count, top_seq FROM {self._table} ORDER BY first"
        ):
            self.top = max(self.top, top_seq)
            if not (0 <= last - first < WIDEST and 0 < count <= last - first + 1):
                raise StoreError(f"block {first} of table {self._table!r} is damaged")
            self._firsts.append(first)
            self._widths.append(last - first)
            self._counts.append(count)
            self._lefts.append(count)
        for first, gone, left in self._db.execute(f"SELECT * FROM {self._table}_gone"):
            index = bisect_right(self._firsts, first) - 1
            if index < 0 or self._firsts[index] != first or not 0 < left <= self._counts[index]:
                raise StoreError(f"block {first} of table {self._table + '_gone'!r} is damaged")
            self._gone[first] = int.from_bytes(gone, "little")
            self._lefts[index] = left
        self.size = sum(self._lefts)

    @property
    def highest(self) -> int:
        """The highest number of the newest block, 0 for none."""
        return self._firsts[-1] + self._widths[-1] if self._firsts else 0

    def has(self, number: int) -> bool:
        """Say whether there is a row with this number."""
        index = bisect_right(self._firsts, number) - 1
        if index < 0 or not self._lefts[index]:
            return False
        offset = number - self._firsts[index]
        gone = self._gone.get(self._firsts[index], 0)
        return offset <= self._widths[index] and not gone >> offset & 1

    # ---- reads ----

    def up(self) -> Iterator[tuple[int, int, bytes]]:
        """Give every block, lowest numbers first: its first number, what is gone, its rows."""
        for first, rows in self._db.execute(self._upwards):
            yield first, self._gone.get(first, 0), rows

    def down(self, before: int | None) -> Iterator[tuple[int, int, bytes]]:
        """Give the blocks with numbers below `before`, highest first, as `up` does."""
        top = self.highest + 1 if before is None else before
        for first, rows in self._db.execute(self._downwards, (top,)):
            yield first, self._gone.get(first, 0), rows

    def by_block(self, numbers: Iterable[int]) -> Iterator[tuple[bytes, list[int]]]:
        """Give the rows of each block that has some of `numbers`, together with those."""
        wanted: dict[int, list[int]] = defaultdict(list)
        for number in sorted(numbers):
            wanted[self._firsts[self._index(number)]].append(number)
        for first, some in wanted.items():
            yield self._rows(first), some

    def _rows(self, first: int) -> bytes:
        row = self._db.execute(self._one, (first,)).fetchone()
        if row is None:
            raise StoreError(f"block {first} of table {self._table!r} is missing")
        rows: bytes = row[0]
        return rows

    def _index(self, number: int) -> int:
        """Give the index of the block that `number` is in."""
        index = bisect_right(self._firsts, number) - 1
        if index < 0 or number > self._firsts[index] + self._widths[index]:
            raise StoreError(f"table {self._table!r} has no row {number}")
        return index

    # ---- writes ----

    def append(self, blocks: Iterable[Block]) -> None:
        """Write new blocks."""
        for block in blocks:
            self._db.execute(self._insert, block)
            self._new.append(block)

    def drop(self, numbers: Sequence[int]) -> None:
        """Drop rows; fast for runs of neighbours. Once a transaction."""
        masks: dict[int, int] = {}
        index, first, last, mask = -1, 0, -1, 0
        for number in numbers:
            if not first <= number <= last:
                if index >= 0:
                    masks[index] = mask
                index = self._index(number)
                first = self._firsts[index]
                last = first + self._widths[index]
                mask = masks.get(index, 0)
            mask |= 1 << (number - first)
        if index >= 0:
            masks[index] = mask
        for index, mask in masks.items():
            self._drop(index, mask)

    def _drop(self, index: int, mask: int) -> None:
        first = self._firsts[index]
        before = self._gone.get(first, 0)
        if mask & before:
            raise StoreError(f"a row of block {first} of table {self._table!r} is gone already")
        gone, left = before | mask, self._lefts[index] - mask.bit_count()
        count = self._counts[index]
        if left <= 0:
            self._db.execute(self._delete, (first,))
            if before:
                self._db.execute(self._delete_gone, (first,))
        else:
            if count >= _THIN_FROM and left * _THIN_BELOW <= count:
                count, rows = without(self._rows(first), first, gone)
                self._db.execute(self._rewrite, (count, rows, first))
            size = (gone.bit_length() + 7) // 8
            self._db.execute(self._insert_gone, (first, gone.to_bytes(size, "little"), left))
        self._changes[index] = _Change(gone, left, count)

    def settle(self) -> None:
        """Take note that the transaction is committed."""
        for index, change in self._changes.items():
            first = self._firsts[index]
            self.size -= self._lefts[index] - change.left
            self._lefts[index] = change.left
            self._counts[index] = change.row_count
            if change.left:
                self._gone[first] = change.gone
            else:
                self._gone.pop(first, None)
                self._holes += 1
        for block in self._new:
            self._firsts.append(block.first)
            self._widths.append(block.last - block.first)
            self._counts.append(block.row_count)
            self._lefts.append(block.row_count)
            self.size += block.row_count
        self.forget()
        if self._holes > _SQUEEZE_FROM and self._holes * 2 > len(self._firsts):
            self._squeeze()

    def forget(self) -> None:
        """Take note that the transaction was rolled back."""
        self._changes.clear()
        self._new.clear()

    def _squeeze(self) -> None:
        self._firsts = array("q", compress(self._firsts, self._lefts))
        self._widths = array("H", compress(self._widths, self._lefts))
        self._counts = array("H", compress(self._counts, self._lefts))
        self._lefts = array("H", compress(self._lefts, self._lefts))
        self._holes = 0
