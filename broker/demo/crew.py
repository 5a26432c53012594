"""A broker and its workers as real processes, in a folder of their own, gone at the end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import broker
from broker.kinds import LONGEST_IPC_PATH_BYTES

START_S = 60.0
"""How long the broker may take to start; it loads what the store holds first."""
STOP_S = 15.0
"""How long a process that was told to leave may take before it is killed."""
POLL_S = 0.01
LOG_LINES = 5


class CrewError(Exception):
    """A process of the crew did not start, or left unasked."""


class Crew:
    """Starts, kills and ends a broker on a SQLite file in ``folder``, and workers for it."""

    def __init__(
        self, folder: Path, *, worker: str, settings: Sequence[str], variables: Mapping[str, str]
    ) -> None:
        self.folder = folder
        self._worker = worker
        self._settings = list(settings)
        self._environment = _environment(variables)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        """The processes that should be running, by name."""
        socket = folder / "broker.sock"
        # A path too long for a socket (a deep TMPDIR): then a port of the system's choice.
        fits = len(os.fsencode(socket)) <= LONGEST_IPC_PATH_BYTES and "," not in str(socket)
        self.endpoint = f"ipc://{socket}" if fits else "tcp://127.0.0.1:*"

    def __enter__(self) -> "Crew":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start_broker(self) -> None:
        """Start the broker and wait until it takes messages."""
        ready = self.folder / "ready"
        ready.unlink(missing_ok=True)
        store = f"sqlite:{self.folder / 'pointsman.db'}"
        self._start(
            "broker",
            [
                "serve",
                "--bind",
                self.endpoint,
                "--store",
                store,
                "--ready-file",
                str(ready),
                *self._settings,
            ],
        )
        deadline = time.monotonic() + START_S
        while not ready.exists():
            self.check()
            if time.monotonic() > deadline:
                raise CrewError(f"the broker does not start: {self._last_words('broker')}")
            time.sleep(POLL_S)
        (self.endpoint,) = ready.read_text(encoding="utf-8").split()

    def start_worker(self, number: int) -> None:
        """Start worker ``number``; it finds the broker by itself."""
        self._start(f"worker-{number}", ["worker", self._worker, "--broker", self.endpoint])

    def kill(self, *names: str) -> None:
        """Kill processes with SIGKILL, all at the same moment."""
        victims = [self._processes.pop(name) for name in names]
        for victim in victims:
            victim.kill()
        for victim in victims:
            victim.wait()

    def check(self) -> None:
        """Raise CrewError if a process has left that should be running."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise CrewError(
                    f"the {name} left with exit code {process.returncode}: {self._last_words(name)}"
                )

    def close(self) -> None:
        """End all processes: workers first, so that they hand back what they hold."""
        workers = [process for name, process in self._processes.items() if name != "broker"]
        brokers = [process for name, process in self._processes.items() if name == "broker"]
        try:
            _end(workers)
            _end(brokers)
        finally:
            for process in self._processes.values():
                if process.poll() is None:
                    process.kill()
                    process.wait()
            self._processes.clear()

    def _start(self, name: str, arguments: Sequence[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                # -P: a file of the working directory must not pose as a module of Python.
                [sys.executable, "-P", "-m", "broker", *arguments],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C on the terminal is for the demo alone, which then ends them in order.
                start_new_session=True,
            )

    def _last_words(self, name: str) -> str:
        text = (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        return " | ".join(text.splitlines()[-LOG_LINES:]) or "it said nothing"


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, and in it this very package."""
    environment = dict(os.environ)
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # the tree may be the very code that runs here
    root = Path(broker.__file__).parent.parent
    if root.name not in ("site-packages", "dist-packages"):
        paths = [str(root), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return environment | dict(variables)
