"""The stores after the same long, random history: they must have become the same."""

import random
from pathlib import Path

import pytest
from msgspec.structs import astuple, replace

from broker.core.job import RUNNING, Job
from broker.core.records import Record, Writes
from broker.store import Store, open_store
from tests.store.make import Maker, cancel, finish, id_of, start
from worker_sdk.messages import Dependency


class History:
    """Turns of a broker, made up at random; each job of them exists once for each store."""

    def __init__(self, seed: int, store_count: int) -> None:
        self._random = random.Random(seed)
        self._makers = [Maker() for _ in range(store_count)]
        # By id, the same job for each of the stores.
        self.live: dict[str, list[Job]] = {}
        self.ended: dict[str, list[Job]] = {}

    def turn(self) -> list[Writes]:
        """What one turn changed, for each store."""
        chance = self._random
        writes = [Writes() for _ in self._makers]
        old = list(self.live)
        ended = list(self.ended)
        busy = chance.choice([1, 3, 30, 300])
        forgotten = chance.sample(ended, min(len(ended), chance.randrange(busy + 1)))
        for id in forgotten:
            fate = chance.choice(["remove", "defer", "retry"])
            for each in writes:
                (each.deferred if fate == "defer" else each.removed).append(id)
            if fate != "defer":
                before = self.ended.pop(id)
                if fate == "retry":
                    self._insert(writes, id, before[0].dependencies, before[0].attempt)
        for _ in range(chance.randrange(busy + 1)):
            number = chance.randrange(2**32)
            known = [*self.live, *self.ended]
            some = chance.sample(known, min(len(known), chance.choice([0, 0, 0, 1, 3])))
            dependencies = tuple(Dependency(each, "ended") if each > "8" else each for each in some)
            id = id_of(number, version=chance.choice([7, 7, 4]))
            if id not in self.live and id not in self.ended:
                self._insert(writes, id, dependencies, 0)
        for id in chance.sample(old, min(len(old), chance.randrange(busy + 1))):
            if self.live[id][0].state is not RUNNING:
                for each, job in zip(writes, self.live[id], strict=True):
                    each.updated.append(start(job))
        going = [id for id in self.live if chance.random() < 0.3]
        chance.shuffle(going)
        for id in going:
            jobs = self.ended[id] = self.live.pop(id)
            result = b'"%s"' % id.encode() * chance.choice([1, 1, 1, 400])
            end_well = chance.random() < 0.7
            for each, job in zip(writes, jobs, strict=True):
                each.ended.append(finish(job, result) if end_well else cancel(job, culprit=id))
                each.updated = [one for one in each.updated if one is not job]
        return writes

    def _insert(
        self,
        writes: list[Writes],
        id: str,
        dependencies: tuple[str | Dependency, ...],
        attempt: int,
    ) -> None:
        args = b"[%d]" % self._random.randrange(10**6)
        due = self._random.choice([None, None, 1.8e9])
        kind = self._random.choice("abc")
        self.live[id] = []
        for each, make in zip(writes, self._makers, strict=True):
            job = make.job(args, id=id, dependencies=dependencies, type=kind, due=due)
            job.attempt = job.spared = attempt
            each.inserted.append(job)
            self.live[id].append(job)


def image(store: Store, ids: list[str]) -> tuple[object, ...]:
    """All that a store can be asked for."""
    return (
        store.last_seq,
        store.ended_count,
        [known(record) for record in store.load()],
        {record.id: known(record) for record in store.read(ids)},
        store.ended_among(ids),
        dict(store.results(ids)),
        {id: sorted(those) for id, those in store.dependents(ids).items()},
        list(store.live_down(None)),
        # Jobs that are deferred together may stand in any order.
        sorted(store.oldest()),
        sorted(known(record) for _, record in store.ended_down(None)),
    )


def known(record: Record) -> tuple[object, ...]:
    # Of a live job's state only `running` counts.
    state = record.state if record.ended is not None else record.state == RUNNING
    return (*astuple(replace(record, state=0)), state)


@pytest.mark.parametrize("seed", range(8))
def test_stores_are_the_same_after_the_same_history(seed: int, tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 'jobs.db'}"
    memory, sqlite = open_store("memory"), open_store(url)
    history = History(seed, 2)
    gone: set[str] = set()

    for number in range(60):
        ended_before = set(history.ended)
        for store, writes in zip((memory, sqlite), history.turn(), strict=True):
            store.commit(writes)
        gone |= ended_before - set(history.ended)
        if number % 15 == 14:
            sqlite.close()
            sqlite = open_store(url)
            ids = [*history.live, *history.ended, *gone]
            assert image(sqlite, ids) == image(memory, ids)
            assert sqlite.ended_among(ids) == set(history.ended)
    sqlite.close()
