"""How many jobs a worker asks for, and which of those it has may start: pure, without threads.

A worker asks for as many jobs as it can run at a time. When handlers take less time than a
message on its way, that would leave it idle between messages, so it asks for more: about
``PREFETCH_S`` worth of work. What waits here for longer than ``STALL_S`` was asked for in error
and goes back to the broker, where other workers can have it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from worker_sdk.agent import Agent
from worker_sdk.delivery import NEVER
from worker_sdk.messages import Assignment

PREFETCH_S = 0.02
"""How much work to have at hand, in seconds of handlers' time."""
PREFETCH_LIMIT_JOBS = 1024
SHORT_S = 0.001
"""Handlers that take longer than this on average get no job ahead of time."""
FLEETING_S = 0.0001
"""Handlers that take less than this are not worth waking another thread for (30 to 50 µs)."""
STALL_S = 0.05
"""How long a job may wait for a free place before it goes back."""
_SHORTEST_S = 1e-6


class Workload:
    """The jobs of one worker that holds at most `concurrency` started ones at a time.

    `limits`: of these types, no more than so many at a time.
    """

    def __init__(
        self, agent: Agent, concurrency: int, limits: Mapping[str, int] | None = None
    ) -> None:
        self._agent = agent
        self._concurrency = concurrency
        self._limits = dict(limits or {})
        self._types = agent.types
        # How many handlers run now, also those whose attempts were canceled under them.
        self.started = 0
        # How many of these are the latter: they keep a place that the broker takes for free.
        self._stuck = 0
        # Set once the worker is about to leave: nothing new starts.
        self.draining = False
        # The mean time of the handlers of each type, in seconds: quick to rise, slow to fall.
        self._mean_s: dict[str, float] = {}
        # Types whose jobs are known to be over before another thread would wake.
        self.fleeting: set[str] = set()
        # How many short jobs ended in a row: as many may be asked for ahead of time.
        self._short_in_a_row = 0
        self._prefetch = 0
        # When a job last left the queue.
        self._moved = 0.0
        # Whether anything has happened that changes the credit.
        self._is_changed = False
        # Types with a limit: how many run now, and which wait for one of those to end.
        self._running = dict.fromkeys(self._limits, 0)
        self._waiting: dict[str, deque[Assignment]] = {type: deque() for type in self._limits}
        # Those of them that the broker was asked not to send for now.
        self._paused: set[str] = set()
        agent.set_credit(concurrency)

    @property
    def has_next(self) -> bool:
        """Whether a job waits and there is a place for it."""
        return bool(self._agent.ready) and self.started < self._concurrency

    def take(self, now: float) -> Assignment | None:
        """Start the next job; None if there is none, or no place for it."""
        ready = self._agent.ready
        while ready and self.started < self._concurrency:
            assignment = ready.popleft()
            if not self._agent.holds(assignment):
                continue
            if self._limits and not self._may_start(assignment):
                continue
            self.started += 1
            self._moved = now
            return assignment
        return None

    def canceled(self) -> None:
        """A started job was canceled, and its handler still runs."""
        self._stuck += 1
        self._is_changed = True

    def ended(self, assignment: Assignment, seconds: float, was_canceled: bool = False) -> None:
        """A started job's handler has returned, after so many seconds."""
        self.started -= 1
        if was_canceled:
            self._stuck -= 1
        self._is_changed = True
        type = assignment.type
        mean_s = self._mean_s.get(type, seconds)
        mean_s += (seconds - mean_s) / (2 if seconds > mean_s else 8)
        self._mean_s[type] = mean_s
        if mean_s < FLEETING_S:
            self.fleeting.add(type)
        else:
            self.fleeting.discard(type)
        self._short_in_a_row = self._short_in_a_row + 1 if seconds < SHORT_S else 0
        if type in self._running:
            self._place_is_free(type)

    def put_back(self, assignment: Assignment) -> None:
        """Undo a `take`."""
        self.started -= 1
        if assignment.type in self._running:
            self._running[assignment.type] -= 1
        self._agent.ready.appendleft(assignment)

    def adjust(self, now: float) -> None:
        """Ask for more or fewer jobs, hand back those that wait in vain; before each flush."""
        if self.draining:
            self._release_all()
            return
        if not self._is_changed and not self._agent.ready and not self._limits:
            return
        self._is_changed = False
        if self._is_stalled(now):
            self._short_in_a_row = 0
            self._release_all()
        if self._limits:
            self._pause_full_types(now)
        places = max(0, self._concurrency - self._stuck)
        self._agent.set_credit(places + self._wanted_prefetch() if self._wanted_types() else 0)

    def drain(self) -> None:
        """Start nothing more, and hand back what has not started."""
        self.draining = True
        self._agent.set_credit(0)
        self._agent.confirm_at_once()
        self._release_all()

    def next_due(self) -> float:
        """When `adjust` has something to do at the latest."""
        is_full = self.started >= self._concurrency
        if (self._agent.ready and is_full) or any(self._waiting.values()):
            return self._moved + STALL_S
        return NEVER

    def _wanted_prefetch(self) -> int:
        slowest_s = max(self._mean_s.values(), default=SHORT_S)
        if slowest_s >= SHORT_S or not self._short_in_a_row:
            wanted = 0
        else:
            wanted = int(PREFETCH_S / max(slowest_s, _SHORTEST_S))
            wanted = min(wanted, self._short_in_a_row, PREFETCH_LIMIT_JOBS)
        # Small changes are not worth telling, except down to nothing.
        if not wanted or abs(wanted - self._prefetch) > self._prefetch // 4:
            self._prefetch = wanted
        return self._prefetch

    def _is_stalled(self, now: float) -> bool:
        is_full = self.started >= self._concurrency
        return bool(self._agent.ready) and is_full and now - self._moved > STALL_S

    def _release_all(self) -> None:
        ready = self._agent.ready
        if ready:
            self._agent.release(ready)
            ready.clear()
        for waiting in self._waiting.values():
            self._agent.release(waiting)
            waiting.clear()

    # ---- types with a limit --------------------------------------------------------------------

    def _may_start(self, assignment: Assignment) -> bool:
        type = assignment.type
        limit = self._limits.get(type)
        if limit is None:
            return True
        if self._running[type] >= limit:
            self._waiting[type].append(assignment)
            return False
        self._running[type] += 1
        return True

    def _place_is_free(self, type: str) -> None:
        self._running[type] -= 1
        self._paused.discard(type)
        if self._waiting[type]:
            self._agent.ready.appendleft(self._waiting[type].popleft())

    def _pause_full_types(self, now: float) -> None:
        """Have the broker send no more of a type whose limit is reached, until one has ended."""
        full = [type for type, waiting in self._waiting.items() if waiting]
        if full and now - self._moved > STALL_S:
            self._paused.update(full)
        types = self._wanted_types()
        if types and types != self._agent.types:
            self._agent.declare(types, now)
        for type in self._paused:
            self._agent.release(self._waiting[type])
            self._waiting[type].clear()

    def _wanted_types(self) -> tuple[str, ...]:
        if not self._paused:
            return self._types
        return tuple(type for type in self._types if type not in self._paused)
