"""W5: what a million queued jobs cost: memory, the time of a restart, and the speed of the rest."""

from collections.abc import Iterator
from contextlib import ExitStack

from scripts.bench.crew import BrokerProcess
from scripts.bench.figures import Figure, at_least, no_more_than
from scripts.bench.processes import memory_bytes, run, start
from scripts.bench.setting import Setting
from scripts.bench.statistics import median

BYTES_ALLOWED = 600
RESTART_ALLOWED_S = 10.0
RATE_FACTOR = 0.85
"""Within 15 %."""
SKIPPED_SHARE = 0.2
"""The worker warms up on so many jobs of those by which its rate is measured."""


def size(setting: Setting) -> Iterator[Figure]:
    """W5, for each store. Two brokers, with few and with many jobs, are measured in turns."""
    for store in setting.stores:
        yield from _size(setting, store)


def _size(setting: Setting, store: str) -> Iterator[Figure]:
    sizes = setting.sizes
    with ExitStack() as stack:
        small, large = (
            stack.enter_context(BrokerProcess(setting.folder, store, setting.transports[0]))
            for _ in range(2)
        )
        empty_bytes = memory_bytes(large.pid)
        _fill(small, sizes.few_queued)
        fill_s = _fill(large, sizes.many_queued)
        yield Figure(
            workload="W5 size",
            case=f"{store}, memory for each of {sizes.many_queued:,} jobs",
            unit="bytes",
            value=(memory_bytes(large.pid) - empty_bytes) / sizes.many_queued,
            bar=no_more_than(BYTES_ALLOWED, f"<= {BYTES_ALLOWED} bytes"),
            details={"fill s": fill_s},
        )
        yield from _rates(setting, store, small, large)
        if store != "memory":
            large.kill()
            yield Figure(
                workload="W5 size",
                case=f"{store}, killed and restarted with {sizes.many_queued:,} jobs",
                unit="s",
                value=large.start(),
                bar=no_more_than(RESTART_ALLOWED_S, f"<= {RESTART_ALLOWED_S:g} s"),
                details={"bytes a job": memory_bytes(large.pid) / sizes.many_queued},
            )
            _check_queued(large, sizes.many_queued)


def _rates(
    setting: Setting, store: str, small: BrokerProcess, large: BrokerProcess
) -> Iterator[Figure]:
    """Enqueue and dispatch some jobs, at both depths in turns."""
    sizes = setting.sizes
    jobs = sizes.rated_jobs
    enqueued: dict[BrokerProcess, list[float]] = {small: [], large: []}
    dispatched: dict[BrokerProcess, list[float]] = {small: [], large: []}
    for _ in range(sizes.rated_times):
        for broker in (small, large):
            enqueued[broker].append(jobs / _fill(broker, jobs))
            dispatched[broker].append(_dispatch_rate(broker, jobs))
    for what, found in (("enqueue", enqueued), ("dispatch", dispatched)):
        few, many = median(found[small]), median(found[large])
        yield Figure(
            workload="W5 size",
            case=f"{store}, {what} with {sizes.many_queued:,} queued",
            unit="jobs/s",
            value=many,
            bar=at_least(RATE_FACTOR, few, of=f"that with {sizes.few_queued:,}"),
            details={f"jobs/s with {sizes.few_queued}": few},
        )


def _fill(broker: BrokerProcess, jobs: int) -> float:
    answer = run("scripts.bench.clients:fill", broker.folder, endpoint=broker.endpoint, jobs=jobs)
    return float(answer["seconds"])


def _dispatch_rate(broker: BrokerProcess, jobs: int) -> float:
    """Run about so many jobs; the worker is killed once it has said how fast it was."""
    skipped = max(1, int(jobs * SKIPPED_SHARE))
    counted = jobs - skipped
    with start(
        "scripts.bench.workers:rated",
        broker.folder,
        endpoint=broker.endpoint,
        skipped=skipped,
        counted=counted,
    ) as worker:
        return float(worker.hear())


def _check_queued(broker: BrokerProcess, at_least_jobs: int) -> None:
    ready = run("scripts.bench.clients:queued", broker.folder, endpoint=broker.endpoint)
    if ready < at_least_jobs * 0.9:
        raise RuntimeError(f"only {ready:,} jobs are left after the restart")
