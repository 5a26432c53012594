"""A broker inside another process: for tests, and for applications that want no daemon."""

from __future__ import annotations

import contextlib
import threading
from types import TracebackType
from typing import Any, Self

from broker.config import Config
from broker.server import Server
from broker.store import open_store


class LocalBroker:
    """A broker in a thread of this process, from `start` (or `with`) to `stop`.

    ::

        with LocalBroker() as broker, Client(broker.endpoint) as client:
            client.enqueue("fetch", {"url": "…"})

    `store` is ``memory`` or ``sqlite:PATH``; `settings` are those of the daemon, by name. Without
    `bind` it listens on the loopback interface, on a port that the system chooses. At its start it
    seeds C's `rand` for the whole process, and for an ipc endpoint changes the umask for a moment.
    Raises what starting a broker raises: ConfigError, StoreError, zmq.ZMQError.
    """

    def __init__(
        self,
        store: str = "memory",
        *,
        bind: str | tuple[str, ...] = "tcp://127.0.0.1:*",
        **settings: Any,
    ) -> None:
        endpoints = (bind,) if isinstance(bind, str) else tuple(bind)
        self._config = Config(store=store, bind=endpoints, **settings)
        # While it runs.
        self._server: Server | None = None
        self._thread: threading.Thread | None = None
        # What ended its thread before its time, told by `stop`.
        self._fault: BaseException | None = None
        self.endpoints: list[str] = []

    @property
    def endpoint(self) -> str:
        """Where clients and workers find it: the first of its endpoints."""
        if not self.endpoints:
            raise RuntimeError("this LocalBroker is not running: start it, or use it in `with`")
        return self.endpoints[0]

    def start(self) -> Self:
        """Start it; once this returns, it takes messages."""
        if self._server is not None:
            raise RuntimeError("this LocalBroker runs already")
        store = open_store(self._config.store)
        with contextlib.ExitStack() as undo:
            undo.callback(store.close)
            self._server = Server(self._config, store)
            undo.pop_all()
        self.endpoints = self._server.endpoints
        self._thread = threading.Thread(
            target=self._run, args=(self._server, store.close), name="pointsman-broker", daemon=True
        )
        self._thread.start()
        return self

    def stop(self, *, drain: bool = False) -> None:
        """Stop it: at once, or after running jobs had their time. Raises what it failed with."""
        server, thread = self._server, self._thread
        if server is None or thread is None:
            return
        server.drain()
        if not drain:
            server.drain()
        thread.join()
        self._server = self._thread = None
        self.endpoints = []
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault

    def _run(self, server: Server, close: Any) -> None:
        try:
            server.run()
        except BaseException as fault:  # noqa: BLE001 - handed to the thread that calls stop
            self._fault = fault
        finally:
            close()

    def __repr__(self) -> str:
        return f"<LocalBroker at {', '.join(self.endpoints) or 'no endpoint: it is not running'}>"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
