"""Pointsman's processes in the benchmark: a broker, workers, and what the clients do."""

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scripts.bench import raw
from scripts.bench.processes import Child, ChildFailed, CpuMeter, run, start
from worker_sdk import Client

START_S = 120.0
POLL_S = 0.005


class BrokerProcess:
    """``python -m broker serve`` on a store in a folder of its own, from `start` to `stop`."""

    def __init__(self, folder: Path, store: str, transport: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"{store}-", dir=folder))
        self._store = "memory" if store == "memory" else f"sqlite:{self.folder / 'jobs.db'}"
        self._bind = raw.bind_to(transport, self.folder, "broker")
        self.endpoint = ""
        # While it runs.
        self._process: Child | None = None

    def start(self) -> float:
        """Start it; how many seconds later it takes messages."""
        began = time.monotonic()
        ready = self.folder / "ready"
        ready.unlink(missing_ok=True)
        serve = ["serve", "--bind", self._bind, "--store", self._store, "--ready-file", str(ready)]
        command = [sys.executable, "-P", "-m", "broker", *serve, "--log-level", "warning"]
        self._process = Child(command, self.folder)
        while not ready.exists():
            self._process.check()
            if time.monotonic() - began > START_S:
                raise ChildFailed(f"the broker does not start: {self._process.last_words()}")
            time.sleep(POLL_S)
        self.endpoint = ready.read_text(encoding="utf-8").split()[0]
        with Client(self.endpoint) as client:
            client.ping()
        return time.monotonic() - began

    @property
    def pid(self) -> int:
        """The process's id, while it runs."""
        if self._process is None:
            raise RuntimeError("the broker does not run")
        return self._process.pid

    def kill(self) -> None:
        """End it as a power failure would."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def stop(self) -> None:
        """End it, and remove its store."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


class Crew:
    """A running broker with its workers."""

    def __init__(self, broker: BrokerProcess, workers: list[Child]) -> None:
        self.broker = broker
        self.workers = workers

    def client(self, function: str, shared_by: int, /, **arguments: object) -> dict[str, Any]:
        """Run a function of clients.py in a process of its own; what it says.

        To the answer's ``cpu`` is added what broker and workers used for each of `shared_by` jobs.
        """
        pids = {f"worker{number or ''}": each.pid for number, each in enumerate(self.workers)}
        meter = CpuMeter(broker=self.broker.pid, **pids)
        answer: dict[str, Any] = run(
            f"scripts.bench.clients:{function}",
            self.broker.folder,
            endpoint=self.broker.endpoint,
            **arguments,
        )
        answer["cpu"] = meter.us_per_job(shared_by) | answer.get("cpu", {})
        return answer


@contextmanager
def crew(folder: Path, store: str, transport: str, *, workers: int = 1) -> Iterator[Crew]:
    """A broker on a new store, and workers with a handler that does nothing."""
    with ExitStack() as stack:
        broker = stack.enter_context(BrokerProcess(folder, store, transport))
        noop = "scripts.bench.workers:noop"
        started = [
            stack.enter_context(start(noop, broker.folder, endpoint=broker.endpoint))
            for _ in range(workers)
        ]
        for each in started:
            each.hear()
        yield Crew(broker, started)
