"""The model: what the broker must do and answer, independently of the core.

It is fed each committed turn: the same commands, and what the core chose where it has a choice
(which worker gets a ready job, the jitter of a back-off, the order within one moment). It says
what the answers must be, and objects to a choice that breaks a rule.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from msgspec import UNSET

from broker.core.engine import SignOfLife, Undelivered
from tests.simulation.questions import Questions
from tests.simulation.records import MJob, MWait, MWorker, Origin, Refuse, conditions_of
from worker_sdk import messages as m


class Model(Questions):
    """Carries out commands by the rules, and answers questions by looking."""

    def turn(self, commands: list[Any], now: float, wall: float, seen: Any) -> None:
        """Carry out one turn; `seen` is what the core made of it, see `Seen` in referee.py."""
        self.now, self.wall = now, wall
        self._begin()
        self._seen = {job.id: job for job in seen.writes.ended}
        self._seen_due = seen.due
        self._seen_seqs = {job.id: job.seq for job in seen.writes.inserted}
        postponed, self._postponed = self._postponed, []
        for origin, message in postponed:
            self._carry_out(HANDLERS[type(message)], origin, message)
        self._ring_alarms()
        for origin, message in commands:
            self._carry_out(HANDLERS[type(message)], origin, message)
        self._time_out_overdue()
        self._lose_silent()
        for origin, message in self._claims:
            self._carry_out(Model._grant, origin, message)
        self._check_writes(seen.writes)
        if not self.draining:
            self._give_out(seen)
        for (origin, reason), ids in self.stops.items():
            self.answers.append((origin, m.CancelRunning(tuple(ids), reason)))
        self.reads += self.over

    def _carry_out(self, do: Handler, origin: Origin, message: Any) -> None:
        try:
            do(self, origin, message)
        except Refuse as refused:
            self.heard(origin)
            refused.error.req = message.req
            self.answers.append((origin, refused.error))

    # ---- clients -----------------------------------------------------------------------------

    def _client(self, origin: Origin) -> None:
        if origin[0] in self.workers:
            raise Refuse("unsupported")

    def _ok(self, origin: Origin, request: m.Message, **fields: Any) -> None:
        self.answers.append((origin, m.Ok(req=request.req, **fields)))

    def _known(self, ids: Iterable[str]) -> None:
        missing = [id for id in ids if id not in self.jobs]
        if missing:
            raise Refuse("not_exist", missing)

    def enqueue(self, origin: Origin, message: m.Enqueue) -> None:
        self._client(origin)
        if self.draining:
            raise Refuse("busy")
        if message.wait is not None and len(self.waits) >= self.limits.max_waits:
            raise Refuse("busy")
        fresh: dict[str, m.NewJob] = {}
        conflicts = []
        for spec in message.jobs:
            there = fresh.get(spec.id)
            if there is None and spec.id in self.jobs:
                there = self.jobs[spec.id].spec
            if there is None:
                fresh[spec.id] = spec
            elif content_of(there) != content_of(spec):
                conflicts.append(spec.id)
        faults = dict.fromkeys(conflicts, "conflict")
        faults |= {id: "conflict" for id in fresh if self._is_needed(id)}
        before: set[str] = set()
        for spec in fresh.values():
            for id in conditions_of(spec):
                if id not in self.jobs and id not in before:
                    code = "invalid" if id in fresh else "not_exist"
                    faults.setdefault(spec.id, code)
                    if id not in fresh:
                        faults.setdefault(id, code)
            before.add(spec.id)
        if faults:
            several = len(set(faults.values())) > 1
            refused = Refuse(next(iter(faults.values())), faults)
            refused.error.codes = tuple(faults.values()) if several else ()
            raise refused
        size = sum(len(job.spec.args) for job in self.live.values())
        size += sum(len(spec.args) for spec in fresh.values())
        if len(self.live) + len(fresh) > self.limits.max_jobs or size > self.limits.max_bytes:
            raise Refuse("busy")
        for spec in fresh.values():
            self._admit(spec)
        ids = tuple(spec.id for spec in message.jobs)
        if message.wait is None:
            self._ok(origin, message, ids=ids)
        else:
            self.wait(origin, m.Wait(ids, timeout=message.wait, req=message.req))

    def wait(self, origin: Origin, message: m.Wait) -> None:
        self._client(origin)
        open = {id for id in message.ids if id in self.live}
        patience = 3600.0 if message.timeout is None else min(message.timeout, 3600.0)
        if not open or not patience:
            self.reads.append((origin, message))
            return
        if len(self.waits) >= self.limits.max_waits:
            raise Refuse("busy")
        self._known(message.ids)
        wait = MWait(origin, message, open)
        self.waits.append(wait)
        self._alarm(self.now + patience, "_give_up", wait)

    def cancel(self, origin: Origin, message: m.Cancel) -> None:
        self._client(origin)
        self._known(message.ids)
        live = tuple(id for id in dict.fromkeys(message.ids) if id in self.live)
        for id in live:
            if id in self.live:
                self._cancel(self.live[id], "request")
        self._ok(origin, message, ids=live)

    def retry(self, origin: Origin, message: m.Retry) -> None:
        self._client(origin)
        if self.just_ended:
            self._postponed.append((origin, message))
            return
        self._known(message.ids)
        asked = [id for id in dict.fromkeys(message.ids) if id not in self.live]
        finished = [id for id in asked if self.jobs[id].state == "finished"]
        if finished:
            raise Refuse("conflict", finished)
        needed = [id for id in asked if self._is_needed(id)]
        if needed:
            raise Refuse("conflict", needed)
        revived = self._revivable(asked)
        stuck = [id for id in asked if id not in revived]
        if stuck:
            raise Refuse("conflict", ["any of", *stuck])
        size = sum(len(job.spec.args) for job in [*self.live.values(), *revived.values()])
        if len(self.live) + len(revived) > self.limits.max_jobs or size > self.limits.max_bytes:
            raise Refuse("busy")
        # In the core's order, which must be one of dependencies first to come to the same.
        ids = sorted(revived, key=lambda id: self._seen_seqs.get(id, 0))
        for id in ids:
            self._forget(revived[id])
        self.reviving = True
        for id in ids:
            self._admit(revived[id].spec, revived[id].attempt)
        self.reviving = False
        self._ok(origin, message, ids=tuple(ids))

    def _revivable(self, asked: list[str]) -> dict[str, MJob]:
        """Those asked for and what was canceled because of them, as far as they can run."""
        line = list(asked)
        for id in line:
            for other in self.dependents.get(id, ()):
                gone = other in self.ended and self.ended[other].reason == "dependency"
                if gone and other not in line and not self._is_needed(other):
                    line.append(other)
        candidates = {id: self.jobs[id] for id in line}
        revived: dict[str, MJob] = {}
        while True:
            more = {
                id: job
                for id, job in candidates.items()
                if id not in revived
                and all(self._may_hold(job, on, revived) for on in job.conditions)
            }
            if not more:
                return revived
            revived |= more

    def _may_hold(self, job: MJob, id: str, revived: dict[str, MJob]) -> bool:
        other = self.jobs.get(id)
        if other is None:
            return job.attempt > 0
        if id in revived or id in self.live:
            return True
        return other.state == "finished" or job.conditions[id] == "ended"

    def delete(self, origin: Origin, message: m.Delete) -> None:
        self._client(origin)
        if any(id in self.just_ended for id in message.ids):
            self._postponed.append((origin, message))
            return
        live = [id for id in message.ids if id in self.live]
        if live:
            raise Refuse("conflict", live)
        self._known(message.ids)
        needed = [id for id in dict.fromkeys(message.ids) if self._is_needed(id)]
        if needed:
            raise Refuse("conflict", needed)
        ids = tuple(dict.fromkeys(message.ids))
        for id in ids:
            self._forget(self.jobs[id])
        self._ok(origin, message, ids=ids)

    def ping(self, origin: Origin, message: m.Ping) -> None:
        self._client(origin)
        limit = self.limits.max_message
        self._ok(origin, message, version=self.version, message_limit=limit)

    def read(self, origin: Origin, message: m.Message) -> None:
        self._client(origin)
        self.reads.append((origin, message))

    # ---- workers -----------------------------------------------------------------------------

    def _worker(self, origin: Origin) -> MWorker:
        worker = self.workers.get(origin[0])
        if worker is None:
            raise Refuse("unsupported")
        worker.seen, worker.stalled = self.now, False
        return worker

    def heard(self, origin: Origin) -> None:
        if origin[0] in self.workers:
            self._worker(origin)

    def hello(self, origin: Origin, message: m.Hello) -> None:
        if not message.types or not message.channels:
            raise Refuse("invalid")
        known = self.workers.get(origin[0])
        former = None
        for worker in self.workers.values():
            if message.session and worker.session == message.session:
                former = worker
        if known is None and former is None and len(self.workers) >= self.limits.max_workers:
            raise Refuse("busy")
        lanes = frozenset((c, t) for c in message.channels for t in message.types)
        new = MWorker(origin, message.session, lanes, message.credit, self.now)
        for job in list(known.jobs.values()) if known else ():
            self._adopt(job, new)
        refused: dict[str, list[str]] = {}
        for claim in message.running:
            mine = self.live.get(claim.id)
            if mine and mine.state == "running":
                is_free = mine.worker is None or mine.worker is former
                if mine.attempt == claim.attempt and is_free:
                    self._adopt(mine, new)
                if mine.worker is new:
                    continue
            ended = self.jobs.get(claim.id)
            reason = (ended.reason if ended and ended.state == "canceled" else None) or "lost"
            refused.setdefault(reason, []).append(claim.id)
        for one in (known, former):
            if one is not None:
                for job in list(one.jobs.values()):
                    self._give_back(job)
                self.workers.pop(one.origin[0], None)
        for job in list(self.live.values()) if message.session else ():
            if job.state == "running" and job.worker is None and job.session == message.session:
                self._give_back(job)
        self.workers[origin[0]] = new
        self._alarm(self.now + self.limits.heartbeat_limit, "_lease", new)
        limit = self.limits.heartbeat_limit
        welcome = m.Welcome(self.version, limit / 4, limit, self.limits.max_message)
        welcome.req = message.req
        self.answers.append((origin, welcome))
        for reason, ids in refused.items():
            self.answers.append((origin, m.CancelRunning(tuple(ids), reason)))

    @staticmethod
    def _adopt(job: MJob, worker: MWorker) -> None:
        if job.worker is not None:
            del job.worker.jobs[job.id]
        job.worker, job.session = worker, worker.session
        worker.jobs[job.id] = job

    def outcome(self, origin: Origin, message: Any) -> None:
        worker = self._worker(origin)
        strays = []
        for one in message.jobs:
            job = worker.jobs.get(one.id)
            if job is None or job.attempt != one.attempt:
                strays.append(one)
            elif isinstance(one, m.Outcome):
                job.result = one.result
                self._end(job, "finished")
            elif isinstance(one, m.Failure):
                self._attempt_over(job, one.error, pause=True, retry=one.retry)
            elif isinstance(one, m.Step):
                job.progress = one.value
            else:
                self._give_back(job)
        if not isinstance(message, m.Progress) and message.credit is not None:
            worker.credit = message.credit
        if strays:
            codes = {one.id: self._why_not(one.id) for one in strays}
            first = next(iter(codes.values()))
            several = tuple(codes.values()) if len(set(codes.values())) > 1 else ()
            there = tuple(one.id for one in strays if self._is_recorded(one))
            error = m.Error(first, "", tuple(codes), several, there, req=message.req)
            self.answers.append((origin, error))
        elif message.req is not UNSET and not isinstance(message, m.Progress):
            self._ok(origin, message)

    def _is_recorded(self, one: Any) -> bool:
        """Whether a job ended in this very way."""
        job = self.jobs.get(one.id)
        if job is None or job.attempt != one.attempt:
            return False
        if isinstance(one, m.Outcome):
            return job.state == "finished"
        return isinstance(one, m.Failure) and job.state == "failed" and job.error == one.error

    def _why_not(self, id: str) -> str:
        job = self.jobs.get(id)
        if job is None:
            return "not_exist"
        return "canceled" if job.state == "canceled" else "not_running"

    def heartbeat(self, origin: Origin, message: m.Heartbeat) -> None:
        worker = self._worker(origin)
        if message.credit is not None:
            worker.credit = message.credit
        self.answers.append((origin, m.Heartbeat(req=message.req)))

    def bye(self, origin: Origin, message: m.Bye) -> None:
        worker = self._worker(origin)
        for job in list(worker.jobs.values()):
            self._give_back(job)
        del self.workers[origin[0]]
        if message.req is not UNSET:
            self._ok(origin, message)

    def claim(self, origin: Origin, message: m.Claiming) -> None:
        if self.draining:
            raise Refuse("busy")
        self._worker(origin)
        self._claims.append((origin, message))

    def _grant(self, origin: Origin, message: m.Claiming) -> None:
        worker = self._worker(origin)
        job = self.jobs.get(message.id)
        if job is None:
            raise Refuse("not_exist", [message.id])
        if job.state != "ready":
            raise Refuse("canceled" if job.state == "canceled" else "not_ready", [job.id])
        self._start(job, worker)
        job.was_claimed = True
        self.claimed.append((origin, message.req, job.id, job.attempt))

    def inputs(self, origin: Origin, message: m.Inputs) -> None:
        job = self._worker(origin).jobs.get(message.id)
        if job is None or job.attempt != message.attempt:
            raise Refuse(self._why_not(message.id), [message.id])
        strays = [id for id in message.ids if id not in job.conditions]
        if strays:
            raise Refuse("invalid", strays)
        self.reads.append((origin, message))

    def undelivered(self, origin: Origin, message: Undelivered) -> None:
        worker = self.workers.get(message.connection)
        if worker is not None:
            for id in message.ids:
                if id in worker.jobs:
                    self._give_back(worker.jobs[id])
            worker.stalled = True


def content_of(spec: m.NewJob) -> object:
    """What must be the same when a job is enqueued again."""
    backoff = spec.backoff
    if not isinstance(backoff, m.Backoff):
        backoff = m.Backoff() if backoff is None else m.Backoff(first=backoff)
    return (
        (spec.type, spec.channel, json.loads(bytes(spec.args)), conditions_of(spec)),
        (spec.priority, spec.delay, spec.timeout, spec.expires, spec.max_attempts),
        (backoff.first, backoff.factor, backoff.limit, backoff.jitter, spec.inputs),
    )


Handler = Callable[[Model, Origin, Any], None]
HANDLERS: dict[type, Handler] = {
    m.Enqueue: Model.enqueue,
    m.Wait: Model.wait,
    m.Cancel: Model.cancel,
    m.Retry: Model.retry,
    m.Delete: Model.delete,
    m.Status: Model.read,
    m.List: Model.read,
    m.Stats: Model.read,
    m.Ping: Model.ping,
    m.Hello: Model.hello,
    m.Finish: Model.outcome,
    m.Fail: Model.outcome,
    m.Release: Model.outcome,
    m.Progress: Model.outcome,
    m.Claiming: Model.claim,
    m.Inputs: Model.inputs,
    m.Heartbeat: Model.heartbeat,
    m.Bye: Model.bye,
    Undelivered: Model.undelivered,
    SignOfLife: lambda model, origin, _: model.heard(origin),
}
