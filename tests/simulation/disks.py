"""What stays when a broker dies: a store's committed state, and no more than that."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

from broker.core.job import Job, Outcome, Run, State
from broker.core.lanes import Lanes
from broker.core.records import Record, Writes, decode_dependencies, record_of
from broker.store.base import Store, StoreError
from broker.store.memory import MemoryStore
from broker.store.sqlite import SqliteStore
from tests.simulation.world import World

_SECTOR = 512


class Crash(BaseException):
    """The broker's process is gone, at this very point."""


class Disk(Protocol):
    """Where a store keeps what it committed."""

    def open(self) -> Store:
        """Give a store on what is there."""

    def committed(self, writes: Writes) -> None:
        """Take note that the store has committed."""

    def tear(self, commit: Callable[[], None]) -> bool:
        """Have the power fail in the middle of a commit; say whether it is there all the same."""

    def crashed(self) -> None:
        """The process is gone, nothing was closed."""

    def remove(self) -> None:
        """Clean up."""


class MemoryDisk:
    """Copies of all that a memory store was given to commit: it keeps the core's own objects."""

    def __init__(self) -> None:
        self._live: dict[str, Record] = {}
        self._ended: dict[str, Record] = {}
        self._last_seq = 0

    def open(self) -> Store:
        store = MemoryStore()
        lanes = Lanes()
        live = [_job(record, lanes) for record in self._live.values()]
        ended = [_job(record, lanes) for record in self._ended.values()]
        jobs = sorted(live + ended, key=lambda job: job.seq)
        if jobs:
            store.commit(Writes(inserted=jobs, ended=ended))
        store._last_seq = self._last_seq
        return store

    def committed(self, writes: Writes) -> None:
        live, ended = self._live, self._ended
        for id in writes.removed:
            del ended[id]
        for id in writes.deferred:
            ended[id] = ended.pop(id)
        for job in writes.inserted:
            live[job.id] = record_of(job)
            self._last_seq = job.seq
        for job in writes.updated:
            live[job.id] = record_of(job)
        for job in writes.ended:
            del live[job.id]
            ended[job.id] = record_of(job)

    def tear(self, commit: Callable[[], None]) -> bool:
        return False

    def crashed(self) -> None:
        pass

    def remove(self) -> None:
        pass


class SqliteDisk:
    """A file, and beside it SQLite's log. A crash leaves both as they are at that moment."""

    def __init__(self, world: World) -> None:
        shm = Path("/dev/shm")
        folder = shm if shm.is_dir() else None
        self._folder = Path(tempfile.mkdtemp(prefix="pointsman-", dir=folder))
        self._dice = world.dice("disk")
        self._generation = 0
        self._store: SqliteStore | None = None
        self._torn: dict[str, bytes] | None = None

    @property
    def _path(self) -> Path:
        return self._folder / str(self._generation) / "jobs.db"

    def open(self) -> Store:
        self._path.parent.mkdir(exist_ok=True)
        self._store = SqliteStore(str(self._path))
        return self._store

    def committed(self, writes: Writes) -> None:
        pass

    def tear(self, commit: Callable[[], None]) -> bool:
        before = self._files()
        commit()
        after = self._files()
        log = next((name for name in after if name.endswith("-wal")), None)
        if log is None or before.get(self._path.name) != after[self._path.name]:
            return True  # the log was written back meanwhile: all of it had been on disk
        old, new = before.get(log, b""), bytearray(after[log])
        whole = True
        for at in range(0, len(new), _SECTOR):
            there = old[at : at + _SECTOR].ljust(len(new[at : at + _SECTOR]), b"\0")
            if there != new[at : at + _SECTOR] and self._dice.random() < 0.3:
                new[at : at + _SECTOR] = there
                whole = False
        self._torn = {self._path.name: after[self._path.name], log: bytes(new)}
        return whole

    def _files(self) -> dict[str, bytes]:
        folder = self._path.parent
        return {
            each.name: each.read_bytes()
            for each in folder.iterdir()
            if each.name in (self._path.name, self._path.name + "-wal")
        }

    def crashed(self) -> None:
        files = self._torn or self._files()
        self._torn = None
        self._generation += 1
        self._path.parent.mkdir()
        for name, content in files.items():
            (self._path.parent / name).write_bytes(content)
        if self._store is not None:
            self._store._db.close()
            self._store = None

    def remove(self) -> None:
        if self._store is not None:
            self._store._db.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class FaultyStore:
    """A store on a disk, with what can go wrong in a commit."""

    def __init__(self, disk: Disk, world: World, committed: Callable[[], None]) -> None:
        self._inner: Any = disk.open()
        self._disk = disk
        self._world = world
        self._committed = committed
        # Set by a fault, for a while.
        self.is_full = False
        inner = self._inner
        self.load, self.read, self.results = inner.load, inner.read, inner.results
        self.dependents, self.oldest = inner.dependents, inner.oldest
        self.live_down, self.ended_down, self.close = inner.live_down, inner.ended_down, inner.close
        self.ended_among = inner.ended_among

    @property
    def last_seq(self) -> int:
        return cast(int, self._inner.last_seq)

    @property
    def ended_count(self) -> int:
        return cast(int, self._inner.ended_count)

    def commit(self, writes: Writes) -> None:
        world, disk = self._world, self._disk
        if world.rates and world.is_rough:
            if world.strikes("slow_store"):
                world.run(world.now + world.dice(f"slow/{world.struck}").uniform(0, 1), _never)
            if self.is_full or world.strikes("commit_failed"):
                raise StoreError("no space left on the simulated disk")
            if world.strikes("crash_before_commit"):
                raise Crash
            if world.strikes("crash_in_commit"):
                if disk.tear(lambda: self._inner.commit(writes)):
                    disk.committed(writes)
                    self._committed()
                raise Crash
        self._inner.commit(writes)
        disk.committed(writes)
        self._committed()
        if world.rates and world.is_rough:
            if world.strikes("commit_failed_late"):
                raise StoreError("the simulated disk does not say that it has it")
            if world.strikes("crash_after_commit"):
                raise Crash


def _never() -> bool:
    return False


def _job(record: Record, lanes: Lanes) -> Job:
    """Make the core's job of a record, as far as a memory store looks at it."""
    job = Job(
        record.id,
        record.seq,
        lanes.get(record.channel, record.type).terms_from_store(record.terms),
        record.args,
        decode_dependencies(record.dependencies),
        record.queued,
        State(record.state),
        record.attempt,
        record.spared,
        due=record.due,
    )
    if record.ended is not None:
        job.outcome = Outcome(
            record.ended, record.started, record.result, record.error, record.reason, record.culprit
        )
    elif record.started is not None:
        job.run = Run(None, record.started, record.session)
    return job
