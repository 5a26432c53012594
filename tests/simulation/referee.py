"""Compares the core, what it sends and what it keeps with the model, turn by turn."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET

from broker.core.engine import Command, Effects, Engine
from broker.core.job import SCHEDULED, STATE_NAMES
from broker.core.records import Writes
from broker.store.base import Store
from tests.simulation.model import Model
from tests.simulation.records import ITS_OWN_WORDS, Origin
from tests.simulation.violation import Violation
from tests.simulation.world import World
from worker_sdk import messages as m

_decode = msgspec.json.Decoder(
    m.Ok | m.Error | m.Welcome | m.Jobs | m.CancelRunning | m.Heartbeat
).decode
_COMPARED_EVERY = 64  # turns


@dataclass(slots=True)
class Seen:
    """What the core made of a turn: where it had a choice, the model goes by that."""

    writes: Writes
    dispatches: list[Dispatched]
    due: dict[str, float | None]


@dataclass(slots=True)
class Dispatched:
    """Attempts that the core gives to one worker."""

    origin: Origin
    req: Any
    ids: list[str]


@dataclass(slots=True)
class Expected:
    """A message that must be sent; `message` None for any answer, to a request `req`."""

    key: tuple[Any, ...]
    message: m.Message | None
    request: m.Message | None = None
    page_ends: list[tuple[str, int]] | None = None
    """Of a page: where it would end with each of its jobs."""


class Referee:
    """Watches one broker after the other."""

    def __init__(self, world: World, model: Model) -> None:
        self.world = world
        self.model = model
        self.engine: Engine | None = None
        self.turns = 0
        self._turn: tuple[list[Command], float, float, Seen, bool] | None = None
        self._expected: dict[Origin, deque[Expected]] = {}

    # ---- what the broker does, in order --------------------------------------------------------

    def applied(self, commands: list[Command], effects: Effects, now: float, wall: float) -> None:
        """The core has carried out a turn."""
        if self._turn is not None:
            raise Violation("a turn began before the one before was committed")
        dispatches = [
            Dispatched(each.origin, each.req, [job.id for job in each.jobs])
            for each in effects.dispatches
        ]
        writes = effects.writes
        due = {job.id: job.due for job in writes.updated if job.state is SCHEDULED}
        assert self.engine is not None
        seen = Seen(writes, dispatches, due)
        self._turn = (commands, now, wall, seen, self.engine.draining)
        if not writes:
            self.committed()

    def committed(self) -> None:
        """What the turn wrote is on disk: it has happened."""
        assert self._turn is not None
        commands, now, wall, seen, draining = self._turn
        self._turn = None
        self.turns += 1
        model = self.model
        model.draining = draining
        model.turn(commands, now, wall, seen)
        for origin, message in model.answers:
            self._expect(origin, message)
        for origin, req, id, attempt in model.claimed:
            if model.jobs[id].attempt == attempt and id in model.live:
                self._expect(origin, m.Jobs((model.assignment(id, attempt),), req=req))
        for dispatched in seen.dispatches:
            if dispatched.req is UNSET:
                jobs = [model.assignment(id, model.jobs[id].attempt) for id in dispatched.ids]
                self._expect(dispatched.origin, m.Jobs(tuple(jobs)))
        for origin, request in model.reads:
            answer = model.answer(request)
            expected = Expected(_key(request, answer=True), answer, request)
            if isinstance(request, m.List):
                expected.page_ends = model.page_ends
            self._expected.setdefault(origin, deque()).append(expected)

    def sent(self, origin: Origin, payload: bytes) -> None:
        """The broker sends a message."""
        if self._turn is not None:
            raise Violation("a message was sent before what it follows from was committed")
        actual = _decode(payload)
        key = _key(actual)
        waiting = self._expected.get(origin, deque())
        for expected in waiting:
            if expected.key == key:
                break
        else:
            raise Violation(f"to {origin}: {actual} was sent, and none of {list(waiting)} is that")
        waiting.remove(expected)
        if not waiting:
            del self._expected[origin]
        if expected.message is not None:
            self._allow_short_page(actual, expected.message)
            if not _same(actual, expected.message) and not self._is_too_large(actual, expected):
                raise Violation(_difference(actual, expected.message))
            if expected.page_ends and isinstance(actual, m.Ok) and actual.jobs and actual.after:
                self.model.pages[str(actual.after)] = expected.page_ends[len(actual.jobs) - 1]
        elif isinstance(expected.request, m.Stats):
            self._check_stats(actual)

    def _allow_short_page(self, actual: m.Message, expected: m.Message) -> None:
        """Expect a page to end as early as it did, if in full it would have many bytes."""
        if not (isinstance(actual, m.Ok) and actual.after and isinstance(expected, m.Ok)):
            return
        if len(msgspec.json.encode(expected)) >= self.world.plan.max_message and actual.jobs:
            expected.jobs = expected.jobs[: len(actual.jobs)] if expected.jobs else UNSET
            expected.after = "there is more"

    def _is_too_large(self, actual: m.Message, expected: Expected) -> bool:
        """Whether the answer would exceed the bound, and the broker says so, or says just ok."""
        size = len(msgspec.json.encode(expected.message))
        if size <= 1.8 * self.world.plan.max_message:
            return False
        is_short = isinstance(actual, m.Ok) and actual.jobs is UNSET and actual.ids is UNSET
        return is_short or (isinstance(actual, m.Error) and actual.code == "too_large")

    def turn_over(self) -> None:
        """The broker waits for more."""
        if self._turn is not None:
            raise Violation("a turn was not committed")
        if self._expected:
            raise Violation(f"never sent: {self._expected}")
        if self.turns % _COMPARED_EVERY == 0 and self.turns:
            self.compare()

    def stopped(self) -> None:
        """The broker is gone, and with it what it had not sent."""
        self._turn = None
        self._expected.clear()
        self.engine = None

    def started(self, engine: Engine, store: Store) -> None:
        """A broker has read what is on disk."""
        self.engine = engine
        self.model.pages.clear()
        self.model.restart(engine.life.now, engine.life.wall)
        self.compare()
        self._compare_store(store)

    # ---- whole states ------------------------------------------------------------------------

    def compare(self) -> None:
        """Whether the core's live jobs and workers are the model's."""
        model, engine = self.model, self.engine
        assert engine is not None
        life = engine.life
        if life.jobs.keys() != model.live.keys():
            raise Violation(f"live: core {list(life.jobs)}, model {list(model.live)}")
        for id, job in life.jobs.items():
            mine = model.live[id]
            its = (STATE_NAMES[job.state], job.attempt, job.spared, job.seq)
            if its != (mine.state, mine.attempt, mine.spared, mine.seq):
                raise Violation(f"{id}: core {its}, model {mine}")
            holder = job.run.worker.connection if job.run and job.run.worker else None
            if holder != (mine.worker.origin[0] if mine.worker else None):
                raise Violation(f"{id}: held by {holder!r}, in the model by {mine.worker}")
            if job.state is SCHEDULED and job.due != mine.due:
                raise Violation(f"{id}: due at {job.due}, in the model at {mine.due}")
        if engine.crew.workers.keys() != model.workers.keys():
            raise Violation(f"workers: {list(engine.crew.workers)}, {list(model.workers)}")
        for connection, worker in engine.crew.workers.items():
            its_model = model.workers[connection]
            if (worker.credit, set(worker.running)) != (its_model.credit, set(its_model.jobs)):
                raise Violation(f"{connection!r}: {worker.credit}, {list(worker.running)}")
        needed = {id for id in model.ended if model._is_needed(id)}
        held = {id for id in model.ended if life.graph.holds(id)}
        if held != needed:
            raise Violation(f"kept for live jobs: core {held}, model {needed}")
        counts = model.counts()
        if (life.running, life.scheduled) != (counts["running"], counts["scheduled"]):
            raise Violation(f"running {life.running}, scheduled {life.scheduled}: {counts}")

    def _compare_store(self, store: Store) -> None:
        model = self.model
        ended = {record.id: record for record in store.read(list(model.ended))}
        if ended.keys() != model.ended.keys() or store.ended_count != len(ended):
            raise Violation(f"ended: {list(ended)}, {store.ended_count}; model {list(model.ended)}")
        for id, record in ended.items():
            mine = model.ended[id]
            result = None if mine.result is None else bytes(mine.result)
            its = (STATE_NAMES[record.state], record.result, record.error, record.ended)
            if its != (mine.state, result, mine.error, mine.ended):
                raise Violation(f"{id} ended in the store as {record}, in the model as {mine}")
        if [id for id, _ in store.oldest()] != list(model.ended):
            raise Violation("the order in which ended jobs are forgotten")

    def _check_stats(self, actual: m.Message) -> None:
        assert isinstance(actual, m.Ok)
        assert isinstance(actual.stats, msgspec.Raw)
        stats = json.loads(bytes(actual.stats))
        its = {**stats["jobs"], **{name: stats[name] for name in _COUNTED}}
        if its != self.model.counts():
            raise Violation(f"stats {its}, in the model {self.model.counts()}")

    def _expect(self, origin: Origin, message: m.Message) -> None:
        self._expected.setdefault(origin, deque()).append(Expected(_key(message), message))


_COUNTED = ("workers", "waits", "ended_kept", "args_bytes")


def _key(message: m.Message, *, answer: bool = False) -> tuple[Any, ...]:
    """What a message is recognized by, before its content is compared."""
    req = None if message.req is UNSET else bytes(message.req)
    if answer or (isinstance(message, m.Ok | m.Error) and req is not None):
        return ("answer", req)
    if isinstance(message, m.CancelRunning):
        return ("cancel", message.reason)
    return (type(message), req)


def _same(actual: m.Message, expected: m.Message) -> bool:
    if isinstance(expected, m.Error) and expected.ids[:1] == ("any of",):
        its = actual if isinstance(actual, m.Error) else m.Error("", "")
        return its.code == expected.code and bool(its.ids) and set(its.ids) <= set(expected.ids)
    if isinstance(actual, m.Ok) and isinstance(expected, m.Ok) and actual.jobs and expected.jobs:
        for its_job, job in zip(actual.jobs, expected.jobs, strict=False):
            if job.error == ITS_OWN_WORDS:
                job.error = its_job.error or job.error
    return _plain(actual) == _plain(expected)


def _plain(message: m.Message) -> object:
    """The content of a message, without what is free: an error's text, the order of ids."""
    match message:
        case m.Error():
            codes = dict(zip(message.ids, message.codes, strict=False))
            # Of several codes any may come first.
            code = "" if codes else message.code
            return (code, set(message.ids), codes, set(message.recorded))
        case m.CancelRunning():
            return (message.reason, sorted(message.ids))
        case m.Ok():
            ids = () if isinstance(message.ids, msgspec.UnsetType) else tuple(sorted(message.ids))
            jobs = message.jobs
            if not isinstance(jobs, msgspec.UnsetType):
                for job in jobs:
                    job.dependents = tuple(sorted(job.dependents))
            there_is_more = isinstance(message.after, str)
            return (ids, jobs, message.done, there_is_more, message.results, message.version)
        case m.Jobs():
            return message.jobs
        case _:
            return message


def _difference(actual: m.Message, expected: m.Message) -> str:
    """Say where two messages differ, in a few words if they are the same but for one job."""
    its, mine = getattr(actual, "jobs", UNSET), getattr(expected, "jobs", UNSET)
    if isinstance(its, tuple) and isinstance(mine, tuple) and len(its) == len(mine):
        pairs = [(a, b) for a, b in zip(its, mine, strict=True) if a != b]
        for a, b in pairs:
            fields = [name for name in a.__struct_fields__ if getattr(a, name) != getattr(b, name)]
            said = ", ".join(
                f"{name} {getattr(a, name)!r} not {getattr(b, name)!r}" for name in fields
            )
            return f"{type(actual).__name__}: {a.id}: {said}; and {len(pairs) - 1} more"
    if isinstance(its, tuple) and isinstance(mine, tuple) and its != mine:
        return f"{type(actual).__name__}: {[a.id for a in its]} are not {[b.id for b in mine]}"
    return f"{actual} is not {expected}"
