"""The rows that peers have in common."""

from collections.abc import Iterator, Mapping

from scripts.bench.figures import Figure


def rate(peer: str, what: str, jobs_per_s: float) -> Figure:
    """Jobs a second, as in W1."""
    return Figure(workload="peers", case=f"{peer}, {what}", unit="jobs/s", value=jobs_per_s)


def round_trips(peer: str, times: Mapping[str, float]) -> Iterator[Figure]:
    """Times of round trips, as in W2; `times` has ``p50_us`` and ``p99_us``."""
    for name in ("p50", "p99"):
        yield Figure(
            workload="peers",
            case=f"{peer}, latency {name}",
            unit="us",
            value=times[f"{name}_us"],
        )


def hop(peer: str, seconds: float) -> Figure:
    """The time of a hop in a chain, as in W3."""
    return Figure(
        workload="peers", case=f"{peer}, a hop in a chain", unit="us", value=seconds * 1e6
    )
