"""The bounds and times that the core is run with; broker.config says what each means."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds in jobs, bytes, workers and waits; times in seconds."""

    heartbeat_limit: float
    grace: float
    retention: float
    max_ended: int
    max_jobs: int
    max_bytes: int
    max_message: int
    max_workers: int
    max_waits: int
