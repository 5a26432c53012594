"""The contract of every store: committed state lives there, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from broker.core.records import Archive, Record, Writes


class StoreError(Exception):
    """The store cannot do what its contract says; the message is for the person who runs it."""


class Store(Archive, Protocol):
    """Keeps jobs. One thread uses it at a time; every error it meets is a StoreError.

    Writes hold what the core's rules allow: ids are unique among all jobs, a new job's `seq` is
    higher than all before, a job ends once, `removed` and `deferred` have no id in common. A store
    need not find out if they do not.
    """

    @property
    def last_seq(self) -> int:
        """The highest `seq` that was ever committed, 0 for none."""

    def load(self) -> Iterator[Record]:
        """Give all live jobs in the order of `seq`, once, at start."""

    def commit(self, writes: Writes) -> None:
        """Make all of `writes` lasting, or nothing of it and raise StoreError.

        In this order: `removed`, `deferred`, `inserted`, `updated`, `ended`. After an error the
        store stands where it stood before, and takes another commit or refuses it clearly. Whether
        a commit that failed with an I/O error is on disk all the same shows when the store is
        opened anew; nothing of it may have been acknowledged.
        """

    # What the three below give is read as it is taken, and to be dropped before the next commit.

    def results(self, ids: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Give the results (JSON) of those of `ids` that are finished jobs, in any order."""

    def live_down(self, before: int | None) -> Iterator[tuple[int, str]]:
        """Give seq and id of live jobs, newest first, from below the seq `before` on."""

    def ended_down(self, before: int | None) -> Iterator[tuple[int, Record]]:
        """Give ended jobs, each with its place in the order of their ends, highest first, from
        below the place `before` on. Deferred ones have the place of that moment.
        """

    def close(self) -> None:
        """Let go of files and locks; what was committed stays."""
