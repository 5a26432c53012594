"""Processes that the benchmark runs and looks at: each a function in a Python of its own.

A child is started with the name of a function and its arguments; it tells its parent things by
calling `say`, one line of JSON on its standard output each, which the parent takes by `hear`.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parent.parent.parent
STOP_S = 10.0
ANSWER_S = 600.0

Say = Callable[[object], None]


class ChildFailed(Exception):
    """A process of the benchmark ended, or said nothing in time."""


class Child:
    """A running process, ended at the end of its ``with``."""

    def __init__(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._log = folder / f"{Path(command[0]).name}-{time.monotonic_ns()}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                list(command),
                cwd=folder,
                env=_environment() | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        self._output = self._process.stdout
        self._heard = b""
        self.pid = self._process.pid

    def hear(self, timeout_s: float = ANSWER_S) -> Any:
        """The next thing that the child says."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._heard:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([self._output], [], [], left_s)[0]:
                raise ChildFailed(f"nothing heard for {timeout_s:g} s: {self.last_words()}")
            text = self._output.read(65536)
            if not text:
                raise ChildFailed(f"it left with {self._process.wait()}: {self.last_words()}")
            self._heard += text
        line, _, self._heard = self._heard.partition(b"\n")
        return json.loads(line)

    def check(self) -> None:
        """Raise ChildFailed if it has ended."""
        if self._process.poll() is not None:
            raise ChildFailed(f"it left with {self._process.returncode}: {self.last_words()}")

    def last_words(self) -> str:
        """The end of what it wrote to its standard error."""
        text = self._log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-20:]) or "it wrote nothing"

    def kill(self) -> None:
        """End it and all that it started, at once."""
        _signal_all(self._process, signal.SIGKILL)
        self._process.wait()
        self._output.close()

    def ask_to_leave(self) -> None:
        """Send it SIGTERM."""
        self._process.terminate()

    def stop(self) -> None:
        """Ask it to leave; kill it if it does not."""
        if self._process.poll() is None:
            self.ask_to_leave()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_S)
        self.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def start(function: str, folder: Path, **arguments: object) -> Child:
    """Run ``MODULE:FUNCTION`` of this package (called with `say` and the arguments) in a child."""
    command = [sys.executable, "-P", "-m", "scripts.bench.processes", function]
    return Child([*command, json.dumps(arguments)], folder)


def run(function: str, folder: Path, **arguments: object) -> Any:
    """What the one thing is that such a child says."""
    with start(function, folder, **arguments) as child:
        return child.hear()


def _environment() -> dict[str, str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("POINTSMAN_")}
    environment["PYTHONPATH"] = str(ROOT)
    return environment


def _signal_all(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


# ---- what a process uses ---------------------------------------------------------------------

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> dict[str, float]:
    """The CPU time so far, in seconds, of a process's ``main`` thread and of all ``other``."""
    used = {"main": 0.0, "other": 0.0}
    for task in Path(f"/proc/{pid}/task").iterdir():
        # Behind the name in brackets, the 12th and 13th fields are user and system time.
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        seconds = (int(fields[11]) + int(fields[12])) / _TICKS
        used["main" if int(task.name) == pid else "other"] += seconds
    return used


def memory_bytes(pid: int) -> int:
    """The memory of a process that is not shared with files: what it allocated and touched."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/{pid}/status has no RssAnon")


class CpuMeter:
    """Measures what some processes use from its making to `us_per_job`."""

    def __init__(self, **pids: int) -> None:
        self._pids = pids
        self._before = {name: cpu_s(pid) for name, pid in pids.items()}

    def us_per_job(self, jobs: int) -> dict[str, float]:
        """Microseconds of CPU a job, of each process's main thread and of its others."""
        used = {}
        for name, pid in self._pids.items():
            for part, seconds in cpu_s(pid).items():
                spent_s = seconds - self._before[name][part]
                used[f"{name} {part} us"] = round(spent_s / jobs * 1e6, 2)
        return used


def _main() -> None:
    """The child's side."""
    target, arguments = sys.argv[1:]
    module, _, name = target.partition(":")

    def say(value: object) -> None:
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()

    getattr(importlib.import_module(module), name)(say, **json.loads(arguments))


if __name__ == "__main__":
    _main()
