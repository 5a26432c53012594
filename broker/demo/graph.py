"""The tree as a graph of jobs, and what must be true of the jobs once they have run.

All of this is plain computation: no process, socket or file is touched here.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

from broker.demo.handlers import FOLDER, HOP, LEAF
from broker.demo.tree import Node, Tree, encode_path
from worker_sdk import JobSpec, JobStatus

SHOWN_FAULTS = 5


class Attempt(NamedTuple):
    """A line of the workers' journal: an attempt that some process began."""

    id: str
    attempt: int
    process: int


def build(tree: Tree, *, gated_leaves: int = 0) -> list[JobSpec]:
    """One job a node, in the order of the nodes; a folder depends on all of its entries.

    With ``gated_leaves``, so many leaves start before all others and wait at the gate, and so
    does the root at the end: until the gate is open, some attempts run and the graph has not
    ended, however small the tree and quick the workers.
    """
    leaves = [place for place, node in enumerate(tree.nodes) if node.kind != "folder"]
    waiting = {*leaves[:gated_leaves], len(tree.nodes) - 1} if gated_leaves else set()
    jobs: list[JobSpec] = []
    for place, node in enumerate(tree.nodes):
        args: dict[str, Any] = {"path": encode_path(node.path)}
        if node.kind != "folder":
            args["kind"] = node.kind
        if place in waiting:
            args["wait"] = True
        jobs.append(
            JobSpec(
                LEAF if node.kind != "folder" else FOLDER,
                args,
                dependencies=[jobs[child] for child in node.children],
                priority=1 if place in waiting else 0,
            )
        )
    return jobs


def chain(length: int) -> list[JobSpec]:
    """Jobs that do nothing, each depending on the one before."""
    jobs: list[JobSpec] = []
    for _ in range(length):
        jobs.append(JobSpec(HOP, dependencies=jobs[-1:]))
    return jobs


def hop_s(jobs: Sequence[JobStatus]) -> float:
    """From the end of one job of a finished chain to the end of the next, in seconds."""
    first, last = jobs[0].finished, jobs[-1].finished
    if first is None or last is None or len(jobs) < 2:
        raise ValueError("the chain has not finished")
    return (last - first) / timedelta(seconds=len(jobs) - 1)


def read_journal(text: str) -> list[Attempt]:
    """The attempts in a journal; a line cut off by a kill counts as not written."""
    attempts = []
    for line in text.splitlines(keepends=True):
        parts = line.split()
        if line.endswith("\n") and len(parts) == 3:
            attempts.append(Attempt(parts[0], int(parts[1]), int(parts[2])))
    return attempts


def differences(tree: Tree, jobs: Sequence[JobStatus], expected: Sequence[str]) -> list[str]:
    """Where the jobs' outcomes are not those that the tree must give, each in a sentence."""
    faults = []
    for node, job, digest in zip(tree.nodes, jobs, expected, strict=True):
        if job.state != "finished":
            why = f": {job.error.splitlines()[0]}" if job.error else ""
            faults.append(f"{_what(node)}: its job {job.id} is {job.state}{why}")
        elif job.result.get("digest") != digest:
            faults.append(
                f"{_what(node)}: the job says {job.result.get('digest')}, it should be {digest}"
            )
    return faults


def repetitions(
    jobs: Sequence[JobStatus], listed: Iterable[UUID], attempts: Iterable[Attempt]
) -> list[str]:
    """Signs that a job finished more than once, or that its outcome is not that of its attempt.

    ``listed`` are the ids that the broker lists as finished, ``attempts`` what workers began.
    """
    faults = []
    times = Counter(listed)
    for job in jobs:
        if times[job.id] != 1:
            faults.append(f"job {job.id} is listed {times[job.id]} times as finished")
        if job.state == "finished" and job.result.get("attempt") != job.attempt:
            faults.append(
                f"job {job.id} is in attempt {job.attempt}, "
                f"its result is of attempt {job.result.get('attempt')}"
            )
    if strangers := set(times) - {job.id for job in jobs}:
        faults.append(f"{len(strangers)} jobs are listed that were never enqueued")
    began = Counter((each.id, each.attempt) for each in attempts)
    for (id, attempt), count in began.items():
        if count > 1:
            faults.append(f"attempt {attempt} of job {id} was given out {count} times")
    for job in jobs:
        if job.state == "finished" and (str(job.id), job.attempt) not in began:
            faults.append(f"job {job.id} finished in attempt {job.attempt}, which nobody began")
    return faults


class Crossing(NamedTuple):
    """What became of the jobs that a kill met: ended before it, or running at the gate."""

    faults: list[str]
    kept: int
    """Attempts that went on in the worker that was not killed."""
    repeated: int
    """Attempts beyond each job's first."""


def crossing(before: Iterable[JobStatus], after: Sequence[JobStatus]) -> Crossing:
    """Compare the jobs as they were at the kill, still held up by the gate, with their end."""
    now = {job.id: job for job in after}
    faults, kept = [], 0
    for old in before:
        new = now[old.id]
        if old.state == "finished" and _outcome(old) != _outcome(new):
            faults.append(f"the outcome of job {old.id}, recorded before the kill, has changed")
        kept += old.state == "running" and old.attempt == new.attempt
    return Crossing(faults, kept, sum(job.attempt - 1 for job in after))


def summary(faults: Sequence[str]) -> str:
    """The first few faults, and how many more there are."""
    more = f"; and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
    return "; ".join(faults[:SHOWN_FAULTS]) + more


def request_bytes(tree: Tree) -> int:
    """About how large the request that enqueues the whole tree is, rather more than less."""
    return sum(len(encode_path(node.path)) + 200 + 41 * len(node.children) for node in tree.nodes)


def _outcome(job: JobStatus) -> tuple[object, ...]:
    return (job.state, job.attempt, job.started, job.finished, job.result)


def _what(node: Node) -> str:
    return f"{node.kind} {encode_path(node.path)}"
