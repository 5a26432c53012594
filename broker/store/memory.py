"""The store that forgets with its process: for tests, and for jobs that need not outlive it."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress, islice

from broker.core.graph import name_of
from broker.core.job import Job
from broker.core.records import Record, Writes, record_of
from broker.store.base import StoreError

_SQUEEZE_FROM = 64


class MemoryStore:
    """Keeps the core's own Job objects: 16 bytes a live job, and next to no time.

    A live job is therefore always as the core has it now, committed or not.
    """

    def __init__(self) -> None:
        # By seq.
        self._live = _Line()
        # By place: the order of their ends, deferred ones last.
        self._ended = _Line()
        # The id of each ended job -> its place.
        self._places: dict[str, int] = {}
        self._last_place = 0
        # The id of a dependency -> those of its dependents, in the order of enqueue; most have
        # one, and are spared the dict.
        self._dependents: dict[str, str | dict[str, None]] = {}
        self._last_seq = 0

    @property
    def last_seq(self) -> int:
        """The highest `seq` that was ever committed, 0 for none."""
        return self._last_seq

    @property
    def ended_count(self) -> int:
        """How many ended jobs are kept. O(1)."""
        return len(self._places)

    def commit(self, writes: Writes) -> None:
        """Take over all of `writes`."""
        unknown = [id for id in (*writes.removed, *writes.deferred) if id not in self._places]
        if unknown:
            raise StoreError(f"not an ended job: {unknown[0]}")
        for id in writes.removed:
            self._forget(self._ended.take(self._places.pop(id)))
        for id in writes.deferred:
            self._append_ended([self._ended.take(self._places.pop(id))])
        if writes.inserted:
            self._insert(writes.inserted)
        if writes.ended:
            self._end(writes)

    def _insert(self, inserted: list[Job]) -> None:
        self._last_seq = inserted[-1].seq
        live = [job for job in inserted if job.outcome is None]
        self._live.extend([job.seq for job in live], live)
        for job in inserted:
            if job.dependencies:
                self._link(job)

    def _end(self, writes: Writes) -> None:
        seqs = [job.seq for job in writes.ended]
        if writes.inserted:
            # Those that were born in this turn have never been live here.
            first_new = writes.inserted[0].seq
            seqs = [seq for seq in seqs if seq < first_new]
        self._live.take_all(seqs)
        self._append_ended(writes.ended)

    def _append_ended(self, jobs: list[Job]) -> None:
        first = self._last_place + 1
        self._last_place += len(jobs)
        places = range(first, first + len(jobs))
        self._ended.extend(places, jobs)
        self._places.update(zip([job.id for job in jobs], places, strict=True))

    # ---- dependents ----

    def _link(self, job: Job) -> None:
        """Note that a job depends on others."""
        dependents, own = self._dependents, job.id
        for dependency in job.dependencies:
            id = dependency if type(dependency) is str else name_of(dependency)
            there = dependents.get(id)
            if there is None:
                dependents[id] = own
            elif isinstance(there, str):
                dependents[id] = {there: None, own: None}
            else:
                there[own] = None

    def _forget(self, job: Job) -> None:
        """Forget that a job depended on others; that others depended on it is theirs."""
        for dependency in job.dependencies:
            id = name_of(dependency)
            there = self._dependents[id]
            if isinstance(there, str):
                del self._dependents[id]
                continue
            del there[job.id]
            if not there:
                del self._dependents[id]

    def dependents(self, ids: Sequence[str]) -> dict[str, list[str]]:
        """Give the ids of all committed jobs, live or ended, that depend on each of `ids`."""
        found: dict[str, list[str]] = {}
        for id in ids:
            there = self._dependents.get(id)
            if there is not None:
                found[id] = [there] if isinstance(there, str) else list(there)
        return found

    # ---- reads ----

    def load(self) -> Iterator[Record]:
        """Give all live jobs in the order of `seq`."""
        for job in self._live:
            yield record_of(job)

    def ended_among(self, ids: Sequence[str]) -> set[str]:
        """Give those of `ids` that are ended jobs."""
        return self._places.keys() & ids

    def read(self, ids: Sequence[str]) -> Iterator[Record]:
        """Give those of `ids` that are ended jobs."""
        return map(record_of, self._ended_of(ids))

    def results(self, ids: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Give the results (JSON) of those of `ids` that are finished jobs."""
        for job in self._ended_of(ids):
            if job.outcome is not None and job.outcome.result is not None:
                yield job.id, job.outcome.result

    def _ended_of(self, ids: Sequence[str]) -> Iterator[Job]:
        places = self._places
        return (self._ended[places[id]] for id in dict.fromkeys(ids) if id in places)

    def oldest(self) -> Iterator[tuple[str, float]]:
        """Give id and end of the ended jobs, next in line to be pruned first."""
        for job in self._ended:
            if job.outcome is not None:
                yield job.id, job.outcome.ended

    def live_down(self, before: int | None) -> Iterator[tuple[int, str]]:
        """Give seq and id of live jobs, newest first, from below the seq `before` on."""
        return ((seq, job.id) for seq, job in self._live.backwards(before))

    def ended_down(self, before: int | None) -> Iterator[tuple[int, Record]]:
        """Give ended jobs, latest end first, each with its place in that order, from below
        the place `before` on.
        """
        return ((place, record_of(job)) for place, job in self._ended.backwards(before))

    def close(self) -> None:
        """Do nothing: what there is goes with the object."""


