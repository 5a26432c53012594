"""One round of crashes: a system under load, one fault after the other, and an audit at its end."""

from __future__ import annotations

import random
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.audit import Books
from tests.crash.diary import Diary, read_all
from tests.crash.processes import Broker, Process, until
from worker_sdk import Client, JobStatus

LEASE_S = 1.5
"""The heartbeat limit that the brokers here run with."""
RECOVER_S = 30.0
"""The longest that a fault may keep a new job from its result: far above what is measured."""
SETTLE_S = 60.0


@dataclass(slots=True)
class Report:
    """What a round came to."""

    faults: Counter[str] = field(default_factory=Counter)
    recoveries_s: dict[str, list[float]] = field(default_factory=dict)
    jobs: int = 0
    attempts: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Take in another round's report."""
        self.faults += other.faults
        for fault, times in other.recoveries_s.items():
            self.recoveries_s.setdefault(fault, []).extend(times)
        self.jobs += other.jobs
        self.attempts += other.attempts
        self.wrong += other.wrong

    def line(self) -> str:
        """Give all of it in one line."""
        times = "; ".join(
            f"{fault} {len(each)}x median {statistics.median(each):.2f} s, worst {max(each):.2f} s"
            for fault, each in sorted(self.recoveries_s.items())
        )
        verdict = "nothing wrong" if not self.wrong else f"{len(self.wrong)} THINGS WRONG"
        return (
            f"{self.faults.total()} cycles, {self.jobs} jobs, {self.attempts} attempts: {verdict}; "
            f"time from fault to the result of a new job: {times}"
        )


