"""Keys as text: what is one, and what is refused before libzmq has to."""

from pathlib import Path

import pytest
import zmq

from worker_sdk.keys import KeyFileError, KeyPair, is_key, new_pair, read_pair, read_public

TOO_MUCH = "#" * 5
"""Five characters of Z85 that stand for more than four bytes hold."""


@pytest.fixture
def pair() -> KeyPair:
    return new_pair("somebody")


def write(folder: Path, public: str, secret: str) -> Path:
    path = folder / "somebody.key"
    path.touch(mode=0o600)
    path.write_text(f'public_key = "{public}"\nsecret_key = "{secret}"\n')
    return path


@pytest.mark.parametrize("value", ["0" * 40, "%nSc0" * 8])
def test_forty_characters_for_32_bytes_are_a_key(value: str) -> None:
    zmq.curve_public(value.encode())  # libzmq takes it too

    assert is_key(value)


@pytest.mark.parametrize("at", range(0, 40, 5))
def test_characters_for_more_than_32_bytes_are_no_key(at: int) -> None:
    value = "0" * at + TOO_MUCH + "0" * (35 - at)

    assert len(value) == 40
    assert not is_key(value)


@pytest.mark.parametrize("half", ["public", "secret"])
def test_key_file_with_such_a_half_is_refused_by_name(
    tmp_path: Path, pair: KeyPair, half: str
) -> None:
    halves = {"public": pair.public, "secret": pair.secret, half: TOO_MUCH * 8}
    path = write(tmp_path, **halves)

    with pytest.raises(KeyFileError, match=rf"{path}: {half}_key .*not 40 characters of Z85"):
        read_pair(path)


def test_public_key_file_with_such_a_key_is_refused(tmp_path: Path, pair: KeyPair) -> None:
    path = write(tmp_path, TOO_MUCH * 8, pair.secret)

    with pytest.raises(KeyFileError, match=r"public_key .*not 40 characters of Z85"):
        read_public(path)
