"""W2: how long one job takes from the client's call until the result is back."""

from collections.abc import Iterator

from scripts.bench.crew import crew
from scripts.bench.figures import Bar, Figure, at_most
from scripts.bench.raw import Limits
from scripts.bench.setting import Setting

BARRED_WAYS = ("run", "async run")
WAYS = (*BARRED_WAYS, "enqueue, result")
"""The last takes two round trips, and the relay has no such thing: no bar."""
P50_FACTOR = 1.25
P99_FACTOR = 2.0
SYNCS_ALLOWED = 2.5


def latency(setting: Setting) -> Iterator[Figure]:
    """W2: round trips one after the other, in each way that the API has."""
    for transport in setting.transports:
        raw = setting.raw(transport)
        sync_us = setting.append_sync_us()
        for store in setting.stores:
            with crew(setting.folder, store, transport) as running:
                for way in WAYS:
                    answer = running.client(
                        "latency", setting.sizes.trips, way=way, trips=setting.sizes.trips
                    )
                    for name in ("p50", "p99"):
                        yield Figure(
                            workload="W2 latency",
                            case=f"{store}, {transport}, {way}, {name}",
                            unit="us",
                            value=answer[f"{name}_us"],
                            raw=_of(raw.raw, name),
                            framewise=_of(raw.framewise, name),
                            bar=_bar(store, way, name, raw.raw, sync_us),
                            details=answer["cpu"],
                        )


def _of(limits: Limits, name: str) -> float:
    return limits.p50_us if name == "p50" else limits.p99_us


def _bar(store: str, way: str, name: str, raw: Limits, sync_us: float) -> Bar | None:
    if way not in BARRED_WAYS:
        return None
    factor = P50_FACTOR if name == "p50" else P99_FACTOR
    if store == "memory":
        return at_most(factor, _of(raw, name))
    return at_most(
        factor,
        _of(raw, name),
        plus=SYNCS_ALLOWED * sync_us,
        text=f" + {SYNCS_ALLOWED:g} syncs",
    )
