"""What is measured: figures, each with the raw limit beside it and the bar that it should reach."""

from msgspec import Struct


class Bar(Struct, frozen=True):
    """What a figure should reach. `allowed` is in the figure's own unit, from the same minute."""

    text: str
    """As a person reads it: ``>= 1.0 x raw``."""
    allowed: float
    at_least: bool

    def share(self, used: float) -> float:
        """How much of what is asked for was reached by a figure that is `used` times what is
        allowed; 1 and more: all of it.
        """
        if self.at_least:
            return used
        return 1 / used if used else float("inf")


class Figure(Struct, frozen=True, kw_only=True):
    """One quantity of one run. The figures of all repetitions with one `key` make up one row."""

    workload: str
    case: str
    """What distinguishes it from others of its workload: store, transport, how it was asked."""
    unit: str
    value: float
    raw: float | None = None
    """What the raw relay came to just before, in the same unit."""
    framewise: float | None = None
    """The same of the relay that goes frame by frame."""
    bar: Bar | None = None
    details: dict[str, float] = {}
    """What explains the figure: CPU time a job of each process, by name with its unit."""

    @property
    def key(self) -> tuple[str, str, str]:
        """What its repetitions have in common."""
        return self.workload, self.case, self.unit


def at_least(factor: float, raw: float, *, of: str = "raw") -> Bar:
    """A bar for rates: so many times the raw limit."""
    return Bar(f">= {factor:g} x {of}", factor * raw, at_least=True)


def at_most(
    factor: float, raw: float, *, of: str = "raw", plus: float = 0.0, text: str = ""
) -> Bar:
    """A bar for times: so many times the raw limit, plus something named by `text`."""
    return Bar(f"<= {factor:g} x {of}{text}", factor * raw + plus, at_least=False)


def no_more_than(limit: float, text: str) -> Bar:
    """A bar that no raw limit stands behind."""
    return Bar(text, limit, at_least=False)
