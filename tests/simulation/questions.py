"""The second third of the model: what questions are answered with."""

from __future__ import annotations

from msgspec import UNSET

from tests.simulation.records import ENDED, MJob
from tests.simulation.rules import Rules
from worker_sdk import messages as m


class Questions(Rules):
    """Answers by looking."""

    def answer(self, request: m.Message) -> m.Message | None:
        """Give the answer to a request that changes nothing; None for any answer is right."""
        match request:
            case m.Status() | m.Wait():
                missing = [id for id in request.ids if id not in self.jobs]
                if missing:
                    return m.Error("not_exist", "", tuple(missing), req=request.req)
                with_args = isinstance(request, m.Status) and request.args
                jobs = [self.info(self.jobs[id], args=with_args) for id in request.ids]
                ok = m.Ok(jobs=tuple(jobs), req=request.req)
                if isinstance(request, m.Wait):
                    ok.done = not any(id in self.live for id in request.ids)
                    return ok
                for info in jobs:
                    info.dependents = tuple(self.dependents.get(info.id, ()))
                return ok
            case m.Inputs():
                results = {
                    id: self.jobs[id].result
                    for id in request.ids
                    if id in self.jobs and self.jobs[id].state == "finished"
                }
                return m.Ok(results=results, req=request.req)  # type: ignore[arg-type]
            case m.List():
                return self._list(request)
            case _:
                return None

    def info(self, job: MJob, *, args: bool = False) -> m.JobInfo:
        """Show a job."""
        spec, running = job.spec, job.state == "running"
        return m.JobInfo(
            id=job.id,
            type=spec.type,
            state=job.state,
            queued=job.queued,
            channel=spec.channel,
            priority=spec.priority,
            attempt=job.attempt,
            max_attempts=spec.max_attempts,
            started=job.started if running or job.state in ENDED else None,
            finished=job.ended if job.state in ("finished", "failed") else None,
            canceled=job.state == "canceled",
            ended=job.ended,
            due=job.due if job.state == "scheduled" else None,
            dependencies=tuple(
                id if condition == "finished" else m.Dependency(id, "ended")
                for id, condition in job.conditions.items()
            ),
            result=UNSET if job.result is None else job.result,
            error=job.error,
            reason=job.reason,
            culprit=job.culprit,
            progress=UNSET if job.progress is None else job.progress,
            args=spec.args if args else UNSET,
        )

    def _list(self, request: m.List) -> m.Message | None:
        # Where the page would end with each of its jobs.
        self.page_ends: list[tuple[str, int]] = []
        if request.after is not None and request.after not in self.pages:
            return None
        part, below = self.pages.get(request.after or "", ("live", 1 << 60))
        order: list[tuple[str, int, MJob]] = []
        if part == "live":
            order = [("live", job.seq, job) for job in self.live.values() if job.seq < below]
            order.sort(key=lambda entry: -entry[1])
            below = 1 << 60
        ended = [("ended", job.place, job) for job in self.ended.values() if job.place < below]
        order += sorted(ended, key=lambda entry: -entry[1])
        states = (request.state,) if isinstance(request.state, str) else request.state
        found: list[m.JobInfo] = []
        for number, (part, at, job) in enumerate(order, start=1):
            if (
                (states is None or job.state in states)
                and request.type in (None, job.spec.type)
                and request.channel in (None, job.spec.channel)
                and not (request.roots and job.conditions)
                and (request.since is None or job.queued >= request.since)
                and (request.until is None or job.queued < request.until)
            ):
                found.append(self.info(job))
                self.page_ends.append((part, at))
            if len(found) == request.limit and number < len(order):
                return m.Ok(jobs=tuple(found), after="there is more", req=request.req)
        return m.Ok(jobs=tuple(found), after=None, req=request.req)

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state, and what else is counted."""
        counts = dict.fromkeys(("blocked", "scheduled", "ready", "running"), 0)
        for job in self.live.values():
            counts[job.state] += 1
        return {
            **counts,
            "workers": len(self.workers),
            "waits": len(self.waits),
            "ended_kept": len(self.ended),
            "args_bytes": sum(len(job.spec.args) for job in self.live.values()),
        }

    def assignment(self, id: str, attempt: int) -> m.Assignment:
        """What a worker must be given."""
        job = self.jobs[id]
        given = m.Assignment(id, attempt, job.spec.type, job.spec.args, job.spec.channel)
        given.timeout = job.spec.timeout
        given.dependencies = tuple(job.conditions)
        if job.conditions and job.spec.inputs:
            finished = [self.jobs[d] for d in job.conditions if d in self.jobs]
            results = {d.id: d.result for d in finished if d.result is not None}
            size = sum(36 + len(result) for result in results.values())
            if size <= self.inputs_limit:
                given.inputs = results
            else:
                given.inputs_left_out = True
        return given