class _Line:
    """Jobs in the order of a number that only grows: 16 bytes each.

    A job that is taken out leaves a hole; holes are squeezed out when they are the larger half.
    """

    def __init__(self) -> None:
        self._numbers = array("q")
        self._jobs: list[Job | None] = []
        self._holes = 0
        # Where the job taken last was: the next one is its neighbour most of the time.
        self._last = -1
        # No job stands before this index.
        self._first = 0

    def __iter__(self) -> Iterator[Job]:
        jobs = self._jobs
        while self._first < len(jobs) and jobs[self._first] is None:
            self._first += 1
        return (job for job in islice(jobs, self._first, None) if job is not None)

    def __getitem__(self, number: int) -> Job:
        return self._at(self._index(number), number)

    def extend(self, numbers: Iterable[int], jobs: list[Job]) -> None:
        """Append jobs with their numbers, which are higher than all before."""
        self._numbers.extend(numbers)
        self._jobs.extend(jobs)

    def take(self, number: int) -> Job:
        """Take out the job with this number. O(log n), O(1) next to the one taken before."""
        index = self._last + 1
        if index >= len(self._numbers) or self._numbers[index] != number:
            index = self._index(number)
        job = self._at(index, number)
        self._jobs[index] = None
        self._last = index
        self._count_holes(1)
        return job

    def take_all(self, numbers: list[int]) -> None:
        """Take out the jobs with these numbers: fastest for neighbours in a row."""
        count = len(numbers)
        start = self._index(numbers[0]) if numbers else 0
        stop = start + count
        in_a_row = self._numbers[start:stop] == array("q", numbers)
        if in_a_row and None not in self._jobs[start:stop]:
            self._jobs[start:stop] = [None] * count
            self._last = stop - 1
        else:
            self._take_scattered(numbers)
        self._count_holes(count)

    def _take_scattered(self, numbers: list[int]) -> None:
        """Take out jobs that stand apart, as those do that many workers end in one turn.

        As far apart as their numbers, mostly: to look there first takes 0.2 us, a search 0.6.
        """
        all_numbers, jobs = self._numbers, self._jobs
        before, index = numbers[0], self._index(numbers[0])
        for number in numbers:
            index += number - before
            if not 0 <= index < len(jobs) or all_numbers[index] != number:
                index = self._index(number)
            self._at(index, number)
            jobs[index] = None
            before = number
        self._last = index

    def _count_holes(self, new: int) -> None:
        self._holes += new
        if self._holes > _SQUEEZE_FROM and self._holes * 2 > len(self._jobs):
            self._squeeze()

    def backwards(self, before: int | None) -> Iterator[tuple[int, Job]]:
        """Give jobs with their numbers, highest first, all below `before`."""
        index = len(self._numbers) if before is None else bisect_left(self._numbers, before)
        while index > 0:
            index -= 1
            job = self._jobs[index]
            if job is not None:
                yield self._numbers[index], job

    def _index(self, number: int) -> int:
        return bisect_left(self._numbers, number)

    def _at(self, index: int, number: int) -> Job:
        job = self._jobs[index] if index < len(self._jobs) else None
        if job is None or self._numbers[index] != number:
            raise StoreError(f"the memory store has no job number {number}")
        return job

    def _squeeze(self) -> None:
        self._numbers = array("q", compress(self._numbers, self._jobs))
        self._jobs = [job for job in self._jobs if job is not None]
        self._holes = self._first = 0
        self._last = -1
