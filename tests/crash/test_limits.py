"""The broker runs out of something: disk, descriptors, the right to its own file."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import pytest

from tests.crash.processes import Broker, until
from worker_sdk import BrokerBusy, BrokerUnreachable, Client, WorkerSession

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@contextlib.contextmanager
def running(broker: Broker) -> Iterator[Broker]:
    try:
        yield broker.start()
    finally:
        broker.kill()


def fill(broker: Broker, *, size_bytes: int, most: int) -> list[UUID]:
    """Enqueue until the broker takes no more; give what was acknowledged."""
    acknowledged = []
    with Client(broker.endpoint, timeout=1) as client:
        with contextlib.suppress(BrokerBusy, BrokerUnreachable):
            for number in range(most):
                acknowledged.append(client.enqueue("add", [number, "x" * size_bytes]))
    return acknowledged


def run_all(broker: Broker, ids: list[UUID]) -> None:
    """Run so many jobs, and see that each is known and finishes."""
    with (
        Client(broker.endpoint, timeout=10) as client,
        WorkerSession(["add"], broker.endpoint) as session,
    ):
        assert {job.state for job in client.status(ids)} <= {"ready", "running"}
        for _ in ids:
            job = session.dequeue(timeout=10)
            assert job is not None
            job.finish(job.args[0])
        assert [job.result for job in client.wait(ids, timeout=10)] == list(range(len(ids)))


# ---- the disk is full ----------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk_loses_nothing_acknowledged_and_work_goes_on_with_more_room(
    folder: Path, small_disk: Path
) -> None:
    broker = Broker(folder)
    broker.store = f"sqlite:{small_disk / 'jobs.db'}"
    with running(broker):
        acknowledged = fill(broker, size_bytes=50_000, most=200)
        assert 0 < len(acknowledged) < 200
        if not broker.process.is_alive:
            assert broker.process.exit_code() == 1
            assert "the store failed" in broker.log.read_text()
        broker.kill()
        subprocess.run(["mount", "-o", "remount,size=30m", str(small_disk)], check=True)

        run_all(broker.start(), acknowledged)


def test_file_that_may_not_grow_loses_nothing_acknowledged(folder: Path) -> None:
    limited = Broker(folder, shell_limit="ulimit -f 2048")
    with running(limited):
        acknowledged = fill(limited, size_bytes=50_000, most=1000)
    assert 0 < len(acknowledged) < 1000

    with running(Broker(folder)) as broker:
        run_all(broker, acknowledged)


# ---- no descriptors left -------------------------------------------------------------------------


def test_broker_without_descriptors_serves_whom_it_has_and_recovers(folder: Path) -> None:
    broker = Broker(folder, shell_limit="ulimit -n 64")
    with running(broker), contextlib.ExitStack() as crowd:
        place = urlsplit(broker.endpoint)
        assert place.port is not None
        with Client(broker.endpoint, timeout=10) as client:
            before = client.enqueue("add", [0])
            for _ in range(200):
                crowd.enter_context(socket.create_connection((place.hostname, place.port)))
            descriptors = Path(f"/proc/{broker.process.pid}/fd")
            if descriptors.exists():
                until(lambda: len(list(descriptors.iterdir())) >= 64, "it runs out of descriptors")

            during = client.enqueue("add", [1])
            crowd.close()

            assert {job.state for job in client.status([before, during])} == {"ready"}
        run_all(broker, [before, during])


# ---- two brokers on one file ---------------------------------------------------------------------


def test_second_broker_on_a_file_is_refused_until_the_first_has_gone(folder: Path) -> None:
    with running(Broker(folder)) as first:
        acknowledged = fill(first, size_bytes=10, most=50)
        (folder / "second").mkdir()
        second = Broker(folder / "second")
        second.store = first.store
        second.launch()
        assert second.process.exit_code() == 1
        assert first.store in second.log.read_text()
        acknowledged += fill_more(first, 50, 50)

        first.kill()
        with running(second):
            run_all(second, acknowledged)


def test_of_many_brokers_that_start_on_one_file_exactly_one_serves(folder: Path) -> None:
    brokers = []
    for number in range(3):
        (folder / str(number)).mkdir()
        broker = Broker(folder / str(number))
        broker.store = f"sqlite:{folder / 'jobs.db'}"
        broker.launch()
        brokers.append(broker)
    try:
        until(lambda: sum(each.process.is_alive for each in brokers) <= 1, "all but one leave")
        time.sleep(0.2)

        assert sum(each.process.is_alive for each in brokers) == 1
    finally:
        for broker in brokers:
            broker.kill()


def fill_more(broker: Broker, start: int, count: int) -> list[UUID]:
    with Client(broker.endpoint) as client:
        return [client.enqueue("add", [start + number]) for number in range(count)]
