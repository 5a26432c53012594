"""What a run consists of: all of it follows from the seed, and any part can be set otherwise."""

from __future__ import annotations

import dataclasses
import math
import random
from dataclasses import dataclass
from typing import Any

# kind -> the highest rate that a run draws, and for what: each message, each second, …
FAULTS: dict[str, float] = {
    # a message
    "lost": 0.02,  # and the connection with it
    "vanished": 0.01,  # the connection breaks only later
    "delayed": 0.05,
    "slow_peer": 0.01,  # the broker finds its queue full
    # a second
    "cut": 0.3,
    "half_open": 0.1,
    "worker_crash": 0.1,
    "worker_pause": 0.1,  # longer than its lease
    "worker_leaves": 0.05,
    "client_crash": 0.05,
    "broker_crash": 0.15,
    "broker_drains": 0.05,
    "restart_storm": 0.04,
    "clock_forward": 0.1,
    "clock_back": 0.1,
    "disk_full": 0.05,
    # a commit
    "crash_before_commit": 0.01,
    "crash_after_commit": 0.01,
    "crash_in_commit": 0.01,  # with a torn write, on SQLite
    "commit_failed": 0.005,
    "commit_failed_late": 0.005,  # the error comes, and yet all is on disk
    "slow_store": 0.05,
    # a message sent by the broker
    "crash_while_sending": 0.003,
    # a reconnect
    "old_messages_arrive": 0.5,  # those of the connection before
    "duplicated": 0.5,  # what was sent last on the connection before comes once more
    "silent_reconnect": 0.5,  # the peer is not told
    # a job
    "handler_hangs": 0.03,
    "handler_late": 0.05,  # goes on after it was told to stop
}


LONG = 100_000
"""For longer than a run, more than a run's jobs."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. Times in seconds of virtual time."""

    seed: int
    store: str = "memory"
    workers: int = 3
    clients: int = 2
    ops: int = 30
    """Requests of all clients together."""
    graph: int = 12
    """The most jobs in one request."""
    length: float = 20.0
    """How long clients ask and faults happen; then all is left to come to its end."""
    until: float = math.inf
    """When all that stops, if it does so before the length is over."""
    concurrency: int = 3
    heartbeat_limit: float = 2.0
    grace: float = 1.0
    retention: float = LONG
    max_ended: int = LONG
    max_jobs: int = 1000
    max_waits: int = 1000
    max_message: int = 16 * 1024 * 1024
    inputs_limit: int = 1000
    speed: float = 1.0
    """How long a message takes on average, in milliseconds."""
    patience: float = 600.0
    """How long all may take to come to its end once faults stop."""
    rates: tuple[tuple[str, float], ...] = ()
    skip: frozenset[int] = frozenset()
    """Faults that do not happen after all, by their number in the run."""
    skip_ops: frozenset[int] = frozenset()
    """Requests that are left out, by their number in the run."""

    @property
    def forgets(self) -> bool:
        """Whether ended jobs may be forgotten within the run, without anybody asking for it."""
        return self.retention < LONG or self.max_ended < LONG

    @classmethod
    def draw(cls, seed: int, **changes: Any) -> Plan:
        """Give the plan for a seed, with some of it set otherwise."""
        dice = random.Random(f"{seed}/plan")
        rates = []
        share = dice.choice((0.0, 0.15, 0.4, 0.8))
        for kind, most in FAULTS.items():
            chosen, power = dice.random() < share, dice.uniform(-2, 0)
            if chosen:
                rates.append((kind, round(most * 10**power, 5)))
        plan = cls(
            seed=seed,
            store="sqlite" if dice.random() < 0.08 else "memory",
            workers=dice.randint(1, 6),
            clients=dice.randint(1, 4),
            ops=int(10 * 10 ** dice.uniform(0, 1)),
            graph=dice.choice((3, 8, 20)),
            length=round(5 * 10 ** dice.uniform(0, 0.9), 1),
            concurrency=dice.choice((1, 2, 4, 16)),
            heartbeat_limit=round(dice.uniform(0.5, 4), 2),
            grace=round(dice.uniform(0.1, 3), 2),
            retention=dice.choice((0.0, 2.0, 10.0, *[LONG] * 7)),
            max_ended=dice.choice((0, 5, 20, *[LONG] * 9)),
            max_jobs=dice.choice((15, 40, 1000, 1000, 1000)),
            max_waits=dice.choice((2, 1000, 1000)),
            max_message=dice.choice((4096, *[16 * 1024 * 1024] * 5)),
            inputs_limit=dice.choice((0, 100, 10_000)),
            speed=round(10 ** dice.uniform(-1, 1.5), 2),
            rates=tuple(rates),
        )
        return dataclasses.replace(plan, **changes)

    def command(self) -> str:
        """Give the one line that runs exactly this again."""
        drawn = Plan.draw(self.seed)
        words = ["python -m tests.simulation", f"--seed {self.seed}"]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "seed" or value == getattr(drawn, field.name):
                continue
            flag = "--" + field.name.replace("_", "-")
            if field.name == "rates":
                known = set(drawn.rates)
                faults = [one[0] if one in known else f"{one[0]}={one[1]}" for one in value]
                words.append(f"--faults {','.join(faults) or 'none'}")
            elif isinstance(value, frozenset):
                words.append(f"{flag} {ranges_of(value)}")
            else:
                words.append(f"{flag} {value}")
        return " ".join(words)

    def only(self, kinds: list[str]) -> Plan:
        """Give the plan with no other faults than these: `kind` as drawn, or `kind=rate`."""
        drawn = dict(self.rates)
        rates = []
        for word in kinds:
            kind, _, rate = word.partition("=")
            if rate or kind in drawn:
                rates.append((kind, float(rate) if rate else drawn[kind]))
        return dataclasses.replace(self, rates=tuple(rates))


def ranges_of(numbers: frozenset[int]) -> str:
    """Write numbers as ranges: 1-3,7."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts)


def numbers_in(text: str) -> frozenset[int]:
    """Read what `ranges_of` wrote."""
    numbers: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return frozenset(numbers)


NEVER = math.inf
