"""Runs the simulation: ``python -m tests.simulation --hours 1``, or one seed with all it does."""

from __future__ import annotations

import argparse
import dataclasses
import secrets
import sys
import time
from collections import Counter
from typing import Any

from tests.simulation.plan import Plan, numbers_in
from tests.simulation.run import Report, run
from tests.simulation.shrink import shrink

_TOLD_EVERY_S = 60.0


def main() -> int:
    """Give 0 if all went well, 1 if a promise was broken."""
    options = _options()
    changes = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(Plan)
        if getattr(options, field.name, None) is not None and field.name != "seed"
    }
    if options.seed is not None:
        return _one(_plan(options.seed, changes, options.faults), options)
    return _many(options, changes)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--hours", type=float, help="run new seeds for so long")
    parser.add_argument("--seconds", type=float, help="run new seeds for so long")
    parser.add_argument("--seeds", type=int, help="run so many seeds")
    parser.add_argument("--first", type=int, help="the first of the seeds (default: a random one)")
    parser.add_argument("--seed", type=int, help="run this one and show what happens")
    parser.add_argument("--failures", type=int, default=1, help="stop after so many")
    parser.add_argument("--no-shrink", action="store_true", help="leave a failing run as it is")
    parser.add_argument("--faults", help="only these kinds, by commas; none for none")
    for field in dataclasses.fields(Plan):
        flag = "--" + field.name.replace("_", "-")
        if field.name in ("skip", "skip_ops"):
            parser.add_argument(flag, type=numbers_in, help="numbers, as in 1-5,8")
        elif field.name not in ("seed", "rates"):
            kind = {"int": int, "float": float, "str": str}[str(field.type)]
            parser.add_argument(flag, type=kind, help="instead of what the seed says")
    return parser.parse_args()


def _plan(seed: int, changes: dict[str, Any], faults: str | None) -> Plan:
    plan = Plan.draw(seed, **changes)
    return plan if faults is None else plan.only(faults.split(","))


def _one(plan: Plan, options: argparse.Namespace) -> int:
    report = run(plan, tell=True)
    for line in report.story:
        _say(line)
    if report.failure is None:
        _say(f"all is well: {_summary(report)}")
        return 0
    _say(report.where)
    _say(f"{report.failure}\n{plan.command()}")
    return 1


def _many(options: argparse.Namespace, changes: dict[str, Any]) -> int:
    seconds = options.seconds if options.hours is None else options.hours * 3600
    seed = secrets.randbelow(10**9) if options.first is None else options.first
    most = options.seeds if options.seeds is not None else (None if seconds else 100)
    begun = told = time.monotonic()
    seeds = steps = turns = jobs = starts = failures = 0
    virtual_s = 0.0
    faults: Counter[str] = Counter()
    while (most is None or seeds < most) and (
        seconds is None or time.monotonic() - begun < seconds
    ):
        report = run(_plan(seed, changes, options.faults))
        seeds, seed = seeds + 1, seed + 1
        steps, turns, jobs = steps + report.steps, turns + report.turns, jobs + report.jobs
        starts, virtual_s = starts + report.starts, virtual_s + report.virtual_s
        faults.update(report.faults)
        if report.failure is not None:
            failures += 1
            _show(report, options)
            if failures >= options.failures:
                break
        now = time.monotonic()
        is_last = (most is not None and seeds >= most) or (seconds and now - begun >= seconds)
        if now - told >= _TOLD_EVERY_S or is_last:
            told = now
            rate = steps / (now - begun) * 60
            _say(
                f"{seeds} seeds up to {seed - 1}, {steps} steps ({rate:,.0f} a minute), "
                f"{turns} turns, {jobs} jobs, {starts} broker starts, "
                f"{virtual_s / 3600:.1f} h of virtual time, {failures} failures"
            )
    shown = ", ".join(f"{kind} {times}" for kind, times in faults.most_common())
    _say(f"{faults.total()} faults: {shown}")
    return 1 if failures else 0


def _show(report: Report, options: argparse.Namespace) -> None:
    if not options.no_shrink:
        report = shrink(report)
        told = run(report.plan, tell=True)
        _say("\n".join(told.story))
    _say(f"{report.failure}\n  {report.plan.command()}")


def _summary(report: Report) -> str:
    return (
        f"{report.steps} steps, {report.turns} turns, {report.jobs} jobs, "
        f"{report.starts} broker starts, {report.virtual_s:.1f} s, faults {dict(report.faults)}"
    )


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
