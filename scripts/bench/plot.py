"""A picture of the rows, if matplotlib is there to draw it."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.bench.report import Row, number

COLORS = {"relay": "#9a9a9a", "disk": "#9a9a9a", "peers": "#7aa6c2"}
OWN_COLOR = "#c2562d"


def draw(found: Sequence[Row], folder: Path) -> list[Path]:
    """Write bench.png and bench.svg; nothing, if there is no matplotlib or nothing to draw."""
    panels = [
        (title, shown)
        for title, unit in (("jobs a second", "jobs/s"), ("microseconds, one job at a time", "us"))
        if (shown := [row for row in found if row.unit == unit and row.workload != "disk"])
    ]
    try:
        matplotlib: Any = importlib.import_module("matplotlib")
    except ImportError:
        return []
    if not panels:
        return []
    matplotlib.use("Agg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    longest = max(len(shown) for _, shown in panels)
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(9 * len(panels), 1.5 + 0.26 * longest), squeeze=False
    )
    for axis, (title, shown) in zip(axes[0], panels, strict=True):
        _draw_panel(axis, title, shown)
    figure.tight_layout()
    paths = [folder / "bench.png", folder / "bench.svg"]
    for path in paths:
        figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return paths


def _draw_panel(axis: Any, title: str, shown: Sequence[Row]) -> None:
    places = range(len(shown), 0, -1)
    values = [row.value.median for row in shown]
    axis.barh(
        places,
        values,
        xerr=[
            [row.value.median - row.value.low for row in shown],
            [row.value.high - row.value.median for row in shown],
        ],
        color=[COLORS.get(row.workload, OWN_COLOR) for row in shown],
        error_kw={"lw": 0.8},
    )
    axis.set_yticks(places, [f"{row.workload}: {row.case}" for row in shown], fontsize=7)
    for place, row in zip(places, shown, strict=True):
        axis.annotate(
            number(row.value.median),
            (row.value.high, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    if max(values) > 20 * min(values):
        axis.set_xscale("log")
    axis.margins(x=0.15)
    axis.set_title(title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
