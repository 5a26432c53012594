"""docs/security.md against the code: its commands, its policy, its table of roles."""

import re
import shlex
from pathlib import Path

import pytest

from broker.cli import run
from broker.exposure import OLDEST_LIBZMQ
from broker.guard import ROLE_FOR
from broker.policy import ADMIN, ROLES, load, parse
from worker_sdk.keys import KeyFileError, read_pair

TEXT = (Path(__file__).parent.parent.parent / "docs" / "security.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    split = [shlex.split(line, comments=True) for line in lines]
    return [words[1:] for words in split if words[:2] == ["pointsman", "keys"]]


def test_commands_work_as_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("keys").mkdir(mode=0o700)

    assert len(commands()) == 8
    for arguments in commands():
        assert run(arguments) == 0, (arguments, capsys.readouterr().err)

    grants = {grant.name: grant for grant in load("policy.toml").grants}
    assert set(grants) == {"shop", "resizer", "operator", "billing"}
    assert grants["shop"].revoked
    assert grants["resizer"].types == ("image.*",)
    assert read_pair("keys/broker.key").name == "broker"
    with pytest.raises(KeyFileError):
        read_pair("keys/broker.pub")


def test_serve_takes_the_settings_that_stand_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("keys").mkdir(mode=0o700)
    for arguments in commands():
        assert run(arguments) == 0
    (line,) = re.findall("^pointsman (serve .*)$", TEXT, re.MULTILINE)

    assert run([*shlex.split(line), "--check"]) == 0
    assert run(["serve", "--bind", "tcp://*:5570", "--check"]) == 2
    assert run(["serve", "--bind", "tcp://*:5570", "--allow-unencrypted-network", "--check"]) == 0


def test_policy_is_one() -> None:
    (block,) = blocks("toml")

    (grant,) = parse(block.encode()).grants

    assert grant.covers("default", "image.resize")


def test_table_of_roles_is_the_codes() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", TEXT, re.MULTILINE))

    assert tuple(rows) == ROLES
    for role, text in rows.items():
        said = set(re.findall(r"`(\w+)`", text))
        assert said == {
            str(kind.__struct_config__.tag)  # type: ignore[attr-defined]
            for kind, needed in ROLE_FOR.items()
            if needed == role
        }, role
    assert ROLE_FOR[next(kind for kind in ROLE_FOR if kind.__name__ == "Delete")] == ADMIN


def test_oldest_libzmq_is_the_one_that_is_checked() -> None:
    assert f"**{'.'.join(map(str, OLDEST_LIBZMQ))}**" in TEXT
