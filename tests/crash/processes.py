"""The processes of a crash test: brokers, workers and clients that can be killed and stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
START_S = 30.0


def until(condition: Callable[[], object], what: str, patience_s: float = START_S) -> None:
    """Return as soon as the condition holds; AssertionError after so long."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience_s:g} s in vain: {what}"
        time.sleep(0.005)


class Process:
    """A program of this checkout."""

    def __init__(
        self, *arguments: str, log: IO[bytes] | int = subprocess.DEVNULL, shell_limit: str = ""
    ) -> None:
        command = [sys.executable, *arguments]
        if shell_limit:
            command = ["sh", "-c", f'{shell_limit} && exec "$@"', "sh", *command]
        self._popen = subprocess.Popen(command, cwd=ROOT, stderr=log, stdout=log)
        self.pid = self._popen.pid

    @property
    def is_alive(self) -> bool:
        return self._popen.poll() is None

    def tell(self, number: int) -> None:
        self._popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for the end; without effect on one that has ended."""
        if self.is_alive:
            self._popen.kill()
        self._popen.wait(START_S)

    def exit_code(self, patience_s: float = START_S) -> int:
        return self._popen.wait(patience_s)

    def stop_for(self, seconds: float) -> None:
        """SIGSTOP for a while."""
        self.tell(signal.SIGSTOP)
        time.sleep(seconds)
        self.tell(signal.SIGCONT)


class Broker:
    """A daemon on one file and one endpoint, over any number of its lives."""

    FLAGS = ("--heartbeat-limit", "1.5s", "--grace", "2s", "--log-level", "warning")

    def __init__(
        self, folder: Path, *flags: str, bind: str = "tcp://127.0.0.1:*", shell_limit: str = ""
    ) -> None:
        self._folder = folder
        self._flags = (*self.FLAGS, *flags)
        self._ready = folder / "ready"
        self._shell_limit = shell_limit
        # Where it is: the first life chooses the port, and the others take the same.
        self.endpoint = bind
        self.store = f"sqlite:{folder / 'jobs.db'}"
        self.log = folder / "broker.log"
        self.process: Process

    def start(self, *, patience_s: float = START_S) -> Broker:
        """Start a life; returns when it takes messages."""
        for _ in range(10):
            self.launch()
            until(
                lambda: self._ready.exists() or not self.process.is_alive,
                f"a broker: {self.log.read_text()}",
                patience_s,
            )
            if self.process.is_alive:
                self.endpoint = self._ready.read_text().split()[0]
                return self
            # Its port may just serve somebody's connection.
            time.sleep(0.2)
        raise AssertionError(f"no broker: {self.log.read_text()}")

    def launch(self) -> None:
        """Start a life without waiting for it."""
        self._ready.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = Process(
                *("-m", "broker", "serve", "--bind", self.endpoint, "--store", self.store),
                *("--ready-file", str(self._ready), "--log-format", "human", *self._flags),
                log=log,
                shell_limit=self._shell_limit,
            )

    def kill(self) -> None:
        self.process.kill()
