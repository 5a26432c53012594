"""Ended jobs: looked up, forgotten in time or on request, and brought back by a retry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from graphlib import TopologicalSorter
from itertools import chain

from broker.core.graph import condition_holds, name_of
from broker.core.job import CANCELED, FINISHED, RUNNING, STATE_NAMES, Job, Run
from broker.core.life import Life
from broker.core.limits import Limits
from broker.core.records import Archive, Record, decode_dependencies, record_of
from broker.core.refusal import Refused, listed, not_exist

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
        just_ended, just_removed = self._life.just_ended, self._just_removed
        if not just_ended and not just_removed:
            return self._archive.find(ids)
        found = {id: record_of(just_ended[id]) for id in ids if id in just_ended}
        asked = [id for id in ids if id not in found and id not in just_removed]
        if asked:
            found.update(self._archive.find(asked))
        return found

    def check_exist(self, ids: Sequence[str]) -> None:
        """Refuse if one of `ids`, none of them live, is not an ended job either."""
        if ids:
            self._find_all(ids)

    # The three below change ended jobs, and so run only while `is_settled`.

    @property
    def is_settled(self) -> bool:
        """Whether the store knows all that has ended: so at the start of a turn."""
        return not self._life.just_ended and not self._just_removed

    def settle(self) -> None:
        """Take note that the turn's writes are committed."""
        self._life.just_ended.clear()
        self._just_removed.clear()

    def delete(self, ids: Sequence[str]) -> tuple[str, ...]:
        """Forget ended jobs; all of `ids` or none."""
        life = self._life
        live = [id for id in ids if id in life.jobs]
        if live:
            state = STATE_NAMES[life.jobs[live[0]].state]
            raise Refused("conflict", f"job {live[0]} is {state}: only ended jobs go", live)
        found = self._find_all(ids)
        self._refuse_held(found)
        for id in found:
            self._remove(id)
        return tuple(dict.fromkeys(ids))

    def retry(self, ids: Sequence[str], limits: Limits) -> tuple[str, ...]:
        """Make failed and canceled jobs live again, and what was canceled because of them.

        They get all their attempts anew; live jobs among `ids` are left as they are.
        """
        asked = self._find_all([id for id in ids if id not in self._life.jobs])
        finished = [id for id, record in asked.items() if record.state == FINISHED]
        if finished:
            raise Refused("conflict", f"finished already: {listed(finished)}", finished)
        self._refuse_held(asked)
        revived = self._revivable(asked)
        self._life.check_room(len(revived), sum(len(record.args) for record in revived), limits)
        for record in revived:
            self._revive(record)
        return tuple(record.id for record in revived)

    def prune(self, limits: Limits) -> bool:
        """Forget ended jobs whose time is over, a bounded number; say whether more may follow."""
        wall, holds = self._life.wall, self._life.graph.holds
        surplus = self._archive.ended_count - limits.max_ended
        removed = 0
        for id, ended in self._archive.oldest(_PRUNED_AT_A_TIME):
            if wall - ended < limits.retention and removed >= surplus:
                break
            if holds(id):
                self._life.writes.deferred.append(id)
            else:
                self._remove(id)
                removed += 1
        return removed == _PRUNED_AT_A_TIME

    def _revivable(self, asked: dict[str, Record]) -> list[Record]:
        """Give the records to revive, each after its dependencies; refuse if one of `asked` is
        not among them.
        """
        candidates = self._with_canceled(asked)
        # Not the order of seq: a job that was retried before has one higher than its dependents'.
        sorter: TopologicalSorter[str] = TopologicalSorter()
        for record in sorted(candidates.values(), key=lambda record: record.seq):
            dependencies = map(name_of, decode_dependencies(record.dependencies))
            sorter.add(record.id, *[id for id in dependencies if id in candidates])
        revived: dict[str, Record] = {}
        for id in sorter.static_order():
            obstacle = self._obstacle(candidates[id], revived)
            if obstacle is None:
                revived[id] = candidates[id]
            elif id in asked:
                raise Refused("conflict", f"job {id}: {obstacle}", [id])
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

    def _obstacle(self, record: Record, revived: dict[str, Record]) -> str | None:
        """Say which dependency keeps an ended job from running, if one does."""
        dependencies = {name_of(one): one for one in decode_dependencies(record.dependencies)}
        elsewhere = [id for id in dependencies if id not in revived and id not in self._life.jobs]
        ended = self.find(elsewhere)
        for id in elsewhere:
            if id in ended:
                if not condition_holds(dependencies[id], ended[id].state):
                    return f"its dependency {id} is {STATE_NAMES[ended[id].state]}: retry that one"
            elif not record.attempt:
                return f"its dependency {id} does not exist any more"
        return None

    def _revive(self, record: Record) -> None:
        self._remove(record.id)
        life = self._life
        terms = life.lanes.get(record.channel, record.type).terms_from_store(record.terms)
        dependencies = decode_dependencies(record.dependencies)
        job = Job(record.id, 0, terms, record.args, dependencies, life.wall)
        job.attempt = job.spared = record.attempt
        life.admit(job, delayed=False)

    def _remove(self, id: str) -> None:
        self._just_removed.add(id)
        self._life.writes.removed.append(id)

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
