"""The bounds and times that the core is run with; broker.config says what each means."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds in jobs, bytes, workers and waits; times in seconds."""

    heartbeat_limit: float = 10.0
    grace: float = 10.0
    retention: float = 86_400.0
    max_ended: int = 1_000_000
    max_jobs: int = 5_000_000
    max_bytes: int = 4 * 1024**3
    max_message: int = 16 * 1024**2
    max_workers: int = 10_000
    max_waits: int = 100_000
