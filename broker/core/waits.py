"""Who waits for jobs to end."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from msgspec import Raw, Struct

from broker.core.timers import Timer, Timers
from broker.core.workers import Origin
from worker_sdk.messages import Wait


class _Waiter(Struct, eq=False):
    """One `wait` that has not been answered."""

    origin: Origin
    request: Wait
    open: set[str]
    """The jobs that have not ended."""
    timer: Timer | None = None
    """The end of its patience."""


class Waits:
    """All waits that have not been answered, by the jobs they wait for."""

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        # The jobs that somebody waits for, and who.
        self.by_job: dict[str, dict[_Waiter, None]] = {}
        self._count = 0
        # How many jobs all of them wait for, each counted as often as it is waited for.
        self.awaited = 0
        # Waits that are over, to be answered when this turn is committed.
        self.over: list[tuple[Origin, Wait]] = []

    def __len__(self) -> int:
        return self._count

    def add(self, origin: Origin, request: Wait, open: Iterable[str], until: float) -> None:
        """Answer `request` when all of `open`, live jobs, have ended, or at the time `until`."""
        if isinstance(request.req, Raw):
            # A copy: as it came, it would keep the whole message in memory.
            request.req = Raw(bytes(request.req))
        waiter = _Waiter(origin, request, set(open))
        for id in waiter.open:
            self.by_job.setdefault(id, {})[waiter] = None
        waiter.timer = self._timers.set(until, partial(self._give_up, waiter))
        self._count += 1
        self.awaited += len(waiter.open)

    def ended(self, id: str) -> None:
        """Take note of the end of a job that is waited for."""
        waiters = self.by_job.pop(id)
        self.awaited -= len(waiters)
        for waiter in waiters:
            waiter.open.discard(id)
            if not waiter.open:
                assert waiter.timer is not None
                self._timers.cancel(waiter.timer)
                self._answer(waiter)

    def _give_up(self, waiter: _Waiter) -> None:
        self.awaited -= len(waiter.open)
        for id in waiter.open:
            others = self.by_job[id]
            del others[waiter]
            if not others:
                del self.by_job[id]
        self._answer(waiter)

    def _answer(self, waiter: _Waiter) -> None:
        self._count -= 1
        self.over.append((waiter.origin, waiter.request))
