"""Jobs as the core makes them, for tests of stores."""

from collections.abc import Iterable
from itertools import count

from broker.core.job import CANCELED, FINISHED, READY, RUNNING, Job, Outcome, Run, State
from broker.core.lanes import Lanes
from broker.core.records import Record, Writes
from broker.store import Store
from worker_sdk.messages import Dependency, NewJob

STARTED = 1_700_000_001.5
ENDED = 1_700_000_002.25

_lanes = Lanes()


def id_of(number: int, version: int = 7) -> str:
    """A UUID that grows with `number`."""
    return f"{number:08x}-0000-{version}000-8000-{number:012x}"


class Maker:
    """Makes jobs with one id and one seq after the other."""

    def __init__(self) -> None:
        self._seqs = count(1)

    def job(
        self,
        args: bytes = b'{"n":1}',
        *,
        id: str | None = None,
        dependencies: tuple[str | Dependency, ...] = (),
        type: str = "resize",
        channel: str = "default",
        priority: int = 0,
        due: float | None = None,
    ) -> Job:
        seq = next(self._seqs)
        id = id if id is not None else id_of(seq)
        spec = NewJob(id, type, channel=channel, priority=priority)
        terms = _lanes.get(channel, type).terms(spec)
        job = Job(id, seq, terms, args, dependencies, 1_700_000_000.0 + seq)
        job.state = READY
        job.due = due
        return job

    def jobs(self, how_many: int, args: bytes = b'{"n":1}') -> list[Job]:
        return [self.job(args) for _ in range(how_many)]

    def skip(self, seqs: int) -> None:
        """Use up numbers, as jobs do that become ready again."""
        for _ in range(seqs):
            next(self._seqs)


def start(job: Job, started: float = STARTED) -> Job:
    job.state = RUNNING
    job.attempt += 1
    job.due = None
    job.run = Run(None, started)
    return job


def finish(job: Job, result: bytes = b'{"ok":true}', ended: float = ENDED) -> Job:
    started = job.run.started if job.run is not None else None
    return _end(job, FINISHED, Outcome(ended, started, result=result))


def cancel(job: Job, culprit: str | None = None) -> Job:
    reason = "request" if culprit is None else "dependency"
    return _end(job, CANCELED, Outcome(ENDED, None, reason=reason, culprit=culprit))


def _end(job: Job, state: State, outcome: Outcome) -> Job:
    job.state, job.run, job.due, job.outcome = state, None, None, outcome
    return job


def insert(store: Store, *jobs: Job) -> None:
    store.commit(Writes(inserted=list(jobs)))


def insert_and_finish(store: Store, jobs: Iterable[Job]) -> None:
    jobs = list(jobs)
    store.commit(Writes(inserted=jobs))
    store.commit(Writes(ended=[finish(job) for job in jobs]))


def live_ids(store: Store) -> list[str]:
    return [record.id for record in store.load()]


def only(store: Store, id: str) -> Record:
    """The one ended job `id`."""
    [found] = store.read([id])
    assert found.id == id
    return found
