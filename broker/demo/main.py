"""The demo from start to end: scan, start, enqueue, kill if asked to, wait, check, report."""

import contextlib
import os
import signal
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import click

from broker.config import ENVIRONMENT_PREFIX
from broker.demo import graph
from broker.demo.crew import Crew, CrewError
from broker.demo.handlers import FOLDER, GATE_VARIABLE, JOURNAL_VARIABLE, LEAF, worker
from broker.demo.progress import Progress
from broker.demo.tree import Tree, changed, compute, encode_path, scan
from worker_sdk import Client, JobSpec, JobStatus, PointsmanError, WaitTimeout
from worker_sdk.messages import DEFAULT_MESSAGE_LIMIT_BYTES

HOPS = 200
"""How many jobs the chain has that measures a hop."""
LARGEST_REQUEST_BYTES = 1024**3
CLIENT_TIMEOUT_S = 60.0
LOOK_S = 0.1
"""How often to look how far the jobs have come."""
STANDSTILL_S = 120.0
"""The demo gives up when no job has ended, or no worker has come, for this long."""
QUICK_LEASES = ["--grace", "2s", "--heartbeat-limit", "2s"]
"""With --kill: nobody wants to wait the default 10 s until a killed worker's jobs go out again."""


class DemoError(Exception):
    """The demo could not be run, or its outcome is not right."""


def run_demo(folder: str | None, *, kill: bool, workers: int, as_json: bool) -> dict[str, Any]:
    """Run the demo and say how it went; raises DemoError if anything is not as it must be."""
    say = _silent if as_json else click.echo
    root = folder or sysconfig.get_path("stdlib")
    try:
        tree = scan(root)
    except OSError as error:
        raise DemoError(f"folder {root}: {error.strerror or error}") from None
    say(_describe(root, tree))
    with (
        _ended_in_order(),
        _without_settings(),
        tempfile.TemporaryDirectory(prefix="pointsman-") as temporary,
    ):
        try:
            return _Demo(tree, Path(temporary), kill=kill, workers=workers, say=say).run(root)
        except (CrewError, PointsmanError) as error:
            raise DemoError(str(error)) from error


