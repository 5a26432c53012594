"""The command line: what it writes, and how it leaves."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from broker import LocalBroker
from tests.shell.command_line import Cli
from worker_sdk import Client, WorkerSession

Work = Callable[[str, Any], None]


@pytest.fixture
def finish_next(broker: LocalBroker) -> Iterator[Work]:
    """Takes the next job of a type and gives it a result."""
    with WorkerSession(types=["add"], endpoint=broker.endpoint) as session:

        def finish(type: str, result: Any) -> None:
            job = session.dequeue(timeout=10)
            assert job is not None
            assert job.type == type
            job.finish(result)

        yield finish


# ---- enqueue ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("broker")
def test_enqueue_writes_the_new_jobs_id(cli: Cli) -> None:
    id = cli("enqueue", "add", '{"x": 1}').strip()

    job = cli.json("status", id, "--args")

    assert str(UUID(id)) == id
    assert (job["id"], job["type"], job["state"]) == (id, "add", "ready")
    assert job["args"] == {"x": 1}


@pytest.mark.usefixtures("broker")
def test_enqueue_takes_each_option_to_the_job(cli: Cli) -> None:
    first = cli.json("enqueue", "add")["id"]
    given = str(uuid4())

    cli(
        *("enqueue", "add", "null", "--after", first, "--id", given, "--priority", "-5"),
        *("--channel", "night", "--delay", "1h", "--timeout", "5m", "--expires", "2h"),
        *("--max-attempts", "7", "--backoff", "2s", "--no-inputs"),
    )

    job = cli.json("status", given)
    assert job["dependencies"] == [first]
    assert (job["priority"], job["channel"], job["max_attempts"]) == (-5, "night", 7)
    assert cli.json("status", first)["dependents"] == [given]


@pytest.mark.usefixtures("broker")
def test_enqueue_reads_args_from_stdin(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps({"long": "é" * 1000})

    class Stdin:
        class buffer:  # noqa: N801
            read = staticmethod(text.encode)

    monkeypatch.setattr(sys, "stdin", Stdin)

    id = cli("enqueue", "add", "-").strip()

    assert cli.json("status", id, "--args")["args"] == {"long": "é" * 1000}


@pytest.mark.usefixtures("broker")
@pytest.mark.parametrize("args", ["-5", "-1.5e3", "-0"])
def test_enqueue_takes_negative_numbers_as_args(cli: Cli, args: str) -> None:
    first = cli.json("enqueue", "add", args)["id"]
    second = cli.json("enqueue", "--priority", "-5", "add", args, "--channel", "-6")["id"]

    assert cli.json("status", first, "--args")["args"] == float(args)
    shown = cli.json("status", second, "--args")
    assert (shown["args"], shown["priority"], shown["channel"]) == (float(args), -5, "-6")


@pytest.mark.usefixtures("broker")
def test_enqueue_takes_any_json_that_can_be_read_back(cli: Cli) -> None:
    text = f'["\\ud83d\\ude00", "\\\\ud800", -{"7" * 4299}, 1e308, 1e-400]'

    id = cli("enqueue", "add", text).strip()

    numbers = [-int("7" * 4299), 1e308, 0.0]
    assert cli.json("status", id, "--args")["args"] == ["😀", "\\ud800", *numbers]


@pytest.mark.usefixtures("broker")
def test_same_id_with_other_content_is_refused(cli: Cli) -> None:
    id = str(uuid4())
    cli("enqueue", "add", "1", "--id", id)
    cli("enqueue", "add", "1", "--id", id)

    assert id in cli.error("enqueue", "add", "2", "--id", id, code=1)


def test_enqueue_with_wait_shows_how_the_job_ended(
    cli: Cli, finish_next: Work, broker: LocalBroker
) -> None:
    command = [sys.executable, "-m", "broker", "enqueue", "add", "--wait", "--json"]
    command += ["--broker", broker.endpoint]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        finish_next("add", {"sum": 3})
        out, _ = process.communicate(timeout=30)

    assert process.returncode == 0
    assert json.loads(out)["result"] == {"sum": 3}


def test_dependent_with_condition_ended_runs_after_a_failure(
    cli: Cli, broker: LocalBroker, finish_next: Work
) -> None:
    first = cli("enqueue", "other").strip()
    after_success = cli("enqueue", "add", "--after", first).strip()
    after_end = cli("enqueue", "add", "--after", f"{first}:ended").strip()

    cli("cancel", first)
    finish_next("add", None)

    assert cli.json("status", after_success)["reason"] == "dependency"
    assert cli.json("status", after_end)["state"] == "finished"


# ---- look ------------------------------------------------------------------------------------


def test_status_shows_a_person_what_applies(cli: Cli, finish_next: Work) -> None:
    id = cli("enqueue", "add").strip()
    finish_next("add", [1, "two"])

    lines = dict(line.split(None, 1) for line in cli("status", id).splitlines())

    assert lines["id"] == id
    assert lines["state"] == "finished"
    assert lines["attempt"] == "1 of 3"
    assert lines["result"] == '[1,"two"]'
    assert "error" not in lines


@pytest.mark.usefixtures("broker")
def test_status_of_several_is_a_line_of_json_each(cli: Cli) -> None:
    ids = [cli("enqueue", "add").strip() for _ in range(3)]

    lines = cli("status", *ids, "--json").splitlines()

    assert [json.loads(line)["id"] for line in lines] == ids


@pytest.mark.usefixtures("broker")
def test_control_characters_do_not_reach_the_terminal(cli: Cli) -> None:
    id = cli("enqueue", "evil\x1b[2J\n", '"\\u001b[2J"').strip()

    assert "\x1b" not in cli("status", id, "--args")
    assert "\x1b" not in cli("list")
    assert len(cli("list").splitlines()) == 1


def test_wait_tells_by_its_exit_code_how_the_jobs_ended(cli: Cli, finish_next: Work) -> None:
    good = cli("enqueue", "add").strip()
    finish_next("add", 1)
    bad = cli("enqueue", "other").strip()
    cli("cancel", bad)

    cli("wait", good)
    cli("wait", good, bad, code=1)


@pytest.mark.usefixtures("broker")
def test_wait_that_takes_too_long_says_who_has_not_ended(cli: Cli) -> None:
    id = cli("enqueue", "add").strip()

    assert id in cli.error("wait", id, "--timeout", "50ms", code=1)

    error = json.loads(cli.error("wait", id, "--timeout", "50ms", "--json", code=1))["error"]
    assert (error["code"], error["ids"]) == ("timeout", [id])


@pytest.mark.usefixtures("broker")
def test_list_filters_and_pages(cli: Cli) -> None:
    first = cli("enqueue", "add").strip()
    second = cli("enqueue", "add", "--channel", "night").strip()
    third = cli("enqueue", "mul", "--after", first).strip()

    def listed(*arguments: str) -> list[str]:
        return [json.loads(line)["id"] for line in cli("list", *arguments, "--json").splitlines()]

    assert listed() == [third, second, first]
    assert listed("--type", "mul") == [third]
    assert listed("--channel", "night") == [second]
    assert listed("--roots") == [second, first]
    assert listed("--state", "blocked", "--state", "running") == [third]
    assert listed("--since", "1h") == [third, second, first]
    assert listed("--until", "1h") == []
    assert listed("--since", "2001-01-01T00:00Z", "--until", "2001-01-02") == []
    assert listed("--all") == [third, second, first]


@pytest.mark.usefixtures("broker")
def test_list_says_how_to_go_on(cli: Cli) -> None:
    first = cli("enqueue", "add").strip()
    second = cli("enqueue", "add").strip()

    out, err, code = cli.all("list", "--limit", "1")
    place = err.partition("--after ")[2].partition(",")[0]

    next_page, _, _ = cli.all("list", "--limit", "1", "--after", place)

    assert (code, out.split("\t")[0]) == (0, second)
    assert next_page.split("\t")[0] == first


@pytest.mark.usefixtures("broker")
def test_list_tells_programs_how_to_go_on(cli: Cli) -> None:
    first = cli("enqueue", "add").strip()
    second = cli("enqueue", "add").strip()

    out, err, code = cli.all("list", "--limit", "1", "--json")
    place = json.loads(err)["after"]

    assert (code, json.loads(out)["id"]) == (0, second)
    assert cli.json("list", "--limit", "1", "--after", place)["id"] == first


@pytest.mark.usefixtures("broker")
def test_stats_counts_jobs(cli: Cli) -> None:
    cli("enqueue", "add")

    assert cli.json("stats")["jobs"]["ready"] == 1
    assert "jobs.ready" in cli("stats")


def test_ping_tells_version_and_endpoint(cli: Cli, broker: LocalBroker) -> None:
    answer = cli.json("ping")

    assert answer["endpoint"] == broker.endpoint
    assert answer["version"]
    assert broker.endpoint in cli("ping")


# ---- change ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("broker")
def test_cancel_retry_and_delete_write_what_they_changed(cli: Cli) -> None:
    id = cli("enqueue", "add").strip()

    assert cli("cancel", id).split() == [id]
    assert cli("cancel", id) == ""
    assert cli.json("retry", id) == {"ids": [id]}
    assert cli.json("status", id)["state"] == "ready"
    cli("cancel", id)
    assert cli("delete", id).split() == [id]
    assert id in cli.error("status", id, code=1)


@pytest.mark.usefixtures("broker")
@pytest.mark.parametrize("command", ["status", "cancel", "wait", "retry", "delete"])
def test_job_that_does_not_exist_is_named(cli: Cli, command: str) -> None:
    id = str(uuid4())

    assert id in cli.error(command, id, code=1)


@pytest.mark.usefixtures("broker")
def test_job_that_has_not_ended_is_not_deleted(cli: Cli) -> None:
    id = cli("enqueue", "add").strip()

    assert id in cli.error("delete", id, code=1)


@pytest.mark.usefixtures("broker")
def test_error_for_programs_is_json(cli: Cli) -> None:
    id = str(uuid4())

    error = json.loads(cli.error("status", id, "--json", code=1))["error"]

    assert error["code"] == "not_exist"
    assert error["ids"] == [id]


# ---- worker ----------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Writes a module into the working directory; its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    names = []

    def write(text: str) -> str:
        name = f"tasks_{uuid4().hex}"
        (tmp_path / f"{name}.py").write_text(text)
        names.append(name)
        return name

    yield write
    for name in names:
        sys.modules.pop(name, None)


def test_worker_module_that_is_missing_is_named(cli: Cli, module: Callable[[str], str]) -> None:
    assert "no_such_module" in cli.error("worker", "no_such_module:worker", code=1)


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import no_such_thing", "no_such_thing"),
        ("from os import no_such_name", "no_such_name"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(5)", "left with 5"),
        ("x = 1", "has no worker"),
        ("worker = 5", "no worker_sdk.Worker but a int"),
    ],
)
def test_worker_module_that_fails_is_told_with_what_failed(
    cli: Cli, module: Callable[[str], str], text: str, culprit: str
) -> None:
    name = module(text)

    line = cli.error("worker", name, code=1)

    assert name in line
    assert culprit in line


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("worker = Worker()\n", "the worker has no handlers"),
        ("worker = Worker()\nworker.add('a', print)\nworker.start()\n", "runs already"),
        (
            "worker = Worker(executor='process')\n@worker.job('a')\ndef a(job): ...\na = print\n",
            "the handler of 'a'",
        ),
    ],
)
def test_worker_that_cannot_be_run_is_wrong_usage(
    cli: Cli, module: Callable[[str], str], text: str, culprit: str
) -> None:
    name = module(f"from worker_sdk import Worker\n{text}")

    line = cli.error("worker", name, code=2)
    sys.modules[name].worker.stop()

    assert f"{name}: the " in line
    assert culprit in line


def test_worker_command_runs_jobs_and_leaves_on_sigterm(
    cli: Cli, broker: LocalBroker, module: Callable[[str], str], tmp_path: Path
) -> None:
    name = module(
        "from worker_sdk import Worker\n"
        "class app:\n"
        "    jobs = Worker()\n"
        "@app.jobs.job('double')\n"
        "def double(job): return job.args * 2\n"
    )
    command = [sys.executable, "-m", "broker", "worker", f"{name}:app.jobs"]
    command += ["--broker", broker.endpoint]
    checkout = str(Path(__file__).parents[2])
    with subprocess.Popen(
        command, cwd=tmp_path, env={"PYTHONPATH": checkout}, stderr=subprocess.DEVNULL
    ) as process:
        with Client(broker.endpoint) as client:
            assert client.run("double", 21, wait_timeout=30) == 42
        process.terminate()
        assert process.wait(30) == 0


# ---- as a process ----------------------------------------------------------------------------


def test_reader_that_goes_away_causes_no_traceback(broker: LocalBroker) -> None:
    with Client(broker.endpoint) as client:
        client.enqueue_many([{"type": "add"}] * 1)
        client.enqueue_many([{"type": "add"} for _ in range(2000)])
    command = f"{sys.executable} -m broker list --all --broker {broker.endpoint} | head -1"

    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, timeout=30, check=False
    )

    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_python_m_broker_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "broker", "--version"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )

    assert done.stdout.startswith("pointsman, version ")


def test_interrupt_before_anything_is_imported_is_told_like_a_later_one() -> None:
    code = (
        "import sys\n"
        "from broker.cli import main\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *_):\n"
        "        raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "main(['ping'])\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )

    assert done.returncode == 130
    assert done.stderr == "pointsman: error: interrupted\n"
