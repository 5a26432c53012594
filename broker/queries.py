"""Answers that change nothing: read from what is committed, and from the live jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, Raw

from broker.core.dispatch import Dispatch
from broker.core.engine import Engine
from broker.core.graph import name_of
from broker.core.job import CANCELED, SCHEDULED, STATE_NAMES, Dependencies, Job
from broker.core.records import Record, decode_dependencies
from broker.core.refusal import Refused, not_exist
from broker.core.terms import decode_terms
from broker.store.base import Store
from worker_sdk.messages import (
    Assignment,
    Error,
    Inputs,
    JobInfo,
    Jobs,
    List,
    Message,
    Ok,
    Stats,
    Status,
    Wait,
)

_encode = msgspec.json.Encoder().encode
_SCANNED_MOST = 10_000  # jobs looked at for one page, whether or not they match
_LOOKED_UP_AT_A_TIME = 1_000
_FULL_FROM_BYTES = 1_048_576
_PAGE_FULL_BYTES = 4 * 1_048_576

Sees = Callable[[str, str], bool]
"""Whether the jobs of a channel and type are there, for whoever asks."""


class _Edges(NamedTuple):
    """What a job depends on, as its worker is told."""

    ids: tuple[str, ...]
    inputs: dict[str, Raw] | None
    left_out: bool
    """Whether the results are too large to be sent along."""
    size: int
    """About how many bytes both take in a message."""


class Queries:
    """Answers requests after the commit of the turn that they came in."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        inputs_limit: int,
        faults: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self._engine = engine
        self._store = store
        self.inputs_limit = inputs_limit
        # How often what was wrong with messages, to be told in the stats.
        self._faults = faults

    def answer(self, request: Message, sees: Sees | None = None) -> Message:
        """Give the answer to a request, an error if it must be refused.

        With `sees`, as if the jobs of other channels and types were not there.
        """
        try:
            answer = self._answer(request, sees)
        except Refused as refused:
            return Error(refused.code, refused.message, refused.ids, refused.codes, req=request.req)
        answer.req = request.req
        return answer

    def _answer(self, request: Message, sees: Sees | None) -> Ok:
        match request:
            case Status():
                jobs = self._infos(request.ids, sees, args=request.args, dependents=True)
                return Ok(jobs=jobs)
            case Wait():
                jobs = self._infos(request.ids, sees)
                return Ok(jobs=jobs, done=all(job.ended is not None for job in jobs))
            case List():
                return self._list(request, sees)
            case Inputs():
                return Ok(results=self._some_results(request.ids))
            case Stats():
                return Ok(stats=Raw(_encode(self._stats(sees))))
            case _:
                raise TypeError(f"{type(request).__name__} is not a query")

    def _stats(self, sees: Sees | None) -> dict[str, Any]:
        stats: dict[str, Any] = {"version": self._engine.version, **self._engine.stats()}
        if sees is None:
            kept, faults = self._store.ended_count, dict(self._faults)
            return {**stats, "ended_kept": kept, "faults": faults}
        # What is counted over all lanes would tell of those that are not seen.
        lanes = [lane for lane in stats["lanes"] if sees(lane["channel"], lane["type"])]
        return {"version": stats["version"], "lanes": lanes}

    # ---- dispatches ----

    def assignments(self, dispatch: Dispatch) -> Iterator[tuple[Jobs, list[Job]]]:
        """Give the messages that bring attempts to their worker, each with the jobs in it.

        As many jobs as there are go into one, but no second one into one of `_FULL_FROM_BYTES`.
        """
        jobs: list[Job] = []
        assignments: list[Assignment] = []
        size = 0
        # What jobs of the message depend on, and its results, looked up once: many may depend on
        # the same jobs.
        known: dict[tuple[Dependencies, bool], _Edges] = {}
        results: dict[str, bytes] = {}
        for job in dispatch.jobs:
            terms = job.terms
            lane = terms.lane
            assignment = Assignment(job.id, job.attempt, lane.type, Raw(job.args), lane.channel)
            assignment.timeout = terms.timeout
            size += len(job.args)
            if job.dependencies:
                key = job.dependencies, terms.inputs
                edges = known.get(key)
                if edges is None:
                    edges = known[key] = self._edges(job, results)
                size += edges.size
                assignment.dependencies = edges.ids
                assignment.inputs = edges.inputs
                assignment.inputs_left_out = edges.left_out
            jobs.append(job)
            assignments.append(assignment)
            if size >= _FULL_FROM_BYTES:
                yield Jobs(tuple(assignments), req=dispatch.req), jobs
                jobs, assignments, size = [], [], 0
                known.clear()
                results.clear()
        if jobs:
            yield Jobs(tuple(assignments), req=dispatch.req), jobs

    def _edges(self, job: Job, results: dict[str, bytes]) -> _Edges:
        ids = tuple([name_of(dependency) for dependency in job.dependencies])
        size = 40 * len(ids)
        if not job.terms.inputs:
            return _Edges(ids, None, False, size)
        if job.attempt == 1:
            # Each plain dependency has a result of one byte or more: no need to look that up. Of
            # a job that was retried, some may have been forgotten.
            plain = [len(id) + 1 for id in job.dependencies if type(id) is str]
            if sum(plain) > self.inputs_limit:
                return _Edges(ids, None, True, size)
        inputs, complete = self._results(ids, self.inputs_limit, results)
        if not complete:
            return _Edges(ids, None, True, size)
        size += sum([40 + len(result) for result in inputs.values()])
        return _Edges(ids, inputs, False, size)

    def _some_results(self, ids: Sequence[str]) -> dict[str, Raw]:
        """Give results of `ids` from the first on, as many as one answer takes."""
        limit = max(self.inputs_limit, self._engine.limits.max_message // 2)
        return self._results(ids, limit, {})[0]

    def _results(
        self, ids: Sequence[str], limit_bytes: int, known: dict[str, bytes]
    ) -> tuple[dict[str, Raw], bool]:
        """Give results of finished jobs among `ids` within a bound, at least one; whether all.

        `known` has results that were looked up before, and gets those that are now.
        """
        found: dict[str, Raw] = {}
        size = 0
        for start in range(0, len(ids), _LOOKED_UP_AT_A_TIME):
            for id, result in self._look_up(ids[start : start + _LOOKED_UP_AT_A_TIME], known):
                size += len(result) + len(id)
                if size > limit_bytes and found:
                    return found, False
                found[id] = Raw(result)
        if len(found) > 1:  # they come as they ended
            found = {id: found[id] for id in ids if id in found}
        return found, size <= limit_bytes

    def _look_up(self, ids: Sequence[str], known: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
        """Give the results of those of `ids` that are finished, read as they are taken."""
        # What ended in this turn is at hand: the common case for the next job of a chain.
        just_ended = self._engine.life.just_ended
        elsewhere: list[str] = []
        for id in ids:
            if id in known:
                yield id, known[id]
                continue
            job = just_ended.get(id)
            if job is None:
                elsewhere.append(id)
            elif job.outcome is not None and job.outcome.result is not None:
                known[id] = job.outcome.result
                yield id, job.outcome.result
        if elsewhere:
            for id, result in self._store.results(elsewhere):
                known[id] = result
                yield id, result

    # ---- states ----

    def _infos(
        self, ids: Sequence[str], sees: Sees | None, *, args: bool = False, dependents: bool = False
    ) -> tuple[JobInfo, ...]:
        shown = self._shown(list(dict.fromkeys(ids)), args)
        seen = shown.keys() if sees is None else self._seen(ids, sees)
        missing = [id for id in ids if id not in seen]
        if missing:
            raise not_exist(missing)
        if dependents:
            for id, those in self._store.dependents(list(shown)).items():
                shown[id].dependents = tuple(those)
        infos = tuple([shown[id] for id in ids])
        if sees is not None:
            self._hide_strangers(infos, sees)
        if len(ids) > 1:
            self._check_size(sum(map(_size_of_info, infos)))
        return infos

    def _shown(self, ids: Sequence[str], args: bool) -> dict[str, JobInfo]:
        """Give those of `ids` that are jobs, by id. Each but the first is only read if what was
        read before it has room in an answer.
        """
        life = self._engine.life
        shown: dict[str, JobInfo] = {}
        elsewhere: list[str] = []
        for id in ids:
            # What ended in this turn is at hand too, and is what most who wait ask for.
            job = life.jobs.get(id) or life.just_ended.get(id)
            if job is None:
                elsewhere.append(id)
                continue
            info = shown[id] = info_of(job)
            if args:
                info.args = Raw(job.args)
        size = 0
        for record in self._engine.read_ended(elsewhere) if elsewhere else ():
            self._check_size(size)
            info = shown[record.id] = info_of_ended(record)
            if args:
                info.args = Raw(record.args)
            size += _size_of_info(info)
        return shown

    def _check_size(self, size: int) -> None:
        limit = 2 * self._engine.limits.max_message
        if size > limit:
            text = f"the answer has more than {limit} bytes, the limit: ask for fewer jobs"
            raise Refused("too_large", text)

    def _seen(self, ids: Sequence[str], sees: Sees) -> set[str]:
        return {id for id, lane in self._engine.lanes_of(ids).items() if sees(*lane)}

    def _hide_strangers(self, infos: Sequence[JobInfo], sees: Sees) -> None:
        """Leave out of `infos` the ids of jobs that are not seen, or are no jobs any more."""
        named: dict[str, None] = {}
        for info in infos:
            named.update(dict.fromkeys(map(name_of, info.dependencies)))
            named.update(dict.fromkeys(info.dependents))
            if info.culprit is not None:
                named[info.culprit] = None
        seen = self._seen(list(named), sees)
        for info in infos:
            info.dependencies = tuple([x for x in info.dependencies if name_of(x) in seen])
            info.dependents = tuple([id for id in info.dependents if id in seen])
            if info.culprit not in seen:
                info.culprit = None

    # ---- pages ----

    def _list(self, request: List, sees: Sees | None) -> Ok:
        states = (request.state,) if isinstance(request.state, str) else request.state
        for state in states or ():
            if state not in STATE_NAMES:
                known = ", ".join(STATE_NAMES)
                raise Refused("invalid", f"list: state {state!r} is none of {known}")
        page: list[JobInfo] = []
        last = request.after
        size = 0
        full = min(_PAGE_FULL_BYTES, self._engine.limits.max_message)
        for scanned, (place, info) in enumerate(self._walk(request)):
            if len(page) >= request.limit or scanned >= _SCANNED_MOST or size >= full:
                break
            last = place
            if _matches(info, request, states) and (sees is None or sees(info.channel, info.type)):
                page.append(info)
                size += len(_encode(info)) + 1
        else:
            last = None
        if sees is not None:
            self._hide_strangers(page, sees)
        return Ok(jobs=tuple(page), after=last)

    def _walk(self, request: List) -> Iterator[tuple[str, JobInfo]]:
        """Give all jobs from the place `after` on, each with its own place."""
        part, before = _place(request.after)
        if part == "live":
            jobs = self._engine.life.jobs
            for seq, id in self._store.live_down(before):
                if id in jobs:
                    yield f"live:{seq}", info_of(jobs[id])
            before = None
        for place, record in self._store.ended_down(before):
            yield f"ended:{place}", info_of_ended(record)


def _size_of_info(info: JobInfo) -> int:
    """Give about how many bytes a job takes in an answer, rather too few."""
    result = 0 if info.result is UNSET else len(info.result)
    args = 0 if info.args is UNSET else len(info.args)
    named = len(info.dependencies) + len(info.dependents)
    return args + result + len(info.error or "") + 39 * named + 100


def _place(after: str | None) -> tuple[str, int | None]:
    if after is None:
        return "live", None
    part, _, number = after.partition(":")
    is_number = number.isascii() and number.isdecimal() and len(number) <= 18
    if part not in ("live", "ended") or not is_number:
        raise Refused("invalid", f"list: after {after[:100]!r} is not the `after` of a page")
    return part, int(number)


def _matches(info: JobInfo, request: List, states: tuple[str, ...] | None) -> bool:
    return (
        (states is None or info.state in states)
        and (request.type is None or info.type == request.type)
        and (request.channel is None or info.channel == request.channel)
        and not (request.roots and info.dependencies)
        and (request.since is None or info.queued >= request.since)
        and (request.until is None or info.queued < request.until)
    )


def info_of(job: Job) -> JobInfo:
    """Show a job that is live, or ended in this turn."""
    terms, run, outcome = job.terms, job.run, job.outcome
    info = JobInfo(
        id=job.id,
        type=terms.lane.type,
        state=STATE_NAMES[job.state],
        queued=job.queued,
        channel=terms.lane.channel,
        priority=terms.priority,
        attempt=job.attempt,
        max_attempts=terms.max_attempts,
        started=run.started if run is not None else None,
        # A blocked job may have one already: it may well be over before the job can start.
        due=job.due if job.state is SCHEDULED else None,
        dependencies=job.dependencies,
        error=job.error,
        progress=UNSET if run is None or run.progress is None else run.progress,
    )
    if outcome is not None:
        info.started, info.ended = outcome.started, outcome.ended
        info.canceled = job.state is CANCELED
        info.finished = None if info.canceled else outcome.ended
        info.result = UNSET if outcome.result is None else Raw(outcome.result)
        info.error, info.reason, info.culprit = outcome.error, outcome.reason, outcome.culprit
    return info


def info_of_ended(record: Record) -> JobInfo:
    """Show an ended job."""
    terms = decode_terms(record.terms)
    canceled = record.state == CANCELED
    return JobInfo(
        id=record.id,
        type=record.type,
        state=STATE_NAMES[record.state],
        queued=record.queued,
        channel=record.channel,
        priority=terms.priority,
        attempt=record.attempt,
        max_attempts=terms.max_attempts,
        started=record.started,
        finished=None if canceled else record.ended,
        canceled=canceled,
        ended=record.ended,
        dependencies=decode_dependencies(record.dependencies),
        result=UNSET if record.result is None else Raw(record.result),
        error=record.error,
        reason=record.reason,
        culprit=record.culprit,
    )
