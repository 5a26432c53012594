"""``python -m scripts.bench.hotspots``: where the time of a job goes, by process and function.

py-spy samples the broker, a worker and the client while a workload runs. What a process used of
the CPU is shared out by the samples, so that the figures are microseconds a job. A thread that
could run but has no core counts as running: on a machine with few cores a call that wakes another
thread (``Socket.send``) looks dearer than it is, since the other one gets the core.
"""

import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from scripts.bench.crew import crew
from scripts.bench.processes import ROOT, CpuMeter, start

RATE_HZ = 400
# What to run in clients.py, with what, and by how many jobs the time is divided.
RUNS: dict[str, tuple[str, dict[str, object], int]] = {
    "single": ("single", {"jobs": 200_000}, 200_000),
    "bulk": ("bulk", {"jobs": 500_000}, 500_000),
    "run": ("latency", {"way": "run", "trips": 5_000}, 5_000),
    "async-run": ("latency", {"way": "async run", "trips": 5_000}, 5_000),
    "chain": ("chain", {"jobs": 10_000}, 10_000),
    "fan": ("fan", {"children": 50_000}, 50_000),
}


@click.command()
@click.argument("workload", type=click.Choice(list(RUNS)))
@click.option("--store", type=click.Choice(["memory", "sqlite"]), default="memory")
@click.option("--transport", type=click.Choice(["tcp", "ipc"]), default="tcp")
@click.option("--top", default=15, show_default=True, help="Functions to show of each process.")
@click.option("--lines", is_flag=True, help="Lines instead of functions.")
def main(workload: str, store: str, transport: str, top: int, lines: bool) -> None:
    """Show the functions in which each process spends its time, itself and what it calls in C."""
    function, arguments, jobs = RUNS[workload]
    with tempfile.TemporaryDirectory(prefix="pm-bench-") as place:
        folder = Path(place)
        with crew(folder, store, transport) as running, ExitStack() as stack:
            client = stack.enter_context(
                start(
                    f"scripts.bench.clients:{function}",
                    folder,
                    endpoint=running.broker.endpoint,
                    **arguments,
                )
            )
            pids = {
                "broker": running.broker.pid,
                "worker": running.workers[0].pid,
                "client": client.pid,
            }
            meter = CpuMeter(broker=pids["broker"], worker=pids["worker"])
            with _sampled(pids, folder) as samples:
                answer = client.hear()
            used = meter.us_per_job(jobs) | answer.get("cpu", {})
        for name in pids:
            total_us = sum(us for key, us in used.items() if key.startswith(f"{name} "))
            parts = ", ".join(f"{k} {us}" for k, us in used.items() if k.startswith(f"{name} "))
            click.echo(f"\n{name}: {total_us:.1f} us of CPU a job ({parts})")
            _show(samples[name], total_us, top, lines)


@contextmanager
def _sampled(pids: dict[str, int], folder: Path) -> Iterator[dict[str, Path]]:
    """Sample the processes; the files hold the stacks at the end of the ``with``."""
    spy = shutil.which("py-spy") or str(Path(sys.executable).with_name("py-spy"))
    files = {name: folder / f"{name}.stacks" for name in pids}
    options = ["--format", "raw", "--rate", str(RATE_HZ), "--nonblocking", "--duration", "600"]
    spies = [
        subprocess.Popen(
            [spy, "record", *options, "--output", str(files[name]), "--pid", str(pid)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for name, pid in pids.items()
    ]
    yield files
    for each in spies:
        each.send_signal(signal.SIGINT)
    for each in spies:
        each.wait(30)


def _show(file: Path, total_us: float, top: int, lines: bool) -> None:
    own: Counter[str] = Counter()
    for line in file.read_text(encoding="utf-8").splitlines():
        stack, _, count = line.rpartition(" ")
        own[_place(stack.split(";")[-1], lines)] += int(count)
    samples = sum(own.values())
    for place, taken in own.most_common(top):
        click.echo(f"  {taken / samples * total_us:8.2f} us  {taken / samples:5.1%}  {place}")


def _place(frame: str, lines: bool) -> str:
    function, _, place = frame.rpartition(" (")
    file, _, line = place.rstrip(")").rpartition(":")
    short = file.removeprefix(f"{ROOT}/").rpartition("site-packages/")[2]
    return f"{function}  {short}:{line}" if lines else f"{function}  {short}"


if __name__ == "__main__":
    main()
