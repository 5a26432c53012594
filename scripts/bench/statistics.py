"""The few statistics that the benchmark needs."""

import math
from collections.abc import Iterable, Sequence

from msgspec import Struct


class Spread(Struct, frozen=True):
    """What several repetitions came to: their median, and between which bounds they lie."""

    median: float
    low: float
    high: float
    runs: int


def median(values: Iterable[float]) -> float:
    """The middle one of the values, or the mean of the two in the middle."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values have no median")
    half = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[half]
    return (ordered[half - 1] + ordered[half]) / 2


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that at least `percent` % of them do not exceed."""
    if not values:
        raise ValueError("no values have no percentiles")
    rank = math.ceil(len(values) * percent / 100)
    return sorted(values)[max(0, rank - 1)]


def spread(values: Sequence[float]) -> Spread:
    """Median, lowest and highest of the values."""
    return Spread(median(values), min(values), max(values), len(values))
