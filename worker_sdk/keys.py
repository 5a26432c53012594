"""Key files: who a client, a worker or a broker is.

A key pair is two small TOML files. ``NAME.key`` holds all of it and is its owner's alone (mode
0600); ``NAME.pub`` lacks the secret half and may be shown to anybody::

    name = "worker-1"
    public_key = "8x?K[nPZp+U2A$WBU<k#5Gj9fDV&>3tM=ql4P)Yc"
    secret_key = "…"

The keys are CURVE's (Curve25519), written in Z85: 40 characters.
"""

import os
import re
import stat
import struct
import tomllib
from pathlib import Path
from typing import Any, Final, NamedTuple

import zmq
from zmq.utils import z85

from worker_sdk.errors import PointsmanError

KEY_VARIABLE = "POINTSMAN_KEY"
BROKER_KEY_VARIABLE = "POINTSMAN_BROKER_KEY"

NAME: Final = re.compile("[A-Za-z0-9_-]{1,64}")
_Z85 = re.compile(r"[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_LARGEST_FILE_BYTES = 65_536

AnyPath = str | os.PathLike[str]


class KeyFileError(PointsmanError, ValueError):
    """A key file cannot be used; the message names it and says what would be right."""

    code = "key"


class KeyPair:
    """A name and both halves of its key; what it shows of itself leaves the secret out."""

    __slots__ = ("name", "public", "secret")

    def __init__(self, name: str, public: str, secret: str) -> None:
        self.name = name
        self.public = public
        self.secret = secret

    def __repr__(self) -> str:
        return f"<KeyPair {self.name or self.public}>"


class Keys(NamedTuple):
    """What a connection is made with: one's own key, and the one that the broker must have."""

    own: KeyPair
    broker: str

    def put_on(self, socket: "zmq.Socket[bytes]") -> None:
        """Have `socket` encrypt, prove who we are, and talk to nobody but that broker."""
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self.own.public.encode())
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.own.secret.encode())
        socket.setsockopt(zmq.CURVE_SERVERKEY, self.broker.encode())


def chosen_keys(key: AnyPath | None, broker_key: AnyPath | None) -> Keys | None:
    """The keys in the files given, else in the environment's; None if there are none.

    Raises KeyFileError, also if only one of the two is there: no connection is ever made with
    less protection than was asked for.
    """
    own = key or os.environ.get(KEY_VARIABLE)
    broker = broker_key or os.environ.get(BROKER_KEY_VARIABLE)
    if not own and not broker:
        return None
    if not own or not broker:
        has, lacks = ("key", "broker_key") if own else ("broker_key", "key")
        raise KeyFileError(
            f"{has} is given and {lacks} is not: a connection with keys needs the secret key of "
            f"this side (key, {KEY_VARIABLE}) and the broker's public key (broker_key, "
            f"{BROKER_KEY_VARIABLE})"
        )
    check_curve()
    return Keys(read_pair(own), read_public(broker).public)


def check_curve() -> None:
    """Raise KeyFileError if the installed libzmq cannot encrypt."""
    if not zmq.has("curve"):
        raise KeyFileError(
            f"libzmq {zmq.zmq_version()} was built without CURVE: keys cannot be used with it"
        )


def new_pair(name: str) -> KeyPair:
    """Make a key pair."""
    if not NAME.fullmatch(name):
        raise KeyFileError(f"{name!r} is no name for a key: letters, digits, _ and -, at most 64")
    check_curve()
    public, secret = zmq.curve_keypair()
    return KeyPair(name, public.decode(), secret.decode())


def read_pair(path: AnyPath) -> KeyPair:
    """The key pair in a secret key file, which nobody but its owner may be able to read."""
    fields = _read(path, secret=True)
    secret = fields.get("secret_key")
    if secret is None:
        raise KeyFileError(f"key file {path}: it has no secret_key: is it the public file?")
    if not is_key(secret):
        raise KeyFileError(f"key file {path}: secret_key is not 40 characters of Z85")
    public = _public(path, fields)
    if zmq.curve_public(secret.encode()).decode() != public:
        raise KeyFileError(f"key file {path}: public_key does not belong to secret_key")
    return KeyPair(_name(fields), public, secret)


def read_public(path: AnyPath) -> KeyPair:
    """The public half of the key in a key file; its secret stays empty."""
    fields = _read(path, secret=False)
    return KeyPair(_name(fields), _public(path, fields), "")


def write_pair(pair: KeyPair, folder: Path) -> tuple[Path, Path]:
    """Write a pair's two files, where there are none yet; the secret one and the public one."""
    secret, public = folder / f"{pair.name}.key", folder / f"{pair.name}.pub"
    lines = f'name = "{pair.name}"\npublic_key = "{pair.public}"\n'
    for path in (secret, public):
        if path.exists():
            raise KeyFileError(f"key file {path} is there already, and is not written over")
    note = f"# Secret: for {pair.name} alone.\n"
    _create(secret, f'{note}{lines}secret_key = "{pair.secret}"\n', 0o600)
    try:
        _create(public, lines, 0o644)
    except KeyFileError:
        secret.unlink()
        raise
    return secret, public


def is_key(value: object) -> bool:
    """Whether this is a key in Z85."""
    if not isinstance(value, str) or _Z85.fullmatch(value) is None:
        return False
    try:
        z85.decode(value)
    except struct.error:  # five characters can say more than four bytes hold
        return False
    return True


def _create(path: Path, text: str, mode: int) -> None:
    try:
        # Private from its first moment on: not written and then closed to others.
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise KeyFileError(f"key file {path}: {error.strerror or error}") from None


def _read(path: AnyPath, *, secret: bool) -> dict[str, Any]:
    try:
        with Path(path).open("rb") as file:
            # Of the file that was opened, not of whatever has its name by now.
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_LARGEST_FILE_BYTES)
    except OSError as error:
        raise KeyFileError(f"key file {path}: {error.strerror or error}") from None
    if secret and os.name == "posix" and mode & _OTHERS:
        raise KeyFileError(
            f"key file {path}: its mode is {mode & 0o777:04o}, so others can read the secret; "
            f"chmod 600 {path} (and make a new key if others may have read it)"
        )
    try:
        return tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError):
        # Not the parser's words: they might repeat a part of the secret.
        text = f"key file {path} is not TOML, as `pointsman keys make` writes"
        raise KeyFileError(text) from None


def _public(path: AnyPath, fields: dict[str, Any]) -> str:
    public = fields.get("public_key")
    if not isinstance(public, str) or not is_key(public):
        raise KeyFileError(f"key file {path}: public_key is not there, or not 40 characters of Z85")
    return public


def _name(fields: dict[str, Any]) -> str:
    name = fields.get("name", "")
    return name if isinstance(name, str) else ""
