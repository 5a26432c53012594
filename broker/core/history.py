"""Ended jobs: looked up, forgotten in time or on request, and brought back by a retry."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from graphlib import CycleError, TopologicalSorter
from itertools import chain, islice

from broker.core.graph import condition_holds, name_of
from broker.core.job import CANCELED, FINISHED, RUNNING, STATE_NAMES, Dependencies, Job, Run
from broker.core.life import Life
from broker.core.limits import Limits
from broker.core.records import Archive, Record, decode_dependencies, record_of
from broker.core.refusal import Refused, listed, not_exist
from worker_sdk.messages import Dependency

_PRUNED_AT_A_TIME = 1000


class History:
    """The ended jobs, as of this moment: the store's, and those of this turn ahead of it."""

    def __init__(self, life: Life, archive: Archive) -> None:
        self._life = life
        self._archive = archive
        # Ended jobs that this turn removes, of which the store does not know yet.
        self._just_removed: set[str] = set()

    def find(self, ids: Sequence[str]) -> dict[str, Record]:
        """Give those of `ids` that are ended jobs."""
        return {record.id: record for record in self.read(ids)}

    def read(self, ids: Sequence[str]) -> Iterator[Record]:
        """Give those of `ids` that are ended jobs, read as they are taken."""
        just_ended, just_removed = self._life.just_ended, self._just_removed
        if not just_ended and not just_removed:
            return self._archive.read(ids)
        ended = [just_ended[id] for id in dict.fromkeys(ids) if id in just_ended]
        elsewhere = [id for id in ids if id not in just_ended and id not in just_removed]
        return chain(map(record_of, ended), self._archive.read(elsewhere) if elsewhere else ())

    def check_exist(self, ids: Sequence[str]) -> None:
        """Refuse if one of `ids`, none of them live, is not an ended job either."""
        just_ended, just_removed = self._life.just_ended, self._just_removed
        elsewhere = [id for id in ids if id not in just_ended]
        if elsewhere:
            there = self._archive.ended_among(elsewhere)
            missing = [id for id in elsewhere if id not in there or id in just_removed]
            if missing:
                raise not_exist(missing)

    def settle(self) -> None:
        """Take note that the turn's writes are committed."""
        self._life.just_ended.clear()
        self._just_removed.clear()

    # The store cannot forget in the same turn what it is only told of in that turn.

    def can_delete(self, ids: Sequence[str]) -> bool:
        """Say whether the store knows of all ended jobs among `ids`."""
        just_ended = self._life.just_ended
        return not just_ended or not any(id in just_ended for id in ids)

    @property
    def can_retry(self) -> bool:
        """Whether the store knows of all ended jobs: any may have to live again."""
        return not self._life.just_ended

    def delete(self, ids: Sequence[str]) -> tuple[str, ...]:
        """Forget ended jobs; all of `ids` or none. Only if `can_delete`."""
        life = self._life
        live = [id for id in ids if id in life.jobs]
        if live:
            state = STATE_NAMES[life.jobs[live[0]].state]
            raise Refused("conflict", f"job {live[0]} is {state}: only ended jobs go", live)
        self.check_exist(ids)
        unique = tuple(dict.fromkeys(ids))
        self._refuse_held(unique)
        self._remove_all(unique)
        return unique

    def retry(self, ids: Sequence[str], limits: Limits) -> tuple[str, ...]:
        """Make failed and canceled jobs live again, and what was canceled because of them.

        They get all their attempts anew; live jobs among `ids` are left as they are. Only if
        `can_retry`.
        """
        asked = self._find_all([id for id in ids if id not in self._life.jobs])
        finished = [id for id, record in asked.items() if record.state == FINISHED]
        if finished:
            raise Refused("conflict", f"finished already: {listed(finished)}", finished)
        self._refuse_held(asked)
        revived = self._revivable(asked)
        self._life.check_room(len(revived), sum(len(record.args) for record in revived), limits)
        self._remove_all([record.id for record in revived])
        for record in revived:
            self._revive(record)
        return tuple(record.id for record in revived)

    def prune(self, limits: Limits) -> bool:
        """Forget ended jobs whose time is over, a bounded number; say whether more may follow."""
        wall, holds, gone = self._life.wall, self._life.graph.holds, self._just_removed
        surplus = self._archive.ended_count - len(gone) - limits.max_ended
        looked = 0
        removed: list[str] = []
        more = False
        for id, ended in islice(self._archive.oldest(), _PRUNED_AT_A_TIME):
            looked += 1
            if wall - ended < limits.retention and len(removed) >= surplus:
                break
            if id in gone:
                continue
            if holds(id):
                self._life.writes.deferred.append(id)
            else:
                removed.append(id)
        else:
            # If all were held, they have gone to the back of the line: no hurry.
            more = looked == _PRUNED_AT_A_TIME and bool(removed)
        self._remove_all(removed)
        return more

    def _revivable(self, asked: dict[str, Record]) -> list[Record]:
        """Give the records to revive, each after its dependencies; refuse if one of `asked` is
        not among them.
        """
        candidates = self._with_canceled(asked)
        dependencies = {
            id: decode_dependencies(record.dependencies) for id, record in candidates.items()
        }
        live = self._life.jobs
        named = dict.fromkeys(map(name_of, chain.from_iterable(dependencies.values())))
        elsewhere = [id for id in named if id not in candidates and id not in live]
        states = {record.id: record.state for record in self.read(elsewhere)}
        states |= {id: record.state for id, record in candidates.items()}
        revived: dict[str, Record] = {}
        for id in _in_order(candidates, dependencies):
            there = candidates[id]
            waits_for = [one for one in dependencies[id] if name_of(one) not in live]
            obstacle = _obstacle(there, waits_for, revived, states)
            if obstacle is None:
                revived[id] = there
            elif id in asked:
                raise Refused("conflict", f"job {id}: {obstacle}", [id])
        stuck = [id for id in asked if id not in revived]
        if stuck:
            text = f"job {stuck[0]}: its dependencies lead in a circle, by an id that was used anew"
            raise Refused("conflict", text, stuck)
        return list(revived.values())

    def _with_canceled(self, asked: dict[str, Record]) -> dict[str, Record]:
        """Give `asked`, and all that was canceled for their sake, through any depth."""
        candidates = dict(asked)
        latest = list(asked)
        while latest:
            dependents = chain.from_iterable(self._archive.dependents(latest).values())
            found = self.find([id for id in dict.fromkeys(dependents) if id not in candidates])
            canceled = {
                id: record
                for id, record in found.items()
                if record.state == CANCELED
                and record.reason == "dependency"
                and not self._life.graph.holds(id)
            }
            candidates.update(canceled)
            latest = list(canceled)
        return candidates

    def _revive(self, record: Record) -> None:
        life = self._life
        terms = life.lanes.get(record.channel, record.type).terms_from_store(record.terms)
        dependencies = decode_dependencies(record.dependencies)
        job = Job(record.id, 0, terms, record.args, dependencies, life.wall)
        job.attempt = job.spared = record.attempt
        life.admit(job, delayed=False)

    def _remove_all(self, ids: Collection[str]) -> None:
        writes, gone = self._life.writes, set(ids)
        if writes.deferred:  # by `prune`, in this same turn
            writes.deferred[:] = [id for id in writes.deferred if id not in gone]
        self._just_removed |= gone
        writes.removed += ids

    def _find_all(self, ids: Sequence[str]) -> dict[str, Record]:
        found = self.find(ids)
        missing = [id for id in ids if id not in found]
        if missing:
            raise not_exist(missing)
        return found

    def _refuse_held(self, ids: Iterable[str]) -> None:
        held = [id for id in ids if self._life.graph.holds(id)]
        if held:
            raise Refused("conflict", f"live jobs depend on {listed(held)}", held)


