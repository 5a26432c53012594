"""Where committed state lives: one contract, several stores."""

from broker.store.base import Store, StoreError
from broker.store.memory import MemoryStore
from broker.store.sqlite import SqliteStore

__all__ = ["Store", "StoreError", "open_store"]


def open_store(url: str) -> Store:
    """Open the store that `url` names: "memory" or "sqlite:PATH".

    Raises StoreError if it cannot be opened.
    """
    if url == "memory":
        return MemoryStore()
    scheme, colon, path = url.partition(":")
    if scheme == "sqlite" and colon and path:
        # A habit from database URLs; taken as a path it would mean something else.
        if path.startswith("//"):
            raise StoreError(
                f"store {url!r}: write sqlite:PATH with a plain path, "
                f"such as sqlite:{'/' + path.lstrip('/')}"
            )
        return SqliteStore(path)
    raise StoreError(f"store {url!r} is none that there is: write memory or sqlite:PATH")
