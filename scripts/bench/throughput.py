"""W1: how many jobs a second go through, enqueued one by one and in bulk."""

from collections.abc import Iterator

from scripts.bench.crew import crew
from scripts.bench.figures import Figure, at_least
from scripts.bench.setting import Setting

SINGLE_BARS = {"memory": 1.0, "sqlite": 0.6}
BULK_BARS = {"memory": 3.0, "sqlite": 1.5}


def single(setting: Setting) -> Iterator[Figure]:
    """W1 single: each job enqueued by its own call, one worker."""
    for transport in setting.transports:
        raw = setting.raw(transport)
        for store in setting.stores:
            yield _rate(
                setting,
                "single",
                f"{store}, {transport}",
                (store, transport, 1, setting.sizes.single_jobs),
                (raw.raw.jobs_per_s, raw.framewise.jobs_per_s, SINGLE_BARS[store]),
            )


def bulk(setting: Setting) -> Iterator[Figure]:
    """W1 bulk: jobs enqueued by ``enqueue_many``, one and two workers."""
    for transport in setting.first_transport:
        for workers in (1, 2):
            raw = setting.raw(transport)
            for store in setting.stores:
                yield _rate(
                    setting,
                    "bulk",
                    f"{store}, {transport}, {workers} worker{'s' if workers > 1 else ''}",
                    (store, transport, workers, setting.sizes.bulk_jobs),
                    (raw.raw.jobs_per_s, raw.framewise.jobs_per_s, BULK_BARS[store]),
                )


def _rate(
    setting: Setting,
    way: str,
    case: str,
    of: tuple[str, str, int, int],
    against: tuple[float, float, float],
) -> Figure:
    store, transport, workers, jobs = of
    raw, framewise, factor = against
    with crew(setting.folder, store, transport, workers=workers) as running:
        answer = running.client(way, jobs, jobs=jobs)
    return Figure(
        workload=f"W1 {way}",
        case=case,
        unit="jobs/s",
        value=jobs / answer["seconds"],
        raw=raw,
        framewise=framewise,
        bar=at_least(factor, raw),
        details=answer["cpu"] | {"enqueue us": answer["enqueue_s"] / jobs * 1e6},
    )
