"""When a worker's signs of life are due."""

_MOMENTS = 8
"""How many moments there are in an interval at which heartbeats are sent."""


def next_beat(last: float, interval_s: float) -> float:
    """When to send a heartbeat, `interval_s` after `last` at the latest.

    Up to an eighth earlier, at a moment at which all workers of a machine send theirs: they share
    a clock. A broker with 1,000 idle ones uses 6 % of a core if each wakes it alone, and 2 % so.
    """
    due = last + interval_s
    return due - due % (interval_s / _MOMENTS) if interval_s > 0 else due
