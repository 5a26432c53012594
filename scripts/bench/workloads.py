"""The workloads, by name."""

from collections.abc import Callable, Iterator

from scripts.bench import crowd, graphs, latency, size, throughput
from scripts.bench.figures import Figure
from scripts.bench.setting import Setting

Workload = Callable[[Setting], Iterator[Figure]]

WORKLOADS: dict[str, tuple[Workload, ...]] = {
    "W1": (throughput.single, throughput.bulk),
    "W2": (latency.latency,),
    "W3": (graphs.chain,),
    "W4": (graphs.fan,),
    "W5": (size.size,),
    "W6": (crowd.crowd,),
}
