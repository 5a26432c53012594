"""Processes are killed and stopped at moments that a seed chooses.

``python -m tests.crash`` goes on for hundreds of cycles more.
"""

from pathlib import Path

import pytest

from tests.crash.audit import Books
from tests.crash.scenario import Scenario

pytestmark = pytest.mark.timeout(120)


def see(line: str) -> None:
    """Leave the times to recover in the test's output."""
    print(line)  # noqa: T201  (shown with -s, or when the test fails)


def test_nothing_acknowledged_is_lost_or_recorded_twice_whatever_is_killed(tmp_path: Path) -> None:
    scenario = Scenario(tmp_path, 2, jobs_most=500)
    try:
        for fault in ("broker killed", "worker killed", "all killed", "client killed"):
            scenario.strike(fault)
        scenario.strike("broker killed twice")
        report = scenario.settle()
    finally:
        scenario.close()

    see(report.line())
    assert not report.wrong
    assert report.jobs > 50


def test_processes_that_stand_still_for_longer_than_a_lease_do_no_harm(tmp_path: Path) -> None:
    scenario = Scenario(tmp_path, 3, jobs_most=500)
    try:
        for fault in ("worker stopped", "broker stopped"):
            scenario.strike(fault)
        report = scenario.settle()
    finally:
        scenario.close()

    see(report.line())
    assert not report.wrong


# ---- the audit itself would notice ---------------------------------------------------------------


def fact(what: str, at: int = 0, **more: object) -> dict[str, object]:
    return {"what": what, "at": at, **more}


JOB = {"id": "a", "number": 1, "fails": "never", "max_attempts": 3, "dependencies": []}


@pytest.mark.parametrize(
    ("facts", "fault"),
    [
        ([fact("enqueue", jobs=[JOB]), fact("enqueued", ids=["a"])], "acknowledged and lost"),
        ([fact("start", id="a", attempt=1), fact("start", id="a", attempt=1)], "started twice"),
        (
            [
                fact("seen", id="a", state="finished", result=1),
                fact("seen", id="a", state="finished", result=2),
            ],
            "changed",
        ),
        (
            [
                fact("recorded", id="a", attempt=1, outcome="finished"),
                fact("recorded", id="a", attempt=2, outcome="finished"),
            ],
            "two outcomes",
        ),
    ],
)
def test_audit_notices_what_must_not_be(facts: list[dict[str, object]], fault: str) -> None:
    (wrong,) = Books(facts).check({})

    assert fault in wrong
