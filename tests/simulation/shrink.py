"""Makes a failing run smaller as long as it fails, down to a history that a person can read."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

from tests.simulation.plan import Plan
from tests.simulation.run import Report, run

_RUNS_MOST = 300


def shrink(report: Report, most: int = _RUNS_MOST) -> Report:
    """Give the smallest failing run found in `most` runs: fewer faults, requests, jobs, workers,
    less time.
    """
    best = report
    runs = 0
    again = True
    while again and runs < most:
        again = False
        for plan in _smaller(best):
            runs += 1
            if runs > most:
                break
            tried = run(plan)
            if tried.failure is not None and _kind(tried) == _kind(best):
                best = tried
                again = True
                break
    return best


def _kind(report: Report) -> str:
    """What sort of failure it is: its text without names and numbers."""
    return re.sub(r"[\W\d]+", " ", report.failure or "")[:40]


def _smaller(report: Report) -> Iterator[Plan]:
    """Give plans that are smaller in one respect, the boldest first."""
    plan = report.plan
    change = dataclasses.replace
    end = min(plan.length, plan.until)
    for share in (1.0, 0.5, 0.8, 0.95):
        until = math.ceil(min(report.virtual_s, end) * share * 1e4) / 1e4
        if until < end:
            yield change(plan, until=until)
    if plan.patience > 10:
        yield change(plan, patience=10.0)
    if plan.rates:
        yield change(plan, rates=())
    for name, least in (("workers", 1), ("clients", 1), ("graph", 1), ("concurrency", 1)):
        value = getattr(plan, name)
        for smaller in dict.fromkeys((least, value // 2, value - 1)):
            if least <= smaller < value:
                yield change(plan, **{name: smaller})
    kinds = [kind for kind, _ in plan.rates]
    for size in (len(kinds) // 2, len(kinds) // 4, 1):
        for at in range(0, len(kinds), size) if size else ():
            yield plan.only(kinds[:at] + kinds[at + size :])
    left = [number for number in range(1, plan.ops + 1) if number not in plan.skip_ops]
    for some in _parts(left):
        yield change(plan, skip_ops=plan.skip_ops | some)
    struck = range(1, sum(report.faults.values()) + len(plan.skip) + 1)
    for some in _parts([number for number in struck if number not in plan.skip]):
        yield change(plan, skip=plan.skip | some)


def _parts(numbers: list[int]) -> Iterator[frozenset[int]]:
    """Give what may be left out: halves first, then smaller parts, then each alone."""
    size = len(numbers) // 2
    while size:
        for at in range(0, len(numbers), size):
            yield frozenset(numbers[at : at + size])
        size //= 2
