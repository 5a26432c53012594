"""Key files and the policy: what is read, what is refused, and what the commands write."""

import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import keyring
from broker.cli import run
from broker.policy import Grant, Pattern, PolicyError, load, parse
from worker_sdk.keys import KeyFileError, KeyPair, new_pair, read_pair, read_public, write_pair


@pytest.fixture
def pair(tmp_path: Path) -> KeyPair:
    pair = new_pair("somebody")
    write_pair(pair, tmp_path)
    return pair


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ---- key files --------------------------------------------------------------------------------


def test_written_pair_is_read_again(tmp_path: Path, pair: KeyPair) -> None:
    read = read_pair(tmp_path / "somebody.key")

    assert (read.name, read.public, read.secret) == (pair.name, pair.public, pair.secret)
    assert read_public(tmp_path / "somebody.pub").public == pair.public
    assert read_public(tmp_path / "somebody.key").public == pair.public


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_secret_is_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        secret, public = write_pair(new_pair("x"), tmp_path)
    finally:
        os.umask(before)

    assert mode_of(secret) == 0o600
    assert "secret" not in public.read_text()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o644, 0o777])
def test_secret_that_others_can_touch_is_refused(tmp_path: Path, pair: KeyPair, mode: int) -> None:
    path = tmp_path / "somebody.key"
    path.chmod(mode)

    with pytest.raises(KeyFileError, match=f"{mode:04o}.*chmod 600") as error:
        read_pair(path)

    assert pair.secret not in str(error.value)


def test_keys_are_not_written_over(tmp_path: Path, pair: KeyPair) -> None:
    with pytest.raises(KeyFileError, match="there already"):
        write_pair(new_pair("somebody"), tmp_path)

    assert read_pair(tmp_path / "somebody.key").secret == pair.secret


def test_secret_is_never_shown(tmp_path: Path, pair: KeyPair) -> None:
    assert pair.secret not in repr(pair)
    path = tmp_path / "somebody.key"
    path.write_text(path.read_text().replace("secret_key =", "secret_key"))
    with pytest.raises(KeyFileError) as error:
        read_pair(path)
    assert pair.secret not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("secret_key", ""),
        ("secret_key", "x" * 39),
        ("secret_key", "é" * 40),
        ("public_key", ""),
        ("public_key", "a" * 40),
        ("public_key", "\\u0000" * 40),
    ],
)
def test_wrong_key_is_refused(tmp_path: Path, pair: KeyPair, field: str, value: str) -> None:
    path = tmp_path / "somebody.key"
    fields = {"public_key": pair.public, "secret_key": pair.secret, field: value}
    path.write_text("".join(f'{name} = "{each}"\n' for name, each in fields.items()))

    with pytest.raises(KeyFileError, match=str(path)):
        read_pair(path)


def test_public_file_is_no_secret_one(tmp_path: Path, pair: KeyPair) -> None:
    (tmp_path / "somebody.pub").chmod(0o600)

    with pytest.raises(KeyFileError, match="public file"):
        read_pair(tmp_path / "somebody.pub")


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "é", "x" * 65, "a\n"])
def test_name_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(KeyFileError, match="is no name"):
        new_pair(name)


@given(st.binary(max_size=300))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.key"
    path.touch(mode=0o600)
    path.write_bytes(data)
    for read in (read_pair, read_public):
        with pytest.raises(KeyFileError):
            read(path)


# ---- patterns ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "fits", "does_not"),
    [
        ("add", ["add"], ["", "ad", "addd", "Add"]),
        ("*", ["", "add", "a.b\n"], []),
        ("image.*", ["image.", "image.resize", "image.a.b"], ["image", "images.x", "x.image.y"]),
        ("*.eu", [".eu", "a.eu"], ["eu", "a.eu.b"]),
        ("a*b*c", ["abc", "aXbYc", "abbcc"], ["ac", "acb", "ab", "bc"]),
        ("a*a", ["aa", "aXa"], ["a"]),
        ("a?[b]", ["a?[b]"], ["axb", "a?b"]),
        ("**", ["", "x"], []),
    ],
)
def test_star_stands_for_anything(pattern: str, fits: list[str], does_not: list[str]) -> None:
    assert [name for name in fits if not Pattern(pattern).matches(name)] == []
    assert [name for name in does_not if Pattern(pattern).matches(name)] == []


@given(st.text("ab*", max_size=8), st.text("ab", max_size=12))
def test_pattern_means_what_a_regular_expression_would(pattern: str, name: str) -> None:
    import re

    regular = ".*".join(re.escape(part) for part in pattern.split("*"))

    assert Pattern(pattern).matches(name) == bool(re.fullmatch(regular, name))


# ---- policy -----------------------------------------------------------------------------------

KEY = "a" * 40
WHOLE = f'[keys.x]\npublic_key = "{KEY}"\nroles = ["read"]\nchannels = ["c"]\ntypes = ["*"]\n'


def test_nothing_is_allowed_that_is_not_said() -> None:
    policy = parse(WHOLE.encode())
    grant = policy.grant(KEY)
    assert grant is not None

    assert grant.has("read")
    assert not grant.has("enqueue")
    assert grant.covers("c", "t")
    assert not grant.covers("d", "t")
    assert policy.grant("b" * 40) is None
    assert parse(b"").grant(KEY) is None


