"""W3 and W4: a long chain of jobs, and a wide fan of them."""

from collections.abc import Iterator

from scripts.bench.crew import crew
from scripts.bench.figures import Figure, at_most
from scripts.bench.setting import Setting

CHAIN_FACTOR = 1.5
FAN_FACTOR = 1.3


def chain(setting: Setting) -> Iterator[Figure]:
    """W3: the time of a hop from one job to the one that depends on it."""
    jobs = setting.sizes.chain_jobs
    for transport in setting.first_transport:
        raw = setting.raw(transport)
        for store in setting.stores:
            with crew(setting.folder, store, transport) as running:
                answer = running.client("chain", jobs, jobs=jobs)
            barred = store == "memory"
            yield Figure(
                workload="W3 chain",
                case=f"{store}, {transport}, a hop",
                unit="us",
                value=answer["seconds"] / jobs * 1e6,
                raw=raw.raw.p50_us,
                framewise=raw.framewise.p50_us,
                bar=at_most(CHAIN_FACTOR, raw.raw.p50_us) if barred else None,
                details=answer["cpu"],
            )


def fan(setting: Setting) -> Iterator[Figure]:
    """W4: one job, many that depend on it, and one that depends on all of those."""
    children = setting.sizes.fan_jobs
    jobs = children + 2
    for transport in setting.first_transport:
        for store in setting.stores:
            with crew(setting.folder, store, transport) as running:
                bulk = running.client("bulk", jobs, jobs=jobs)
            with crew(setting.folder, store, transport) as running:
                answer = running.client("fan", jobs, children=children)
            yield Figure(
                workload="W4 fan",
                case=f"{store}, {transport}, 1 -> {children:,} -> 1",
                unit="s",
                value=answer["seconds"],
                bar=at_most(FAN_FACTOR, bulk["seconds"], of="W1 bulk"),
                details=answer["cpu"]
                | {"bulk s": bulk["seconds"], "enqueue s": answer["enqueue_s"]},
            )
