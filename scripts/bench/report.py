"""What the figures come to: rows, as a table for people and as JSON for programs."""

import json
import os
import platform
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import zmq

from broker import __version__
from scripts.bench.figures import Figure
from scripts.bench.statistics import Spread, median, spread


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure over all repetitions. Ratios are the medians of each repetition's own ratio."""

    workload: str
    case: str
    unit: str
    value: Spread
    raw: float | None = None
    ratio: float | None = None
    """To the raw relay."""
    framewise_ratio: float | None = None
    bar: str = ""
    share: float | None = None
    """How much of what the bar asks for is reached; None without a bar."""
    details: dict[str, float] = {}

    @property
    def reached(self) -> bool | None:
        """Whether the bar is reached; None without a bar."""
        return None if self.share is None else self.share >= 1.0


def rows(figures: Iterable[Figure]) -> list[Row]:
    """One row for all figures with the same key, in the order in which the keys came first."""
    groups: dict[tuple[str, str, str], list[Figure]] = {}
    for figure in figures:
        groups.setdefault(figure.key, []).append(figure)
    return [_row(group) for group in groups.values()]


def _row(group: Sequence[Figure]) -> Row:
    first = group[0]
    raws = [each.raw for each in group if each.raw]
    used = _median_or_none([each.value / each.bar.allowed for each in group if each.bar])
    return Row(
        workload=first.workload,
        case=first.case,
        unit=first.unit,
        value=spread([each.value for each in group]),
        raw=_median_or_none(raws),
        ratio=_median_or_none([each.value / each.raw for each in group if each.raw]),
        framewise_ratio=_median_or_none(
            [each.value / each.framewise for each in group if each.framewise]
        ),
        bar=first.bar.text if first.bar else "",
        share=None if first.bar is None or used is None else first.bar.share(used),
        details={
            name: median([each.details[name] for each in group if name in each.details])
            for name in first.details
        },
    )


def _median_or_none(values: Sequence[float]) -> float | None:
    return median(values) if values else None


# ---- for people ------------------------------------------------------------------------------

HEAD = ("workload", "case", "median", "unit", "lowest - highest", "x raw", "x framewise", "bar", "")


def table(found: Sequence[Row]) -> str:
    """The rows as a Markdown table whose columns stand under each other."""
    lines = [list(HEAD), *(_cells(row) for row in found)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    lines.insert(1, ["-" * width for width in widths])

    def line_of(cells: Sequence[str]) -> str:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        return f"| {' | '.join(padded)} |\n"

    return "".join(map(line_of, lines))


def _cells(row: Row) -> list[str]:
    verdict = ""
    if row.share is not None:
        verdict = "reached" if row.reached else f"{row.share:.0%} of it"
    return [
        row.workload,
        row.case,
        number(row.value.median),
        row.unit,
        f"{number(row.value.low)} - {number(row.value.high)}" if row.value.runs > 1 else "",
        f"{row.ratio:.2f}" if row.ratio is not None else "",
        f"{row.framewise_ratio:.2f}" if row.framewise_ratio is not None else "",
        row.bar,
        verdict,
    ]


def number(value: float) -> str:
    """The value with as many digits as say something."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


# ---- for programs ----------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """On what and with what it was measured."""
    return {
        "pointsman": __version__,
        "python": platform.python_version(),
        "libzmq": zmq.zmq_version(),
        "pyzmq": zmq.__version__,
        "msgspec": msgspec.__version__,
        "sqlite": sqlite3.sqlite_version,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def as_json(
    found: Sequence[Row], notes: dict[str, str], began: str, load: tuple[float, float, float]
) -> str:
    """Everything, with the notes on the peers, and how busy the machine was before."""
    whole = {
        "measured": began,
        "load_before": load,
        "environment": environment(),
        "rows": [msgspec.to_builtins(row) | {"reached": row.reached} for row in found],
        "peers": notes,
    }
    return json.dumps(whole, indent=2) + "\n"