class Scenario:
    """A broker, workers and clients, and what may happen to them."""

    def __init__(self, folder: Path, seed: int, *, jobs_most: int) -> None:
        self._rng = random.Random(seed)
        self._seed = seed
        self._folder = folder
        self._jobs_most = jobs_most
        bind = f"ipc://{folder / 'b.sock'}" if seed % 2 else "tcp://127.0.0.1:*"
        self._broker = Broker(folder, bind=bind).start()
        self._started = 0
        self._workers = [self._worker(style) for style in ("push", "push", "pull")]
        self._clients = [self._client() for _ in range(2)]
        # How far the audit was ahead of each kill; and its own jobs.
        self._probe = Diary(folder / "probe.diary")
        self._probes = 0
        self.report = Report()
        self._faults: dict[str, Callable[[], None]] = {
            "broker killed": self._kill_broker,
            "worker killed": self._kill_worker,
            "client killed": self._kill_client,
            "all killed": self._kill_all,
            "worker stopped": self._stop_worker,
            "broker stopped": self._stop_broker,
            "broker killed twice": self._kill_broker_in_its_start,
        }

    # ---- who is there ----

    def _diary(self, who: str) -> str:
        self._started += 1
        return str(self._folder / f"{who}-{self._started}.diary")

    def _worker(self, style: str) -> tuple[str, Process]:
        log = (self._folder / "workers.log").open("ab")
        with log:
            return style, Process(
                *("-m", "tests.crash.worker", style, self._broker.endpoint, self._diary("worker")),
                log=log,
            )

    def _client(self) -> Process:
        seed = f"{self._seed}-{self._started}"
        with (self._folder / "clients.log").open("ab") as log:
            return Process(
                *("-m", "tests.crash.client", self._broker.endpoint, self._diary("client")),
                *(seed, str(self._jobs_most)),
                log=log,
            )

    # ---- faults ----

    def strike(self, fault: str) -> None:
        """Let a fault happen at a moment that chance chooses, and see that work goes on."""
        time.sleep(self._rng.uniform(0.02, 0.5))
        self._faults[fault]()
        struck = time.monotonic()
        self._check_acknowledged()
        self._run_probe()
        took_s = time.monotonic() - struck
        self.report.faults[fault] += 1
        self.report.recoveries_s.setdefault(fault, []).append(took_s)

    def draw(self) -> str:
        """Give a fault by chance."""
        return self._rng.choices(list(self._faults), weights=(40, 20, 10, 15, 5, 5, 5))[0]

    def _kill_broker(self) -> None:
        self._broker.kill()
        self._broker.launch()

    def _kill_broker_in_its_start(self) -> None:
        self._broker.kill()
        self._broker.launch()
        time.sleep(self._rng.uniform(0, 0.6))
        self._kill_broker()

    def _kill_worker(self) -> None:
        place = self._rng.randrange(len(self._workers))
        style, process = self._workers[place]
        process.kill()
        self._workers[place] = self._worker(style)

    def _kill_client(self) -> None:
        place = self._rng.randrange(len(self._clients))
        self._clients[place].kill()
        self._clients[place] = self._client()

    def _kill_all(self) -> None:
        everybody = [self._broker.process, *(each for _, each in self._workers), *self._clients]
        self._rng.shuffle(everybody)
        for process in everybody:
            if process.is_alive:
                process.tell(signal.SIGKILL)
        for process in everybody:
            process.kill()
        self._broker.launch()
        self._workers = [self._worker(style) for style, _ in self._workers]
        self._clients = [self._client() for _ in self._clients]

    def _stop_worker(self) -> None:
        _, process = self._rng.choice(self._workers)
        process.stop_for(1.5 * LEASE_S)

    def _stop_broker(self) -> None:
        self._broker.process.stop_for(1.5 * LEASE_S)

    # ---- what must hold at once ----

    def _revive_broker(self) -> None:
        # A start may fail if the port serves somebody's connection just then.
        if not self._broker.process.is_alive:
            self._broker.launch()

    def _check_acknowledged(self) -> None:
        """See that what was acknowledged before the fault is still there."""
        books = Books(read_all(self._folder))
        recent = sorted(books.acknowledged)[-300:]
        with Client(self._broker.endpoint, timeout=RECOVER_S) as client:
            with _every(0.3, self._revive_broker):
                for job in client.status(recent):
                    if job.is_ended:
                        self._probe.note("seen", id=str(job.id), state=job.state, result=job.result)

    def _run_probe(self) -> None:
        """Run a new job to its end."""
        self._probes += 1
        args = {"number": self._probes, "seconds": 0, "fails": "never"}
        with Client(self._broker.endpoint, timeout=RECOVER_S) as client:
            result = client.run("probe", args, priority=100, wait_timeout=RECOVER_S)
        assert result["number"] == self._probes

    # ---- the end ----

    def settle(self) -> Report:
        """Let clients stop and all jobs end, then look at everything."""
        report = self.report
        report.wrong += [
            "a worker ended by itself" for _, each in self._workers if not each.is_alive
        ]
        for process in self._clients:
            process.kill()
        with Client(self._broker.endpoint, timeout=RECOVER_S) as client:

            def all_ended() -> bool:
                counts = client.stats()["jobs"]
                return not sum(counts.values())

            until(all_ended, f"all jobs end: {client.stats()}", SETTLE_S)
            found: dict[str, JobStatus] = {
                str(job.id): job for job in client.iter_jobs(type="step", page_size=1000)
            }
        books = Books(read_all(self._folder))
        report.wrong += books.check(found)
        report.jobs = len(found) + self._probes
        report.attempts = len(books.starts)
        log = self._broker.log.read_text()
        if "fault in the broker" in log or "Traceback" in log:
            report.wrong.append(f"a fault in the broker: {log[-2000:]}")
        return report

    def close(self) -> None:
        """Leave nothing behind."""
        for process in (*(each for _, each in self._workers), *self._clients):
            process.kill()
        self._broker.kill()


class _every:  # noqa: N801  (read as a word: with _every(0.3, ...))
    """Calls something again and again in a thread of its own, inside a `with`."""

    def __init__(self, seconds: float, call: Callable[[], None]) -> None:
        self._seconds = seconds
        self._call = call
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._over.wait(self._seconds):
            self._call()

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def play(folder: Path, seed: int, cycles: int, *, jobs_most: int = 3000) -> Report:
    """Play one round of so many faults, drawn from a seed; give what came of it."""
    scenario = Scenario(folder, seed, jobs_most=jobs_most)
    try:
        for _ in range(cycles):
            scenario.strike(scenario.draw())
        return scenario.settle()
    except Exception as error:
        error.add_note(f"seed {seed}, after {scenario.report.line()}; files in {folder}")
        raise
    finally:
        scenario.close()