class _Demo:
    """One run: a tree, the jobs made of it, and the crew that carries them out."""

    def __init__(
        self, tree: Tree, folder: Path, *, kill: bool, workers: int, say: Callable[[str], None]
    ) -> None:
        self.tree = tree
        self.kill = kill
        self.workers = workers
        self.say = say
        self.journal = folder / "journal"
        self.gate = folder / "gate"
        self.jobs: list[JobSpec] = graph.build(
            tree, gated_leaves=_leaves_at_gate(workers) if kill else 0
        )
        self.limit_bytes = max(DEFAULT_MESSAGE_LIMIT_BYTES, 2 * graph.request_bytes(tree))
        if self.limit_bytes > LARGEST_REQUEST_BYTES:
            raise DemoError(
                f"{len(self.jobs):,} jobs do not fit into one request of at most "
                f"{LARGEST_REQUEST_BYTES:,} bytes: choose a smaller folder"
            )
        self.crew = Crew(
            folder,
            worker="broker.demo.handlers:worker",
            settings=["--max-message", str(self.limit_bytes), *(QUICK_LEASES if kill else [])],
            variables={JOURNAL_VARIABLE: str(self.journal), GATE_VARIABLE: str(self.gate)},
        )

    def run(self, root: str) -> dict[str, Any]:
        """The whole demo; what it found."""
        with self.crew:
            self.crew.start_broker()
            for number in range(1, self.workers + 1):
                self.crew.start_worker(number)
            with Client(
                self.crew.endpoint, timeout=CLIENT_TIMEOUT_S, message_limit=self.limit_bytes
            ) as client:
                return self._run(client, root)

    def _run(self, client: Client, root: str) -> dict[str, Any]:
        self._await_workers(client)
        start = time.perf_counter()
        ids = client.enqueue_many(self.jobs)
        enqueued_s = time.perf_counter() - start
        self.say(f"Enqueued {len(ids):,} jobs as one graph in {enqueued_s:.2f} s")
        with Progress(len(ids)) as progress:
            before = self._kill_halfway(client, ids, progress) if self.kill else []
            self._wait(client, ids, progress)
        run_s = time.perf_counter() - start
        rate = len(ids) / run_s
        self.say(f"Finished {len(ids):,} jobs in {run_s:.2f} s: {rate:,.0f} jobs/s")
        hop_s = self._measure_hop(client)
        self.say(
            f"A hop, from the end of a job to the end of the next in a chain: {hop_s * 1e3:.2f} ms"
        )
        crossing = self._check(client, ids, before)
        digest = client.status(ids[-1]).result["digest"]
        self.say(f"Root digest: {digest}")
        self.say("Checked: every digest is that of a computation without the queue")
        if self.kill:
            self.say(
                f"Checked: each job finished exactly once; the worker that lived went on with "
                f"{crossing.kept:,} attempts, {crossing.repeated:,} were repeated"
            )
        return {
            "folder": root,
            "digest": digest,
            "jobs": len(ids),
            "files": self.tree.count("file", "link"),
            "folders": self.tree.count("folder"),
            "skipped": len(self.tree.skipped),
            "size_bytes": self.tree.size_bytes,
            "enqueue_s": enqueued_s,
            "run_s": run_s,
            "jobs_per_s": rate,
            "hop_s": hop_s,
            "workers": self.workers,
            "killed": self.kill,
            "kept_attempts": crossing.kept,
            "repeated_attempts": crossing.repeated,
            "equal": True,
        }

    def _await_workers(self, client: Client) -> None:
        """Wait until all workers have reported for work, so that their start counts for nothing."""
        quiet = _Standstill()
        while (connected := client.stats()["workers"]) < self.workers:
            self.crew.check()
            quiet.check(connected)
            time.sleep(LOOK_S / 10)

    def _kill_halfway(
        self, client: Client, ids: Sequence[UUID], progress: Progress
    ) -> list[JobStatus]:
        """Kill the broker and a worker in full flow; what the kill must not have changed.

        That is the outcomes recorded before, and the attempts that were held up at the gate.
        """
        at_gate = {job.id for job in self.jobs if job.args.get("wait")}
        quiet = _Standstill()
        while True:
            self.crew.check()
            live = _live(client)
            ended = len(ids) - sum(live.values())
            progress.show(ended)
            if ended * 2 >= len(ids) - len(at_gate) and live["running"]:
                break
            quiet.check(ended)
            time.sleep(LOOK_S / 10)
        jobs = client.status(ids)
        finished = [job for job in jobs if job.state == "finished"]
        progress.say(
            f"Killing the broker and worker 1 with {len(finished):,} jobs finished", self.say
        )
        self.crew.kill("broker", "worker-1")
        self.crew.start_broker()
        self.crew.start_worker(1)
        self.gate.touch()
        return finished + [job for job in jobs if job.state == "running" and job.id in at_gate]

    def _wait(self, client: Client, ids: Sequence[UUID], progress: Progress) -> None:
        """Wait until the root's job, the last, has ended, whichever way."""
        quiet = _Standstill()
        while True:
            try:
                client.wait(ids[-1], timeout=LOOK_S)
                return
            except WaitTimeout:
                ended = len(ids) - sum(_live(client).values())
            progress.show(ended)
            self.crew.check()
            quiet.check(ended)

    def _measure_hop(self, client: Client) -> float:
        ids = client.enqueue_many(graph.chain(HOPS))
        return graph.hop_s(client.wait(ids, timeout=STANDSTILL_S))

    def _check(
        self, client: Client, ids: Sequence[UUID], before: Sequence[JobStatus]
    ) -> graph.Crossing:
        """Check every outcome; what became of the jobs that the kill met."""
        try:
            expected = compute(self.tree)
        except OSError as error:
            raise DemoError(f"the folder changed while the demo ran: {error}") from None
        jobs = client.status(ids)
        attempts = graph.read_journal(self.journal.read_text(encoding="utf-8"))
        listed = [
            job.id
            for type in (LEAF, FOLDER)
            for job in client.iter_jobs(state="finished", type=type, page_size=10_000)
        ]
        differences = graph.differences(self.tree, jobs, expected)
        if differences and (paths := changed(self.tree)):
            where = graph.summary([encode_path(path) for path in paths])
            raise DemoError(f"the folder changed while the demo ran, at {where}: run it again")
        crossing = graph.crossing(before, jobs)
        faults = [
            *differences,
            *graph.repetitions(jobs, listed, attempts),
            *crossing.faults,
        ]
        if faults:
            raise DemoError(
                f"{len(faults)} things are not as they must be: {graph.summary(faults)}"
            )
        return crossing


class _Standstill:
    """Notices when nothing has moved for too long."""

    def __init__(self) -> None:
        self._seen = -1
        self._since = time.monotonic()

    def check(self, count: int) -> None:
        """Raise DemoError if ``count`` has been the same for STANDSTILL_S."""
        now = time.monotonic()
        if count != self._seen:
            self._seen, self._since = count, now
        elif now - self._since > STANDSTILL_S:
            raise DemoError(f"nothing has moved for {STANDSTILL_S:.0f} s")


def _leaves_at_gate(workers: int) -> int:
    """So many that each worker holds some at the gate and all together have room for others."""
    return worker.concurrency * workers - worker.concurrency // 2


def _live(client: Client) -> dict[str, int]:
    """How many jobs there are in each state that is not an end."""
    live: dict[str, int] = client.stats()["jobs"]
    return live


def _describe(root: str, tree: Tree) -> str:
    text = (
        f"Merkle tree of {root}: {tree.count('file', 'link'):,} files, "
        f"{tree.count('folder'):,} folders, {tree.size_bytes / 1e6:,.1f} MB"
    )
    if not tree.skipped:
        return text
    return f"{text} ({len(tree.skipped):,} left out: special, unreadable or __pycache__)"


def _silent(_: str) -> None:
    pass


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Take SIGTERM and SIGHUP for Ctrl-C, so that processes and files are cleared away first."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _without_settings() -> Iterator[None]:
    """Leave the caller's settings out: what keys and brokers they name is for other clients."""
    settings = [name for name in os.environ if name.startswith(ENVIRONMENT_PREFIX)]
    before = {name: os.environ.pop(name) for name in settings}
    try:
        yield
    finally:
        os.environ.update(before)
