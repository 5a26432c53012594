"""Other job queues, measured on the same workloads as far as they have a meaning for them.

Each module here measures one peer in its own best configuration, and leaves out what the peer
has not: none of them is asked for what it was not made for.
"""

import importlib
from collections.abc import Iterator, Sequence
from typing import Protocol, cast

import click

from scripts.bench.figures import Figure
from scripts.bench.setting import Setting

MODULES = (
    "beanstalkd",
    "gearmand",
    "celery_redis",
    "rq_redis",
    "dramatiq_redis",
    "dask_scheduler",
    "ipyparallel_cluster",
)


class Peer(Protocol):
    """What each module here offers."""

    NAME: str
    DIFFERS: str
    """How it differs in meaning: above all, what is on disk when something is acknowledged."""

    def version(self) -> str | None:
        """The installed version, None if it is not installed."""

    def measure(self, setting: Setting) -> Iterator[Figure]:
        """Run it once."""


def installed(names: Sequence[str] | None = None) -> list[Peer]:
    """Those that are there; of `names` (of modules), if given."""
    found = []
    for name in names or MODULES:
        peer = cast(Peer, importlib.import_module(f"scripts.bench.peers.{name}"))
        version = peer.version()
        if version is None:
            click.echo(f"{peer.NAME} is not installed", err=True)
        else:
            click.echo(f"{peer.NAME} {version}", err=True)
            found.append(peer)
    return found