@pytest.mark.parametrize("field", ["public_key", "roles", "channels", "types"])
def test_field_left_out_is_an_error_not_a_permission(field: str) -> None:
    text = "".join(line for line in WHOLE.splitlines(True) if not line.startswith(field))

    with pytest.raises(PolicyError, match=f"'x'.*{field} is missing"):
        parse(text.encode())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('["read"]', '["write"]'),
        ('["read"]', '"read"'),
        ('["read"]', "[1]"),
        ('["c"]', '[""]'),
        ('["c"]', '"*"'),
        (KEY, "short"),
        ("types =", "type ="),
        ("[keys.x]", '[keys."x y"]'),
        ("[keys.x]", "[key.x]"),
        ("[keys.x]", "[keys.x]\nrevoked = 'yes'"),
        (WHOLE, WHOLE + WHOLE.replace("keys.x", "keys.y")),
        (WHOLE, "keys = 1"),
        (WHOLE, "[keys]\nx = 1"),
        (WHOLE, "[keys.x"),
    ],
)
def test_policy_that_is_not_sound_is_refused_whole(before: str, after: str) -> None:
    with pytest.raises(PolicyError):
        parse(WHOLE.replace(before, after).encode())


@pytest.mark.parametrize("mode", [0o660, 0o646, 0o666])
def test_policy_that_others_can_change_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(WHOLE)
    path.chmod(mode)

    with pytest.raises(PolicyError, match="chmod go-w"):
        load(path)


def test_admin_has_every_role() -> None:
    grant = Grant("x", KEY, roles=["admin"], channels=["*"], types=["*"])

    assert all(grant.has(role) for role in ("enqueue", "work", "read", "cancel", "admin"))


# ---- changes to the policy --------------------------------------------------------------------


def test_revoking_leaves_the_rest_of_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    text = f"# ours\n{WHOLE}\n  [ keys . 'y' ] # theirs\n" + WHOLE.partition("\n")[2].replace(
        KEY, "b" * 40
    )
    path.write_text(text)
    path.chmod(0o640)

    keyring.revoke(path, "y")

    assert path.read_text() == text.replace("# theirs\n", "# theirs\nrevoked = true\n")
    assert mode_of(path) == 0o640
    assert [grant.revoked for grant in load(path).grants] == [False, True]


def test_revoking_twice_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(WHOLE)
    keyring.revoke(path, "x")
    text = path.read_text()

    keyring.revoke(path, "x")

    assert path.read_text() == text


@pytest.mark.parametrize(
    "text",
    [
        WHOLE + "revoked = false\n",
        f'keys.x = {{public_key = "{KEY}", roles = [], channels = ["*"], types = ["*"]}}\n',
    ],
)
def test_revoking_that_does_not_succeed_says_so_and_changes_nothing(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)

    with pytest.raises(PolicyError, match="by hand"):
        keyring.revoke(path, "x")

    assert path.read_text() == text


# ---- the commands -----------------------------------------------------------------------------


def test_keys_are_made_listed_and_revoked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = str(tmp_path / "policy.toml")
    make = ["keys", "make", "--folder", str(tmp_path)]
    assert run([*make, "broker"]) == 0
    assert run([*make, "w", "--role", "work", "--type", "image.*", "--policy", policy]) == 0
    assert mode_of(tmp_path / "w.key") == 0o600
    capsys.readouterr()

    assert run(["keys", "list", "--policy", policy, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "name": "w",
        "public_key": read_public(tmp_path / "w.pub").public,
        "roles": ["work"],
        "channels": ["default"],
        "types": ["image.*"],
        "revoked": False,
    }

    assert run(["keys", "revoke", "w", "--policy", policy]) == 0
    capsys.readouterr()
    assert run(["keys", "list", "--policy", policy]) == 0
    assert "revoked" in capsys.readouterr().out
    assert load(policy).grant(read_public(tmp_path / "w.pub").public) is None


def test_key_made_elsewhere_is_added(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    _, public = write_pair(new_pair("theirs"), tmp_path)

    added = ["keys", "add", "them", str(public), "--role", "read", "--policy", str(policy)]
    assert run(added) == 0

    (grant,) = load(policy).grants
    assert (grant.name, grant.roles) == ("them", ("read",))


def test_key_that_cannot_be_added_is_not_made(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(WHOLE)
    make = ["keys", "make", "x", "--folder", str(tmp_path), "--policy", str(policy)]

    assert run([*make, "--role", "read"]) == 2

    assert not list(tmp_path.glob("x.*"))
    assert policy.read_text() == WHOLE


@pytest.mark.parametrize(
    "arguments",
    [
        ["keys", "make", "a/b"],
        ["keys", "make", "x", "--role", "read"],
        ["keys", "make", "x", "--role", "king", "--policy", "p"],
        ["keys", "list", "--policy", "missing.toml"],
        ["keys", "revoke", "x", "--policy", "missing.toml"],
        ["keys", "add", "x", "missing.pub", "--policy", "p", "--role", "read"],
        ["ping", "--key", "missing.key"],
        ["ping", "--key", "missing.key", "--broker-key", "missing.pub"],
    ],
)
def test_wrong_use_of_keys_is_told_as_such(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    assert run(arguments) == 2

    assert capsys.readouterr().err.startswith("pointsman")
    assert not list(tmp_path.iterdir())


def test_commands_take_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.security.keyed import House

    house = House(tmp_path)
    key = house.key("friend", "read")
    with house.broker() as broker:
        connection = ["--broker", broker.endpoint, "--key", str(key)]
        connection += ["--broker-key", str(house.broker_key)]

        assert run(["ping", *connection]) == 0
        assert run(["enqueue", "add", *connection]) == 1
        assert "needs the role enqueue" in capsys.readouterr().err
        assert run(["ping", "--broker", broker.endpoint]) == 1
        assert "none but keys" in capsys.readouterr().err
