"""Dependencies: who waits for whom, and which ended jobs live ones still need."""

from __future__ import annotations

from collections.abc import Iterator, KeysView

from broker.core.job import FINISHED, Dependencies, Job
from worker_sdk.messages import Dependency

_SWEEP_FROM = 16


def name_of(dependency: str | Dependency) -> str:
    """Give the id that a dependency names."""
    return dependency if isinstance(dependency, str) else dependency.id


def condition_holds(dependency: str | Dependency, state: int) -> bool:
    """Say whether an ended job's `state` satisfies a dependency on it."""
    return state == FINISHED or (
        not isinstance(dependency, str) and dependency.condition == "ended"
    )


def each_once(dependencies: Dependencies) -> Dependencies:
    """Give the dependencies without repetition; of two conditions the stricter one counts."""
    if not dependencies or (len(dependencies) == 1 and type(dependencies[0]) is str):
        return dependencies
    by_id: dict[str, str | Dependency] = {}
    for one in dependencies:
        if isinstance(one, str):
            by_id[one] = one
        elif one.condition == "finished":
            by_id[one.id] = one.id
        else:
            by_id.setdefault(one.id, one)
    return tuple(by_id.values())


class Dependents:
    """The live jobs that depend on one live job, by their condition: where there are several, or
    one with another condition than `finished`. One alone is spared this object (see Job).

    A dependent that ends before stays in its list, known by its state, until such ones are the
    larger half and are swept out together.
    """

    __slots__ = ("_gone", "if_ended", "if_finished")

    def __init__(self, first: Job | None) -> None:
        self.if_finished: list[Job] = [] if first is None else [first]
        self.if_ended: list[Job] = []
        self._gone = 0

    def __iter__(self) -> Iterator[Job]:
        yield from self.if_finished
        yield from self.if_ended

    def forget_one(self) -> None:
        """Count one dependent that has ended."""
        self._gone += 1
        if self._gone > _SWEEP_FROM and self._gone * 2 > len(self.if_finished) + len(self.if_ended):
            self.if_finished = [job for job in self.if_finished if job.outcome is None]
            self.if_ended = [job for job in self.if_ended if job.outcome is None]
            self._gone = 0


class Graph:
    """The dependencies between live jobs, and of live jobs on ended ones."""

    def __init__(self, jobs: dict[str, Job]) -> None:
        # All live jobs, owned by Life.
        self._jobs = jobs
        # Ended jobs that live ones depend on -> by how many.
        self._held: dict[str, int] = {}

    def holds(self, id: str) -> bool:
        """Say whether a live job depends on the ended job `id`."""
        return id in self._held

    def held_among(self, ids: KeysView[str]) -> list[str]:
        """Give those of `ids` that are ended jobs which live ones depend on."""
        if self._held.keys().isdisjoint(ids):
            return []
        return [id for id in ids if id in self._held]

    def link(self, job: Job) -> None:
        """Make a new live job wait for those of its dependencies that have not ended.

        The others must exist and satisfy its conditions.
        """
        jobs, held = self._jobs, self._held
        for dependency in job.dependencies:
            id = dependency if type(dependency) is str else name_of(dependency)
            is_plain = id is dependency
            other = jobs.get(id)
            if other is None:
                held[id] = held.get(id, 0) + 1
                continue
            job.waiting += 1
            there = other.dependents
            if there is None and is_plain:
                other.dependents = job
                continue
            if not isinstance(there, Dependents):
                there = other.dependents = Dependents(there)
            (there.if_finished if is_plain else there.if_ended).append(job)

    def unlink(self, job: Job) -> None:
        """Let go of what an ended job depended on."""
        jobs, held = self._jobs, self._held
        for dependency in job.dependencies:
            id = dependency if type(dependency) is str else name_of(dependency)
            count = held.get(id)
            if count is not None:
                if count > 1:
                    held[id] = count - 1
                else:
                    del held[id]
            elif (other := jobs.get(id)) is not None:
                if other.dependents is job:
                    other.dependents = None
                elif isinstance(other.dependents, Dependents):
                    other.dependents.forget_one()

    def settle_one(self, job: Job, dependent: Job) -> bool:
        """Do as `settle` for a finished job with one dependent alone; say whether that waits for
        nothing any more.
        """
        job.dependents = None
        if dependent.outcome is not None:
            return False
        self._held[job.id] = 1
        dependent.waiting -= 1
        return not dependent.waiting

    def settle(self, job: Job) -> tuple[list[Job], list[Job]]:
        """Tell the dependents of a job that has just ended.

        Give those that wait for nothing any more, and those whose condition can no longer hold.
        """
        free: list[Job] = []
        doomed: list[Job] = []
        dependents, job.dependents = job.dependents, None
        if dependents is None:
            return free, doomed
        if isinstance(dependents, Dependents):
            if_finished, if_ended = dependents.if_finished, dependents.if_ended
        else:
            if_finished, if_ended = [dependents], []
        finished = job.state is FINISHED
        held = 0
        for other in if_finished:
            if other.outcome is None:
                held += 1
                if not finished:
                    doomed.append(other)
                    continue
                other.waiting -= 1
                if not other.waiting:
                    free.append(other)
        for other in if_ended:
            if other.outcome is None:
                held += 1
                other.waiting -= 1
                if not other.waiting:
                    free.append(other)
        # The doomed ones count as well: each lets go when it ends.
        if held:
            self._held[job.id] = held
        return free, doomed
