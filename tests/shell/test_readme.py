"""What the README shows works as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from broker import LocalBroker

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_worker_and_client_of_the_readme_work_together(tmp_path: Path) -> None:
    tasks, client = blocks("python")
    assert re.search(r"in `tasks\.py`", README)
    (tmp_path / "tasks.py").write_text(tasks)
    (tmp_path / "client.py").write_text(client)
    with LocalBroker() as broker:
        environment = os.environ | {"POINTSMAN_BROKER": broker.endpoint, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            [sys.executable, "-m", "broker", "worker", "tasks:worker"],
            cwd=tmp_path,
            env=environment,
            stderr=subprocess.DEVNULL,
        ) as worker:
            done = subprocess.run(
                [sys.executable, "client.py"],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            worker.terminate()

    assert done.stdout == "5\n", done.stderr


def test_worker_and_client_of_the_readme_take_ten_lines_at_most() -> None:
    for block in blocks("python"):
        assert len(block.splitlines()) <= 10


def test_two_commands_install_and_run_the_demo_and_the_tests() -> None:
    commands = [
        line for line in README.splitlines() if line.startswith("python3 -m venv .venv && ")
    ]

    demo, tests = commands

    assert demo.endswith(".venv/bin/pip install . && .venv/bin/pointsman demo")
    assert tests.endswith(".venv/bin/pip install -e '.[test]' && .venv/bin/pytest")


def test_environment_is_entered_before_a_command_needs_it() -> None:
    venv = re.findall(r"python3 -m venv (\S+)", README)[0]

    before, _, _ = README.partition("\npointsman ")

    assert f"`. {venv}/bin/activate`" in before


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")

    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_diagram_is_one_that_github_draws() -> None:
    (diagram,) = blocks("mermaid")

    assert diagram.startswith("flowchart ")
