"""The command line used wrongly or carefully: errors, help, and settings that are only checked."""

import json
from pathlib import Path
from uuid import uuid4

import pytest

from broker.config import settings
from tests.shell.command_line import NOBODY, Cli


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["enqueue", "add", "{"], "line 1, column 2"),
        (["enqueue", "add", "[1,\n2,,]"], "line 2, column 3"),
        (["enqueue", "add", "NaN"], "NaN"),
        (["enqueue", "add", "[1, -Infinity]"], "-Infinity"),
        (["enqueue", "add", ""], "line 1, column 1"),
        (["enqueue", "add", "[" * 100_000], "nested"),
        (["enqueue", "add", "\udcff"], "UTF-8"),
        (["enqueue", "add", '["\\ud800"]'], "'\\ud800' is half a character"),
        (["enqueue", "add", '{"\\uDC00": 1}'], "'\\udc00' is half a character"),
        (
            ["enqueue", "add", "1e400"],
            "1e400 cannot be read back; expected numbers up to 1.798e+308",
        ),
        (["enqueue", "add", "-1e400"], "-1e400 cannot be read back"),
        (["enqueue", "add", "7" * 4301], "4301 characters"),
        (["enqueue", "add", "-5", "--bogus"], "--bogus"),
        (["enqueue", "add", "-x"], "-x"),
        (["enqueue", ""], "'TYPE': '' has 0 characters; expected 1 to 200"),
        (
            ["enqueue", "x" * 201],
            "'TYPE': 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'… has 201 char",
        ),
        (["enqueue", "\udcff"], "'\\udcff' is not UTF-8"),
        (["enqueue", "add", "--channel", ""], "'--channel': '' has 0 characters"),
        (["enqueue", "add", "--channel", "x" * 201], "'--channel': 'xx"),
        (["enqueue", "add", "--max-attempts", "0"], "'--max-attempts': 0 is not in the range 1<="),
        (["enqueue", "add", "--max-attempts", "1000001"], "'--max-attempts': 1000001 is not in"),
        (["enqueue", "add", "--priority", "2147483648"], "'--priority': 2147483648 is not in"),
        (["enqueue", "add", "--after", "x"], "'x'"),
        (["enqueue", "add", "--after", f"{uuid4()}:never"], "'never'"),
        (["enqueue", "add", "--priority", "high"], "'high'"),
        (["enqueue", "add", "--delay", "-1"], "'-1' is not right (too small)"),
        (["enqueue", "add", "--delay", "-1h"], "'-1h' is not right (too small)"),
        (["enqueue", "add", "--delay", "-soon"], "'-soon' is not right (not a number)"),
        (["enqueue", "add", "--timeout", "0"], "'0'"),
        (["enqueue", "add", "--delay", "soon"], "'soon'"),
        (["enqueue", "add", "--id", "1"], "'1'"),
        (["enqueue"], "TYPE"),
        (["status"], "ID"),
        (["status", "not-an-id"], "'not-an-id'"),
        (["status", str(uuid4()), "--broker", "localhost"], "localhost"),
        (["status", str(uuid4()), "--broker", "tcp://127.0.0.1:*"], "tcp://127.0.0.1:*"),
        (["list", "--state", "done"], "done"),
        (["list", "--limit", "0"], "0"),
        (["list", "--type", ""], "'--type': ''"),
        (["list", "--channel", ""], "'--channel': ''"),
        (["ping", "--key", ""], "'--key': ''"),
        (["ping", "--broker-key", ""], "'--broker-key': ''"),
        (["list", "--since", "yesterday"], "yesterday"),
        (["lst"], "lst"),
        (["list", "--nonsense"], "--nonsense"),
        (["keys", "make", "x", "--policy", "p"], "--policy"),
        (["keys", "make", "x", "--channel", "night"], "--channel"),
        (["keys", "make", "x", "--type", "*"], "--type"),
        (["worker", "a b"], "a b"),
        (["worker", "tasks:"], "tasks:"),
        (["demo", "/no/such/folder"], "/no/such/folder"),
        (["demo", "--workers", "0"], "0"),
        (["serve", "--max-jobs", "many"], "max_jobs"),
        (["serve", "--max-jobs", "-1"], "-1 is not right (too small)"),
        (["serve", "--max-bytes", "-1KiB"], "-1024 is not right (too small)"),
        (["serve", "--grace", "-1"], "-1.0 is not right (too small)"),
        (["serve", "--ipc-mode", "-600"], "'-600' is not right"),
        (["serve", "--bind", "nowhere"], "nowhere"),
        (["serve", "--config", "/no/such.toml"], "/no/such.toml"),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_culprit(
    cli: Cli, arguments: list[str], culprit: str
) -> None:
    assert culprit in cli.error(*arguments, code=2)


