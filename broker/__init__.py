"""Pointsman's broker: a job queue over ZeroMQ in which jobs can wait for other jobs."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["LocalBroker", "__version__"]

if TYPE_CHECKING:
    from broker.local import LocalBroker


def __getattr__(name: str) -> Any:
    # Later, so that whoever needs the version alone does not load all of the broker.
    if name == "LocalBroker":
        from broker.local import LocalBroker

        return LocalBroker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
