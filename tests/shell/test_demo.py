"""The demo as a user runs it: real processes, killed ones among them, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.demo.tree import compute, scan

PATIENCE_S = 50.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "folder with a space"
    for part in ("a", "b/c", "b/d/e"):
        (root / part).mkdir(parents=True)
        for number in range(10):
            (root / part / f"{number}.txt").write_text(f"{part} {number}")
    (root / "empty").mkdir()
    (root / "link").symlink_to("nowhere")
    (root / os.fsdecode(b"caf\xe9")).write_bytes(b"\0")
    os.mkfifo(root / "pipe")
    return root


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files, which the demo has to leave as it was."""
    # Not tmp_path: that is too long for the path of a socket.
    with tempfile.TemporaryDirectory(prefix="pm-") as path:
        monkeypatch.setenv("TMPDIR", path)
        yield Path(path)
        assert os.listdir(path) == []


def demo(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "broker", "demo", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done


def outcome(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(demo(*arguments, "--json").stdout)
    return found


def children_of(pid: int) -> list[int]:
    """The processes that process ``pid`` has started and that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.usefixtures("temporary")
def test_demo_finds_the_digest_of_the_folder(folder: Path) -> None:
    found = outcome(str(folder))

    assert found["digest"] == compute(scan(str(folder)))[-1]
    assert (found["files"], found["folders"], found["skipped"]) == (32, 7, 1)
    assert found["jobs"] == 39
    assert found["equal"] is True
    assert found["repeated_attempts"] == 0
    assert found["jobs_per_s"] > 0
    assert found["hop_s"] > 0


@pytest.mark.usefixtures("temporary")
def test_demo_with_broker_and_worker_killed_finds_the_same(folder: Path) -> None:
    found = outcome(str(folder), "--kill")

    assert found["digest"] == compute(scan(str(folder)))[-1]
    assert found["killed"] is True
    assert found["repeated_attempts"] > 0  # those that the killed worker held
    assert found["kept_attempts"] > 0  # those that the other one held


@pytest.mark.usefixtures("temporary")
def test_demo_of_an_empty_folder_can_be_killed_too(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    assert outcome(str(tmp_path / "empty"), "--kill", "--workers", "1")["jobs"] == 1


@pytest.mark.usefixtures("temporary")
def test_demo_tells_a_person_what_it_found(folder: Path) -> None:
    out = demo(str(folder)).stdout

    assert compute(scan(str(folder)))[-1] in out
    assert "39 jobs" in out
    assert "jobs/s" in out
    assert "hop" in out


@pytest.mark.usefixtures("temporary")
def test_demo_keeps_to_itself_whatever_broker_and_keys_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POINTSMAN_BROKER", "tcp://127.0.0.1:1")
    monkeypatch.setenv("POINTSMAN_KEY", "/etc/shop/shop.key")
    monkeypatch.setenv("POINTSMAN_BROKER_KEY", "/etc/shop/broker.pub")
    (tmp_path / "empty").mkdir()

    assert outcome(str(tmp_path / "empty"), "--workers", "1")["jobs"] == 1


@pytest.mark.usefixtures("temporary")
@pytest.mark.parametrize(
    ("meddling", "culprit"),
    [
        ("found[0] = '0' * 64", "0" * 64),
        ("open(tree.nodes[0].path, 'w').write('new'); found = real(tree)", "changed"),
        ("os.unlink(tree.nodes[0].path); found = real(tree)", "changed"),
    ],
)
def test_any_difference_is_an_error(folder: Path, meddling: str, culprit: str) -> None:
    code = (
        "import os, broker.demo.main as main\n"
        "real = main.compute\n"
        "def compute(tree):\n"
        "    found = real(tree)\n"
        f"    {meddling}\n"
        "    return found\n"
        "main.compute = compute\n"
    )

    done = subprocess.run(
        demo_with(code, folder), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert culprit in line


def demo_with(code: str, folder: Path) -> list[str]:
    """The command of a demo in whose process ``code`` runs first."""
    start = f"import sys\nfrom broker.cli import run\nsys.exit(run(['demo', {str(folder)!r}]))\n"
    return [sys.executable, "-u", "-c", code + start]


@pytest.mark.usefixtures("temporary")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo_leaves_no_process_behind(folder: Path, number: int) -> None:
    code = (
        "import time, broker.demo.main as main\n"
        "main._Demo._measure_hop = lambda *_: time.sleep(600)\n"
    )
    with subprocess.Popen(
        demo_with(code, folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        while "Finished" not in process.stdout.readline():
            assert process.poll() is None
        children = children_of(process.pid)
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE_S)

    assert len(children) == 3
    assert process.returncode == 130
    assert "Traceback" not in err
    until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