@pytest.mark.parametrize(("group", "command"), [([], "enqueue"), (["keys"], "revoke")])
def test_without_a_command_there_is_help(cli: Cli, group: list[str], command: str) -> None:
    out, err, code = cli.all(*group)

    assert (err, code) == ("", 2)
    assert f"\n  {command} " in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["ping", "--json", "--bogus"],
        ["ping", "--bogus", "--json"],
        ["ping", "--broker", "nowhere", "--json"],
        ["png", "--json"],
        ["keys", "make", "--json"],
    ],
)
def test_wrong_usage_is_told_to_programs_in_json(cli: Cli, arguments: list[str]) -> None:
    assert json.loads(cli.error(*arguments, code=2))["error"]["code"] == "usage"


@pytest.mark.parametrize(
    "arguments", [["list", "--type", "--json", "--limit", "0"], ["list", "--bogus", "--", "--json"]]
)
def test_json_that_is_no_option_asks_for_none(cli: Cli, arguments: list[str]) -> None:
    assert cli.error(*arguments, code=2).startswith("pointsman list: error: ")


def test_each_setting_is_a_flag_of_serve(cli: Cli) -> None:
    help = cli("serve", "--help")

    for setting in settings():
        assert setting.flag + " " in help


def test_help_of_serve_names_the_words_that_settings_take(cli: Cli) -> None:
    help = cli("serve", "--help")

    assert "--store memory|sqlite:PATH " in help
    assert "--log-level [debug|info|warning|error]" in help
    assert "--log-format [auto|human|json]" in help


def test_check_shows_the_settings_and_starts_nothing(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text("grace = '1m'\n")

    out = cli("serve", "--check", "--config", str(file), "--store", "memory")

    assert "grace = 1m" in out
    assert "store = memory" in out


def test_key_without_rights_is_made_beside_a_policy_that_the_environment_names(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POINTSMAN_POLICY", str(tmp_path / "policy.toml"))

    cli("keys", "make", "broker", "--folder", str(tmp_path))

    assert {path.name for path in tmp_path.iterdir()} == {"broker.key", "broker.pub"}


def test_check_gives_programs_the_settings_as_one_object(cli: Cli) -> None:
    checked = cli.json("serve", "--check", "--grace", "1m", "--bind", "tcp://127.0.0.1:*")

    assert set(checked) == {setting.name for setting in settings()}
    assert (checked["grace"], checked["bind"]) == (60, ["tcp://127.0.0.1:*"])
    assert (checked["ipc_mode"], checked["allow_unencrypted_network"]) == ("0600", False)


def test_check_finds_what_the_start_finds(cli: Cli, tmp_path: Path) -> None:
    cli("keys", "make", "b", "--folder", str(tmp_path))
    key, policy, store = tmp_path / "b.key", tmp_path / "policy.toml", tmp_path / "jobs.db"
    keyed = ["--store", f"sqlite:{store}", "--key", str(key), "--policy", str(policy)]

    assert "policy.toml" in cli.error("serve", "--check", *keyed, code=2)
    policy.write_text("[keys.b]\n")
    assert "'b'" in cli.error("serve", "--check", *keyed, code=2)
    policy.write_text("")
    assert "policy.toml" in cli("serve", "--check", *keyed)
    key.unlink()
    assert "b.key" in cli.error("serve", "--check", *keyed, code=2)
    assert not store.exists()


@pytest.mark.parametrize("command", ["status", "cancel", "wait", "retry", "delete"])
def test_no_broker_is_exit_code_3(cli: Cli, command: str) -> None:
    line = cli.error(command, str(uuid4()), "--broker", NOBODY, "--patience", "200ms", code=3)

    assert NOBODY in line


@pytest.mark.parametrize(
    "words",
    [
        ("--prioriy", "-5"),
        ("work", "-5", "--prioriy", "3"),
        ("work", "--priority", "-5", "--prioriy"),
    ],
)
def test_option_that_there_is_not_is_refused_beside_negative_numbers(
    cli: Cli, words: tuple[str, ...]
) -> None:
    line = cli.error("enqueue", *words, code=2)

    assert "No such option" in line
    assert "--prioriy" in line
