"""Round trips, timed one by one: the same for all peers."""

import time
from collections.abc import Callable

from scripts.bench.statistics import percentile

WARM_UP = 20


def timed(trip: Callable[[], object], times: int) -> dict[str, float]:
    """What so many calls of `trip` take, after some to warm up."""
    for _ in range(WARM_UP):
        trip()
    took = []
    for _ in range(times):
        began = time.perf_counter()
        trip()
        took.append(time.perf_counter() - began)
    return {"p50_us": percentile(took, 50) * 1e6, "p99_us": percentile(took, 99) * 1e6}
