"""The demo's graph, and that its checks find what they are there to find."""

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from broker.demo import graph
from broker.demo.graph import Attempt
from broker.demo.tree import Tree, compute, scan
from worker_sdk import JobSpec, JobStatus

START = datetime(2025, 1, 1, tzinfo=UTC)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    (tmp_path / "inner").mkdir()
    for number in range(20):
        (tmp_path / "inner" / f"{number}.txt").write_text(str(number))
    return scan(str(tmp_path))


def finished(spec: JobSpec, result: Any, attempt: int = 1, at_s: float = 1) -> JobStatus:
    return JobStatus(
        id=spec.id,
        type=spec.type,
        state="finished",
        channel="default",
        priority=0,
        queued=START,
        started=START,
        finished=START + timedelta(seconds=at_s),
        ended=START + timedelta(seconds=at_s),
        due=None,
        canceled=False,
        dependencies=(),
        dependents=(),
        result=result,
        error=None,
        reason=None,
        culprit=None,
        attempt=attempt,
        max_attempts=3,
        progress=None,
        args=None,
    )


def run(tree: Tree) -> tuple[list[JobStatus], list[Attempt]]:
    """The jobs as they are when all went well, and the journal of that."""
    jobs = [
        finished(spec, {"digest": digest, "attempt": 1})
        for spec, digest in zip(graph.build(tree), compute(tree), strict=True)
    ]
    return jobs, [Attempt(str(job.id), 1, 100) for job in jobs]


def test_each_node_is_a_job_and_each_folder_depends_on_all_of_its_entries(tree: Tree) -> None:
    jobs = graph.build(tree)

    assert [job.type for job in jobs] == ["demo.leaf"] * 20 + ["demo.folder"] * 2
    assert set(jobs[-2].dependencies) == {job.id for job in jobs[:20]}
    assert list(jobs[-1].dependencies) == [jobs[-2].id]


def test_gate_holds_up_the_root_and_leaves_that_start_first(tree: Tree) -> None:
    jobs = graph.build(tree, gated_leaves=4)

    waiting = [place for place, job in enumerate(jobs) if job.args.get("wait")]

    assert waiting == [0, 1, 2, 3, 21]
    assert all((jobs[place].priority > 0) == (place in waiting) for place in range(len(jobs)))


def test_request_is_not_larger_than_foreseen(tree: Tree) -> None:
    jobs = graph.build(tree, gated_leaves=20)

    assert sum(len(job.encoded()) + 1 for job in jobs) < graph.request_bytes(tree)


def test_hop_is_the_mean_time_from_end_to_end() -> None:
    jobs = [finished(spec, None, at_s=at) for at, spec in enumerate(graph.chain(5))]

    assert graph.hop_s(jobs) == 1.0


def test_no_fault_is_found_where_there_is_none(tree: Tree) -> None:
    jobs, journal = run(tree)

    assert graph.differences(tree, jobs, compute(tree)) == []
    assert graph.repetitions(jobs, [job.id for job in jobs], journal) == []
    assert graph.crossing(jobs[:5], jobs) == ([], 0, 0)


def test_wrong_digest_is_found(tree: Tree) -> None:
    jobs, _ = run(tree)
    jobs[3] = dataclasses.replace(jobs[3], result={"digest": "0" * 64, "attempt": 1})

    (fault,) = graph.differences(tree, jobs, compute(tree))

    assert tree.nodes[3].path in fault


def test_job_that_failed_is_found_with_its_error(tree: Tree) -> None:
    jobs, _ = run(tree)
    jobs[3] = dataclasses.replace(jobs[3], state="failed", error="boom")

    (fault,) = graph.differences(tree, jobs, compute(tree))

    assert "failed: boom" in fault


def test_job_that_is_listed_twice_or_never_is_found(tree: Tree) -> None:
    jobs, journal = run(tree)
    listed = [job.id for job in jobs[1:]]

    faults = graph.repetitions(jobs, [*listed, listed[-1]], journal)

    assert [fault.partition(" is ")[2] for fault in faults] == [
        "listed 0 times as finished",
        "listed 2 times as finished",
    ]


def test_outcome_of_another_attempt_is_found(tree: Tree) -> None:
    jobs, journal = run(tree)
    jobs[0] = dataclasses.replace(jobs[0], attempt=2)
    journal.append(Attempt(str(jobs[0].id), 2, 101))

    (fault,) = graph.repetitions(jobs, [job.id for job in jobs], journal)

    assert "its result is of attempt 1" in fault


def test_attempt_that_was_given_out_twice_is_found(tree: Tree) -> None:
    jobs, journal = run(tree)
    journal.append(Attempt(str(jobs[0].id), 1, 101))

    (fault,) = graph.repetitions(jobs, [job.id for job in jobs], journal)

    assert "given out 2 times" in fault


def test_second_attempt_after_a_lost_worker_is_no_fault(tree: Tree) -> None:
    jobs, journal = run(tree)
    jobs[0] = dataclasses.replace(jobs[0], attempt=2, result={"digest": "x", "attempt": 2})
    journal.append(Attempt(str(jobs[0].id), 2, 101))

    assert graph.repetitions(jobs, [job.id for job in jobs], journal) == []


def test_outcome_that_nobody_worked_for_is_found(tree: Tree) -> None:
    jobs, journal = run(tree)

    (fault,) = graph.repetitions(jobs, [job.id for job in jobs], journal[1:])

    assert "nobody began" in fault


def test_outcome_that_changed_after_the_kill_is_found(tree: Tree) -> None:
    jobs, _ = run(tree)
    before = [dataclasses.replace(jobs[0], finished=START)]

    assert len(graph.crossing(before, jobs).faults) == 1


def test_attempts_that_went_on_and_ones_that_were_repeated_are_counted(tree: Tree) -> None:
    jobs, _ = run(tree)
    before = [dataclasses.replace(job, state="running", finished=None) for job in jobs[:2]]
    jobs[1] = dataclasses.replace(jobs[1], attempt=2)

    assert graph.crossing(before, jobs) == ([], 1, 1)


def test_line_of_the_journal_that_a_kill_cut_off_is_ignored() -> None:
    assert graph.read_journal("a 1 5\nb 2 6\nc 1") == [Attempt("a", 1, 5), Attempt("b", 2, 6)]


def test_many_faults_are_told_in_short() -> None:
    assert graph.summary([str(n) for n in range(7)]) == "0; 1; 2; 3; 4; and 2 more"
