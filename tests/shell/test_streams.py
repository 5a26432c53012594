"""Standard streams that are closed, full or left by their reader: what is done, said and given."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from broker import LocalBroker
from worker_sdk import Client

PATIENCE_S = 30.0
COMMAND = f"exec env -u PYTHONUNBUFFERED {sys.executable} -m broker"
"""What is not buffered is not tried again at the end, and hides half of the faults."""

needs_full_device = pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="a device that is always full is Linux's"
)


def run(arguments: str, code: int) -> tuple[str, str]:
    """Run a command line with a shell's redirections; what it wrote to stdout and to stderr."""
    done = subprocess.run(
        f"{COMMAND} {arguments}",
        shell=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stdout, done.stderr


def wait_for(file: Path, process: subprocess.Popen[bytes]) -> None:
    """Return when the process has made the file."""
    deadline = time.monotonic() + PATIENCE_S
    while not file.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


# ---- closed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [">&-", "<&-", "2>&-", ">&- <&- 2>&-"])
def test_enqueue_needs_no_streams(broker: LocalBroker, streams: str) -> None:
    _, err = run(f"enqueue add {streams}", code=0)

    with Client(broker.endpoint) as client:
        assert [job.type for job in client.list()] == ["add"]
    assert err == ""


@pytest.mark.usefixtures("broker")
@pytest.mark.parametrize("arguments", ["list", "stats", "ping --json", "--version", "--help"])
def test_closed_stdout_is_as_good_as_the_null_device(arguments: str) -> None:
    assert run(f"{arguments} >&-", code=0) == ("", "")


def test_args_from_a_closed_stdin_are_wrong_usage() -> None:
    _, err = run("enqueue add - <&-", code=2)

    (line,) = err.splitlines()
    assert "stdin is closed" in line


def test_args_from_a_stdin_that_cannot_be_read_are_wrong_usage() -> None:
    _, err = run("enqueue add - 0>/dev/null", code=2)

    (line,) = err.splitlines()
    assert "stdin: Bad file descriptor" in line


def test_error_that_cannot_be_told_keeps_its_exit_code() -> None:
    assert run("list --nonsense 2>&-", code=2) == ("", "")


def test_files_and_sockets_do_not_get_the_number_of_a_closed_stream() -> None:
    code = (
        "import os, sys, broker.cli\n"
        "broker.cli.run = lambda _: os.open('/', os.O_RDONLY)\n"
        "broker.cli.main()\n"
    )

    done = subprocess.run(
        f'exec {sys.executable} -c "{code}" <&- >&- 2>&-',
        shell=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert done.returncode > 2


def test_broker_starts_without_streams(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    serve = f"serve --store memory --bind tcp://127.0.0.1:* --ready-file {ready} --drain 0"
    command = f"{COMMAND} {serve} <&- >&- 2>&-"
    with subprocess.Popen(command, shell=True) as process:
        wait_for(ready, process)
        with Client(ready.read_text().strip()) as client:
            client.ping()
        process.terminate()

        assert process.wait(PATIENCE_S) == 0


# ---- full ------------------------------------------------------------------------------------


@needs_full_device
@pytest.mark.usefixtures("broker")
@pytest.mark.parametrize("arguments", ["list --json", "stats", "enqueue add", "--help"])
def test_full_stdout_is_told_in_one_line(broker: LocalBroker, arguments: str) -> None:
    with Client(broker.endpoint) as client:
        client.enqueue("add")

    _, err = run(f"{arguments} >/dev/full", code=1)

    (line,) = err.splitlines()
    if "--json" in arguments:
        error = json.loads(line)["error"]
        assert (error["code"], error["message"]) == ("output", "stdout: No space left on device")
    else:
        assert line == "pointsman: error: stdout: No space left on device"


@needs_full_device
@pytest.mark.parametrize("streams", ["2>/dev/full", ">/dev/full 2>&1"])
def test_full_stderr_changes_no_exit_code(streams: str) -> None:
    run(f"list --nonsense {streams}", code=2)


@needs_full_device
def test_broker_with_a_full_log_serves_and_leaves_as_any(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    serve = f"serve --store memory --bind tcp://127.0.0.1:* --ready-file {ready} --drain 0"
    command = f"{COMMAND} {serve} 2>/dev/full"
    with subprocess.Popen(command, shell=True) as process:
        wait_for(ready, process)
        process.terminate()

        assert process.wait(PATIENCE_S) == 0


# ---- left by the reader ----------------------------------------------------------------------


def test_reader_of_errors_that_goes_away_changes_no_exit_code() -> None:
    command = f"({COMMAND} list --nonsense 2>&1) | true; echo ${{PIPESTATUS[0]}}"

    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )

    assert (done.stdout, done.stderr) == ("2\n", "")
