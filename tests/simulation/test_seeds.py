"""The system keeps its promises in every run: those of fixed seeds, and of new ones each time."""

from __future__ import annotations

import secrets
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.simulation.plan import FAULTS, Plan, numbers_in, ranges_of
from tests.simulation.planted import PLANTED, Planted, catch
from tests.simulation.run import Report, run
from tests.simulation.shrink import shrink

FIXED_SEEDS = 100
SEEDS_A_TEST = 20
FRESH_S = 3.0


def tell(report: Report) -> str:
    """Give the shortest history found that fails in the same way, and how to run it again."""
    told = run(shrink(report).plan, tell=True)
    again = f"{told.failure}\n{told.plan.command()}\nit began as: {report.plan.command()}"
    return "\n".join([*told.story[-100:], told.where, again])


@pytest.mark.parametrize("first", range(0, FIXED_SEEDS, SEEDS_A_TEST))
def test_promises_hold(first: int) -> None:
    for seed in range(first, first + SEEDS_A_TEST):
        report = run(Plan.draw(seed))

        assert report.failure is None, tell(report)


def test_promises_hold_in_runs_that_nobody_has_seen_yet() -> None:
    end = time.monotonic() + FRESH_S
    while time.monotonic() < end:
        report = run(Plan.draw(secrets.randbelow(10**9)))

        assert report.failure is None, tell(report)


@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_promises_hold_when_everything_happens_at_once(store: str) -> None:
    rates = tuple(FAULTS.items())
    for seed in range(5):
        report = run(Plan.draw(seed, store=store, rates=rates, ops=60, length=10.0))

        assert report.failure is None, tell(report)
        assert sum(report.faults.values()) > 10


def test_a_seed_is_the_same_run_every_time() -> None:
    plan = Plan.draw(7, rates=tuple(FAULTS.items()))

    first, second = run(plan, tell=True), run(plan, tell=True)

    assert first.story == second.story
    assert first.faults == second.faults


@pytest.fixture(scope="module")
def found() -> tuple[Planted, Report]:
    """A failing run, that of a planted fault, made as small as can be."""
    [planted] = [each for each in PLANTED if "cascade" in each.name]
    report = catch(planted)
    assert report is not None
    with planted.plant():
        return planted, shrink(report, most=100)


def test_a_failing_run_shrinks_to_a_history_that_a_person_can_read(
    found: tuple[Planted, Report],
) -> None:
    planted, report = found

    with planted.plant():
        small = run(report.plan, tell=True)

    assert small.failure is not None
    assert len(small.story) < 100  # two screens; which run is found depends on the workload


def test_the_line_that_a_failing_run_prints_runs_it_again(found: tuple[Planted, Report]) -> None:
    words = shlex.split(found[1].plan.command())
    assert words[:3] == ["python", "-m", "tests.simulation"]

    # Without the planted fault the very same run ends well.
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=root, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "all is well" in done.stdout


def test_the_line_names_rates_that_do_not_follow_from_the_seed() -> None:
    plan = Plan.draw(5, rates=(("cut", 0.25), Plan.draw(5).rates[0]), workers=9)

    words = plan.command().split()

    faults = words[words.index("--faults") + 1]
    assert faults == f"cut=0.25,{plan.rates[1][0]}"
    assert Plan.draw(5, workers=9).only(faults.split(",")) == plan


def test_ranges_of_numbers_are_read_as_they_are_written() -> None:
    numbers = frozenset({1, 2, 3, 7, 9, 10})

    assert ranges_of(numbers) == "1-3,7,9-10"
    assert numbers_in(ranges_of(numbers)) == numbers
