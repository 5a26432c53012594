"""The broker as a process: start, signals, end, and what it says when it cannot."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from worker_sdk import BrokerBusy, BrokerUnreachable, Client, JobNotExist, WorkerSession

PATIENCE_S = 30.0
LOOPBACK = "tcp://127.0.0.1:*"


def until(condition: Callable[[], Any]) -> Any:
    """What ``condition`` gives as soon as that is true of anything."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
    return found


class Daemon:
    """A broker in a process of its own."""

    def __init__(self, folder: Path, *flags: str, file_limit_blocks: int | None = None) -> None:
        self.ready = folder / "ready"
        self.log = folder / f"log-{time.monotonic_ns()}"
        command = [sys.executable, "-m", "broker", "serve", "--log-format", "json"]
        command += ["--ready-file", str(self.ready), *flags]
        if not any(flag.startswith("--bind") for flag in flags):
            command += ["--bind", LOOPBACK]

        if file_limit_blocks is not None:
            limit = f'ulimit -f {file_limit_blocks} && exec "$@"'
            command = ["sh", "-c", limit, "sh", *command]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stderr=log)

    def __enter__(self) -> "Daemon":
        until(lambda: self.ready.exists() or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    @property
    def endpoint(self) -> str:
        return self.ready.read_text().split()[0]

    def events(self, event: str) -> list[dict[str, Any]]:
        """The log's lines of one event."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if line["event"] == event]

    def tell(self, number: int) -> None:
        self.process.send_signal(number)

    def exit_code(self) -> int:
        return self.process.wait(PATIENCE_S)

    def has_left(self) -> bool:
        return self.process.poll() is not None


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'jobs.db'}"


def refusal(*flags: str, code: int) -> str:
    """The one line with which a broker leaves that cannot start."""
    done = subprocess.run(
        [sys.executable, "-m", "broker", "serve", *flags],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


# ---- start -----------------------------------------------------------------------------------


def test_ready_file_holds_the_real_endpoints_while_the_broker_serves(tmp_path: Path) -> None:
    ipc = f"ipc://{tmp_path / 'b.sock'}"
    with Daemon(tmp_path, "--store", "memory", "--bind", LOOPBACK, "--bind", ipc) as daemon:
        endpoints = daemon.ready.read_text().split()
        for endpoint in endpoints:
            with Client(endpoint) as client:
                client.ping()
        daemon.tell(signal.SIGTERM)
        code = daemon.exit_code()

    assert code == 0
    assert endpoints[1] == ipc
    assert not endpoints[0].endswith((":*", ":0"))
    assert daemon.events("listening")[0]["endpoints"] == endpoints
    assert not daemon.ready.exists()


def test_endpoint_in_use_is_refused_in_one_line(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--store", "memory") as daemon:
        line = refusal("--store", "memory", "--bind", daemon.endpoint, code=1)

        assert daemon.endpoint in line
        assert "in use" in line


def test_second_broker_on_the_same_file_is_refused_in_one_line(tmp_path: Path, store: str) -> None:
    with Daemon(tmp_path, "--store", store) as daemon:
        line = refusal("--store", store, "--bind", LOOPBACK, code=1)

        assert store in line
        with Client(daemon.endpoint) as client:
            client.ping()


def test_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "letter.txt"
    file.write_text("Dear Sir or Madam,\n" * 100)

    line = refusal("--store", f"sqlite:{file}", "--bind", LOOPBACK, code=1)

    assert str(file) in line
    assert file.read_text().startswith("Dear")


def test_store_in_a_folder_that_does_not_exist_is_refused_in_one_line(tmp_path: Path) -> None:
    store = f"sqlite:{tmp_path / 'nowhere' / 'jobs.db'}"

    assert "nowhere" in refusal("--store", store, "--bind", LOOPBACK, code=1)


@pytest.mark.parametrize("ready", ["nowhere/ready", "", "/"])
def test_ready_file_that_cannot_be_written_is_refused_in_one_line(ready: str) -> None:
    line = refusal("--store", "memory", "--bind", LOOPBACK, "--ready-file", ready, code=1)

    assert line.startswith(f"pointsman: error: ready file {Path(ready)}: ")


def test_wrong_setting_is_exit_code_2() -> None:
    assert "grace" in refusal("--grace", "soon", code=2)


def test_key_file_that_is_missing_is_refused_before_the_store_is_made(tmp_path: Path) -> None:
    key, policy, store = tmp_path / "b.key", tmp_path / "policy.toml", tmp_path / "jobs.db"
    policy.touch()
    flags = ["--key", str(key), "--policy", str(policy), "--store", f"sqlite:{store}"]

    assert str(key) in refusal(*flags, "--bind", LOOPBACK, code=2)
    assert not store.exists()


# ---- end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_an_idle_broker_with_exit_code_0(tmp_path: Path, number: int) -> None:
    with Daemon(tmp_path, "--store", "memory", "--drain", "1h") as daemon:
        daemon.tell(number)

        assert daemon.exit_code() == 0


@contextlib.contextmanager
def running_job(daemon: Daemon) -> Iterator[Any]:
    """A job that a worker holds."""
    with (
        Client(daemon.endpoint) as client,
        WorkerSession(types=["add"], endpoint=daemon.endpoint) as session,
    ):
        client.enqueue("add", 1)
        job = session.dequeue(timeout=PATIENCE_S)
        assert job is not None
        yield job


def test_sigterm_lets_running_jobs_end_and_keeps_what_they_gave(tmp_path: Path, store: str) -> None:
    with Daemon(tmp_path, "--store", store, "--drain", "1h") as daemon:
        with running_job(daemon) as job:
            daemon.tell(signal.SIGTERM)
            until(lambda: daemon.events("told to leave"))
            job.finish("done in time")
            code = daemon.exit_code()
    with Daemon(tmp_path, "--store", store) as daemon, Client(daemon.endpoint) as client:
        assert client.status(job.id).result == "done in time"

    assert code == 0


def test_sigterm_waits_no_longer_than_the_setting_drain(tmp_path: Path, store: str) -> None:
    with Daemon(tmp_path, "--store", store, "--drain", "200ms") as daemon:
        with running_job(daemon) as job:
            daemon.tell(signal.SIGTERM)

            assert daemon.exit_code() == 0
    with Daemon(tmp_path, "--store", store) as daemon, Client(daemon.endpoint) as client:
        assert client.status(job.id).state in ("running", "ready")


def test_second_signal_hurries(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--store", "memory", "--drain", "1h") as daemon, running_job(daemon):
        daemon.tell(signal.SIGTERM)
        until(lambda: daemon.events("told to leave"))
        assert not daemon.has_left()
        daemon.tell(signal.SIGTERM)

        assert daemon.exit_code() == 0


def test_sigkill_loses_nothing_that_was_acknowledged(tmp_path: Path, store: str) -> None:
    with Daemon(tmp_path, "--store", store) as daemon, Client(daemon.endpoint) as client:
        ids = [client.enqueue("add", number) for number in range(20)]
        daemon.tell(signal.SIGKILL)
        daemon.exit_code()
    daemon.ready.unlink()
    with Daemon(tmp_path, "--store", store) as daemon, Client(daemon.endpoint) as client:
        assert [job.state for job in client.status(ids)] == ["ready"] * 20


def test_store_that_cannot_grow_is_never_acknowledged_from(tmp_path: Path, store: str) -> None:
    acknowledged = []
    with Daemon(tmp_path, "--store", store, file_limit_blocks=2048) as daemon:
        with (
            Client(daemon.endpoint, timeout=2) as client,
            contextlib.suppress(BrokerBusy, BrokerUnreachable),
        ):
            for number in range(1000):
                acknowledged.append(client.enqueue("add", [number, "x" * 20_000]))
        if daemon.has_left():
            assert daemon.exit_code() == 1
            assert daemon.events("stopped: the store failed")
    daemon.ready.unlink(missing_ok=True)

    assert 0 < len(acknowledged) < 1000
    with Daemon(tmp_path, "--store", store) as daemon, Client(daemon.endpoint) as client:
        assert {job.state for job in client.status(acknowledged)} == {"ready"}


# ---- reload ----------------------------------------------------------------------------------


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    file = tmp_path / "pointsman.toml"
    file.write_text("store = 'memory'\ndrain = '1h'\n")
    return file


def test_sighup_takes_over_new_settings(tmp_path: Path, settings_file: Path) -> None:
    with Daemon(tmp_path, "--config", str(settings_file)) as daemon, running_job(daemon):
        settings_file.write_text("store = 'memory'\ndrain = '10ms'\n")
        daemon.tell(signal.SIGHUP)
        until(lambda: daemon.events("configuration reloaded"))
        daemon.tell(signal.SIGTERM)

        assert daemon.exit_code() == 0


@pytest.mark.parametrize("content", ["drain = 'soon'", "drane = 1", "drain ="])
def test_sighup_with_a_wrong_file_changes_nothing(
    tmp_path: Path, settings_file: Path, content: str
) -> None:
    with Daemon(tmp_path, "--config", str(settings_file)) as daemon:
        settings_file.write_text(content)
        daemon.tell(signal.SIGHUP)
        (event,) = until(lambda: daemon.events("configuration not reloaded"))

        assert str(settings_file) in event["error"]
        with Client(daemon.endpoint) as client:
            client.ping()


def test_sighup_says_which_settings_need_a_restart(tmp_path: Path, settings_file: Path) -> None:
    with Daemon(tmp_path, "--config", str(settings_file)) as daemon:
        settings_file.write_text(f"store = 'sqlite:{tmp_path / 'x.db'}'\nlog_level = 'debug'\n")
        daemon.tell(signal.SIGHUP)
        (event,) = until(lambda: daemon.events("settings that only a restart changes"))

        assert event["settings"] == ["store"]
        assert not (tmp_path / "x.db").exists()


def test_sighup_does_not_end_a_broker_without_a_file(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--store", "memory") as daemon:
        os.kill(daemon.process.pid, signal.SIGHUP)
        until(lambda: daemon.events("configuration reloaded"))

        with Client(daemon.endpoint) as client:
            client.ping()


def test_memory_store_forgets(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--store", "memory") as daemon, Client(daemon.endpoint) as client:
        id = client.enqueue("add")
        daemon.tell(signal.SIGTERM)
        daemon.exit_code()
    with Daemon(tmp_path, "--store", "memory") as daemon, Client(daemon.endpoint) as client:
        with pytest.raises(JobNotExist):
            client.status(id)
