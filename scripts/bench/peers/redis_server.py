"""A Redis server for the peers that stand on one: in memory, as fast as it gets."""

import importlib.metadata
import shutil
from pathlib import Path

DURABILITY = (
    "Redis is run without persistence, its fastest form: what is acknowledged is in memory only"
)


def command(port: int, folder: Path) -> list[str]:
    """How to start it."""
    listen = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)]
    return ["redis-server", *listen, "--save", "", "--appendonly", "no"]


def url(port: int) -> str:
    """Where it is."""
    return f"redis://127.0.0.1:{port}/0"


def version_of(package: str) -> str | None:
    """The version of a Python package that needs Redis; None if either is not there."""
    if shutil.which("redis-server") is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
