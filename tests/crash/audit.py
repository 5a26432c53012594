"""What must be true after any crash, of what the broker says and what everybody noted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from worker_sdk import JobStatus

Fact = dict[str, Any]
Token = tuple[str, int]


class Books:
    """All that was noted, by kind."""

    def __init__(self, facts: Iterable[Fact]) -> None:
        # Every job that some client asked to enqueue, and the requests they came in.
        self.jobs: dict[str, Fact] = {}
        self.requests: list[list[str]] = []
        # Jobs that a client was told are enqueued.
        self.acknowledged: set[str] = set()
        # Jobs that somebody asked to cancel; those that a client was told it canceled.
        self.cancels: set[str] = set()
        self.canceled: set[str] = set()
        # id -> state and result, as first seen by a client.
        self.seen: dict[str, tuple[str, Any]] = {}
        # When each attempt was begun and ended, by its worker's word.
        self.starts: dict[Token, int] = {}
        self.ends: dict[Token, int] = {}
        # id -> attempt and outcome that a worker was told are recorded.
        self.recorded: dict[str, tuple[int, str]] = {}
        self.faults: list[str] = []
        for fact in facts:
            self._take(fact)

    def _take(self, fact: Fact) -> None:
        token = (fact.get("id", ""), fact.get("attempt", 0))
        match fact["what"]:
            case "enqueue":
                self.requests.append([job["id"] for job in fact["jobs"]])
                self.jobs.update({job["id"]: job for job in fact["jobs"]})
            case "enqueued":
                self.acknowledged.update(fact["ids"])
            case "cancel":
                self.cancels.add(fact["id"])
            case "canceled" if fact["did"]:
                self.canceled.add(fact["id"])
            case "seen":
                self._see(fact["id"], fact["state"], fact["result"])
            case "start":
                if token in self.starts:
                    self.faults.append(f"attempt started twice: {token}")
                self.starts[token] = fact["at"]
            case "end":
                self.ends[token] = fact["at"]
            case "recorded":
                self._record(fact)

    def _see(self, id: str, state: str, result: Any) -> None:
        first = self.seen.setdefault(id, (state, result))
        if first != (state, result):
            self.faults.append(f"outcome of {id} changed from {first} to {(state, result)}")

    def _record(self, fact: Fact) -> None:
        id, attempt, outcome = fact["id"], fact["attempt"], fact["outcome"]
        if outcome == "failed" and self.jobs.get(id, fact).get("fails") != "always":
            return  # the attempt is over, the job is not
        if id in self.recorded:
            self.faults.append(f"two outcomes of {id} were taken: {self.recorded[id]} and {fact}")
        self.recorded[id] = (attempt, outcome)

    def check(self, found: dict[str, JobStatus]) -> list[str]:
        """Compare with what the broker says once all has ended; give what is wrong."""
        for id in self.acknowledged - set(found):
            self.faults.append(f"acknowledged and lost: {id}")
        for request in self.requests:
            there = [id in found for id in request]
            if any(there) and not all(there):
                self.faults.append(f"a part of a request came in: {request}")
        for id, job in found.items():
            if not job.is_ended:
                self.faults.append(f"{id} has not ended: it is {job.state}")
                continue
            self._see(id, job.state, job.result)
            self._check_outcome(id, job)
            getattr(self, f"_check_{job.state}")(id, job, found)
        for id, attempt in self.starts:
            if id in found and attempt > found[id].attempt:
                self.faults.append(f"attempt {attempt} of {id} ran, and the broker never gave it")
        return self.faults

    def _check_outcome(self, id: str, job: JobStatus) -> None:
        if id in self.canceled and job.state != "canceled":
            self.faults.append(f"{id} was canceled by word of the broker and is {job.state}")
        if id in self.recorded and self.recorded[id] != (job.attempt, job.state):
            self.faults.append(f"{id} was recorded as {self.recorded[id]} and is {job}")

    def _check_finished(self, id: str, job: JobStatus, found: dict[str, JobStatus]) -> None:
        wanted = self.jobs[id]["number"]
        started = self.starts.get((id, job.attempt))
        if job.result["attempt"] != job.attempt or (id, job.attempt) not in self.ends:
            self.faults.append(f"{id}: the result is not that of attempt {job.attempt}")
        for dependency, condition in self.jobs[id]["dependencies"]:
            other = found[dependency]
            if other.state == "finished":
                wanted += other.result["number"]
                ended = self.ends.get((dependency, other.attempt))
                if started is None or ended is None or ended > started:
                    self.faults.append(f"{id} started before its dependency {dependency} finished")
            elif condition == "finished":
                self.faults.append(f"{id} ran although its dependency {dependency} did not finish")
        if job.result["number"] != wanted:
            self.faults.append(f"{id}: the result is {job.result}, not {wanted}")

    def _check_failed(self, id: str, job: JobStatus, found: dict[str, JobStatus]) -> None:
        spec = self.jobs[id]
        if spec["fails"] != "always" and job.attempt < spec["max_attempts"]:
            self.faults.append(f"{id} failed with attempts left: {job.error}")

    def _check_canceled(self, id: str, job: JobStatus, found: dict[str, JobStatus]) -> None:
        if job.reason == "request" and id not in self.cancels:
            self.faults.append(f"{id} was canceled and nobody asked for it")
        if job.reason == "dependency":
            culprit = str(job.culprit)
            if [culprit, "finished"] not in self.jobs[id]["dependencies"]:
                self.faults.append(f"{id} was canceled for {culprit}, not its dependency")
            elif found[culprit].state == "finished":
                self.faults.append(f"{id} was canceled for {culprit}, which finished")
