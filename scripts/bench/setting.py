"""How large the benchmark is, and what every workload of one run shares."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from msgspec import Struct

from scripts.bench import raw
from scripts.bench.figures import Figure
from scripts.bench.raw import RawLimits


class Sizes(Struct, frozen=True):
    """How many jobs and round trips each workload takes."""

    single_jobs: int = 50_000
    bulk_jobs: int = 500_000
    trips: int = 2_000
    chain_jobs: int = 10_000
    fan_jobs: int = 50_000
    few_queued: int = 10_000
    many_queued: int = 1_000_000
    rated_jobs: int = 20_000
    """W5: jobs by which the rates at a depth are measured."""
    rated_times: int = 5
    crowd_workers: int = 1_000
    crowd_types: int = 50
    crowd_jobs: int = 300_000
    idle_s: float = 10.0
    slow_jobs: int = 2_000
    """For peers that run some hundred jobs a second."""
    raw_jobs: int = 50_000
    raw_trips: int = 2_000
    syncs: int = 300


QUICK = Sizes(
    single_jobs=500,
    bulk_jobs=2_000,
    trips=50,
    chain_jobs=50,
    fan_jobs=200,
    few_queued=100,
    many_queued=1_000,
    rated_jobs=500,
    rated_times=1,
    crowd_workers=20,
    crowd_types=5,
    crowd_jobs=1_000,
    idle_s=0.5,
    slow_jobs=50,
    raw_jobs=1_000,
    raw_trips=50,
    syncs=20,
)
"""Only shows that the benchmark works; its figures mean nothing."""


@dataclass
class Setting:
    """What every workload of one repetition is given."""

    folder: Path
    """Where stores and sockets go: what is fsynced goes to this folder's disk."""
    sizes: Sizes = field(default_factory=Sizes)
    stores: tuple[str, ...] = ("memory", "sqlite")
    transports: tuple[str, ...] = ("tcp", "ipc")
    limits: list[Figure] = field(default_factory=list)
    """The raw figures of this repetition, as rows of their own."""

    def raw(self, transport: str) -> RawLimits:
        """Measure the raw relay, now."""
        found = raw.measure(
            transport, self.folder, jobs=self.sizes.raw_jobs, trips=self.sizes.raw_trips
        )
        self.limits.extend(raw.figures(transport, found))
        return found

    def append_sync_us(self) -> float:
        """Measure the disk, now."""
        took_us = raw.append_sync_us(self.folder, self.sizes.syncs)
        case = "append 300 bytes + fdatasync"
        self.limits.append(Figure(workload="disk", case=case, unit="us", value=took_us))
        return took_us

    def take_limits(self) -> Iterator[Figure]:
        """Hand over the raw figures since the last call."""
        taken, self.limits = self.limits, []
        yield from taken

    @property
    def first_transport(self) -> tuple[str, ...]:
        """What workloads use for which the transport makes little difference."""
        return self.transports[:1]
