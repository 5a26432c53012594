"""A job as its handler sees it, with a desk that is played by the test."""

import pytest
from msgspec import Raw

from worker_sdk.ids import new_id
from worker_sdk.job import Job
from worker_sdk.messages import Assignment


class Desk:
    """Answers with the results of the last two ids that it is asked for, the last one first."""

    def __init__(self, results: dict[str, bytes]) -> None:
        self.results = results

    def fetch_inputs(self, job: Job, ids: tuple[str, ...]) -> dict[str, Raw]:
        known = [id for id in reversed(ids) if id in self.results]
        return {id: Raw(self.results[id]) for id in known[:2]}

    def report(self, job: Job, value: bytes) -> None: ...

    def wait_stopped(self, job: Job, timeout_s: float | None) -> bool:
        return False


@pytest.mark.parametrize("page_jobs", [3, 5_000])
def test_fetched_inputs_come_in_the_order_of_the_dependencies(
    monkeypatch: pytest.MonkeyPatch, page_jobs: int
) -> None:
    monkeypatch.setattr("worker_sdk.job.INPUTS_PAGE_JOBS", page_jobs)
    ids = [new_id() for _ in range(8)]
    without_result = ids[4]
    results = {id: b"%d" % n for n, id in enumerate(ids) if id != without_result}
    assignment = Assignment(new_id(), 1, "t", dependencies=tuple(ids), inputs_left_out=True)

    inputs = Job(assignment, Desk(results)).inputs

    assert list(map(str, inputs)) == list(results)
    assert list(inputs.values()) == [0, 1, 2, 3, 5, 6, 7]