def _in_order(
    records: Mapping[str, Record], dependencies: Mapping[str, Dependencies]
) -> Iterator[str]:
    """Give the ids of `records`, each after its dependencies, without those behind a circle."""
    sorter: TopologicalSorter[str] = TopologicalSorter()
    # Not the order of seq: a job that was retried before has one higher than its dependents'.
    for record in sorted(records.values(), key=lambda record: record.seq):
        names = map(name_of, dependencies[record.id])
        sorter.add(record.id, *[id for id in names if id in records])
    with suppress(CycleError):  # the sorter gives what it can all the same
        sorter.prepare()
    while ids := sorter.get_ready():
        yield from ids
        sorter.done(*ids)


def _obstacle(
    record: Record,
    dependencies: Sequence[str | Dependency],
    revived: Mapping[str, Record],
    states: Mapping[str, int],
) -> str | None:
    """Say which of its dependencies that are not live keeps an ended job from running, if one
    does.
    """
    for dependency in dependencies:
        id = name_of(dependency)
        if id in revived:
            continue
        if id in states:
            if not condition_holds(dependency, states[id]):
                return f"its dependency {id} is {STATE_NAMES[states[id]]}: retry that one"
        elif not record.attempt:
            return f"its dependency {id} does not exist any more"
    return None


def restore(life: Life, record: Record) -> None:
    """Make a live job of what the store kept of it, at the start of the broker."""
    terms = life.lanes.get(record.channel, record.type).terms_from_store(record.terms)
    plain = record.dependencies == b"[]"
    dependencies = () if plain else decode_dependencies(record.dependencies)
    job = Job(record.id, record.seq, terms, record.args, dependencies, record.queued)
    job.attempt = record.attempt
    job.spared = record.spared
    job.due = record.due
    run = None
    if record.state == RUNNING:
        run = Run(None, record.started or life.wall, record.session)
    life.restore(job, run)
