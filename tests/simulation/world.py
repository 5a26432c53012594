"""Virtual time, chance and the record of what happened."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from tests.simulation.plan import NEVER, Plan
from tests.simulation.violation import Violation

_STEPS_MOST = 300_000
EPOCH = 1_700_000_000.0


class World:
    """The time that all share, what is to happen next, and the dice."""

    def __init__(self, plan: Plan, *, tell: bool = False) -> None:
        self.plan = plan
        self.now = 0.0
        # Wall clock minus time since the start; faults step it.
        self.offset = EPOCH
        self.steps = 0
        # Faults happen until the run's length is over.
        self.is_rough = True
        self.struck = 0
        self.faults: Counter[str] = Counter()
        self.rates = dict(plan.rates)
        # What happened, for people, if they want to know.
        self.story: list[str] | None = [] if tell else None
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._names: dict[str, str] = {}
        self._dice = self.dice("faults")

    @property
    def wall(self) -> float:
        """Seconds since the epoch, as the broker's clock shows them."""
        return self.now + self.offset

    def dice(self, name: str) -> random.Random:
        """Give the chance for one purpose: no use of another's changes it."""
        return random.Random(f"{self.plan.seed}/{name}")

    # ---- events ------------------------------------------------------------------------------

    def at(self, when: float, call: Callable[..., None], *args: Any) -> None:
        """Have something happen at a time."""
        self._count += 1
        heappush(self._events, (when, self._count, call, args))

    def after(self, delay: float, call: Callable[..., None], *args: Any) -> None:
        """Have something happen in a while."""
        self.at(self.now + delay, call, *args)

    def run(self, until: float, stop: Callable[[], bool]) -> None:
        """Let time go on until it is `until`, or an event makes `stop` true."""
        events = self._events
        while events and events[0][0] <= until:
            when, _, call, args = heappop(events)
            if when > self.now:
                self.now = when
            self.steps += 1
            if self.steps > _STEPS_MOST:
                raise Violation(f"no end after {_STEPS_MOST} steps")
            call(*args)
            if stop():
                return
        if until is not NEVER and until > self.now:
            self.now = until

    # ---- faults ------------------------------------------------------------------------------

    def strikes(self, kind: str, dice: random.Random | None = None) -> bool:
        """Whether a fault of this kind happens here and now."""
        rate = self.rates.get(kind)
        if not rate or not self.is_rough:
            return False
        return (dice or self._dice).random() < rate and self.count(kind)

    def count(self, kind: str) -> bool:
        """Count a fault; false if the plan leaves this one out."""
        if not self.is_rough:
            return False
        self.struck += 1
        if self.struck in self.plan.skip:
            return False
        self.faults[kind] += 1
        if self.story is not None:
            self.tell(f"fault {self.struck}: {kind}")
        return True

    def now_and_then(self, kind: str, do: Callable[[], None]) -> None:
        """Have a fault happen so many times a second, at random."""
        rate = self.rates.get(kind)
        if not rate:
            return
        dice = self.dice(f"faults/{kind}")

        def again() -> None:
            if self.is_rough:
                self.after(dice.expovariate(rate), again)
                if self.count(kind):
                    do()

        self.after(dice.expovariate(rate), again)

    # ---- the record --------------------------------------------------------------------------

    def tell(self, text: str) -> None:
        """Note what happens, if anybody wants to know."""
        if self.story is not None:
            self.story.append(f"{self.now:10.4f}  {text}")

    def name(self, id: str) -> str:
        """Give a short name for a job."""
        return self._names.setdefault(id, f"j{len(self._names) + 1}")

    def named(self, text: str) -> str:
        """Put short names in place of ids."""
        for id, name in self._names.items():
            text = text.replace(id, name)
        return text
