"""The policy: which key may do what, on which channels and types.

It is a TOML file with a table for each key::

    [keys.worker-1]
    public_key = "8x?K[nPZp+U2A$WBU<k#5Gj9fDV&>3tM=ql4P)Yc"
    roles = ["work"]
    channels = ["default"]
    types = ["image.*"]

What is not said is not allowed: a key that does not stand there, or is ``revoked``, is not let in,
and a table that leaves out roles, channels or types is an error, not a permission. In channels and
types a ``*`` stands for any characters, none among them; all else stands for itself.
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from broker.config import ConfigError
from worker_sdk.keys import NAME, is_key

ENQUEUE, WORK, READ, CANCEL, ADMIN = ROLES = ("enqueue", "work", "read", "cancel", "admin")
"""What a key may do: put jobs in (and retry them), run them, look at them, end them; all of that,
and delete them."""

_FIELDS = {"public_key", "roles", "channels", "types", "revoked"}
_REMEMBERED_MOST = 10_000


class PolicyError(ConfigError):
    """A policy that cannot be used; the message names the file, the key and what would be right."""


class Pattern:
    """A name in which each ``*`` stands for any characters. Matches in linear time."""

    __slots__ = ("_first", "_last", "_middle", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._first, *rest = text.split("*")
        # Without a star there is nothing after the first part: the name must be equal to it.
        self._last = rest.pop() if rest else None
        self._middle = rest

    def matches(self, name: str) -> bool:
        """Whether `name` is one of those that the pattern stands for."""
        if self._last is None:
            return name == self._first
        if not name.startswith(self._first):
            return False
        at, end = len(self._first), len(name) - len(self._last)
        for part in self._middle:
            # The leftmost place leaves most for the parts that follow.
            found = name.find(part, at, max(at, end))
            if found < 0:
                return False
            at = found + len(part)
        return at <= end and name.endswith(self._last)


class Grant:
    """What one key may do."""

    __slots__ = (
        "_channels",
        "_covered",
        "_types",
        "channels",
        "is_everywhere",
        "name",
        "public_key",
        "revoked",
        "roles",
        "types",
    )

    def __init__(
        self,
        name: str,
        public_key: str,
        *,
        roles: Sequence[str],
        channels: Sequence[str],
        types: Sequence[str],
        revoked: bool = False,
    ) -> None:
        self.name = name
        self.public_key = public_key
        # As they stand in the file.
        self.roles = tuple(roles)
        self.channels = tuple(channels)
        self.types = tuple(types)
        self.revoked = revoked
        # Whether there is no channel and no type that it does not reach.
        self.is_everywhere = "*" in channels and "*" in types
        self._channels = tuple(map(Pattern, channels))
        self._types = tuple(map(Pattern, types))
        # (channel, type) -> whether it reaches there: asked again and again for a few pairs.
        self._covered: dict[tuple[str, str], bool] = {}

    def has(self, role: str) -> bool:
        """Whether it has this role; an admin has them all."""
        return role in self.roles or ADMIN in self.roles

    def covers(self, channel: str, type: str) -> bool:
        """Whether it reaches the jobs of this channel and type; to it, there are no others."""
        if self.is_everywhere:
            return True
        covered = self._covered.get((channel, type))
        if covered is None:
            covered = _any(self._channels, channel) and _any(self._types, type)
            if len(self._covered) >= _REMEMBERED_MOST:
                self._covered.clear()
            self._covered[channel, type] = covered
        return covered


def _any(patterns: tuple[Pattern, ...], name: str) -> bool:
    return any(pattern.matches(name) for pattern in patterns)


class Policy:
    """The grants of all keys."""

    def __init__(self, grants: Sequence[Grant] = ()) -> None:
        # All of them, revoked ones too, in the order of the file.
        self.grants = tuple(grants)
        self._by_key = {each.public_key: each for each in grants if not each.revoked}

    def grant(self, public_key: str) -> Grant | None:
        """What this key may do; None if it is unknown or revoked: nothing at all."""
        return self._by_key.get(public_key)


def load(path: str | os.PathLike[str]) -> Policy:
    """The policy in a file; raises PolicyError."""
    try:
        with Path(path).open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read()
    except OSError as error:
        raise PolicyError(f"policy {path}: {error.strerror or error}") from None
    if os.name == "posix" and mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PolicyError(
            f"policy {path}: its mode is {mode & 0o777:04o}, so others can give themselves rights; "
            f"chmod go-w {path}"
        )
    return parse(content, f"policy {path}")


def parse(content: bytes, source: str = "policy") -> Policy:
    """The policy that TOML says; raises PolicyError, which names the `source`."""
    try:
        tables = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PolicyError(f"{source} is not TOML: {error}") from None
    keys = tables.pop("keys", {})
    if tables:
        raise PolicyError(f"{source}: {next(iter(tables))!r} is not known: keys are [keys.NAME]")
    if not isinstance(keys, dict):
        raise PolicyError(f"{source}: keys is not a table of tables [keys.NAME]")
    grants: dict[str, Grant] = {}
    for name, table in keys.items():
        try:
            grant = _grant(name, table)
            if grant.public_key in grants:
                raise ValueError(f"{grants[grant.public_key].name} has the same public_key")
        except ValueError as error:
            raise PolicyError(f"{source}: key {name!r}: {error}") from None
        grants[grant.public_key] = grant
    return Policy(tuple(grants.values()))


def _grant(name: str, table: Any) -> Grant:
    if not NAME.fullmatch(name):
        raise ValueError("a name has letters, digits, _ and -, at most 64")
    if not isinstance(table, dict):
        raise ValueError("not a table")
    for field in table:
        if field not in _FIELDS:
            raise ValueError(f"{field!r} is not known; there are {', '.join(sorted(_FIELDS))}")
    for field in ("public_key", "roles", "channels", "types"):
        if field not in table:
            raise ValueError(f"{field} is missing")
    if not is_key(table["public_key"]):
        raise ValueError("public_key is not 40 characters of Z85")
    revoked = table.get("revoked", False)
    if not isinstance(revoked, bool):
        raise ValueError("revoked is true or false")
    roles = _texts(table, "roles")
    for role in roles:
        if role not in ROLES:
            raise ValueError(f"there is no role {role!r}; there are {', '.join(ROLES)}")
    channels, types = _texts(table, "channels"), _texts(table, "types")
    return Grant(
        name,
        table["public_key"],
        roles=roles,
        channels=channels,
        types=types,
        revoked=revoked,
    )


def _texts(table: dict[str, Any], field: str) -> list[str]:
    values = table[field]
    if not isinstance(values, list) or not all(isinstance(v, str) and v for v in values):
        raise ValueError(f'{field} is a list of texts, like ["*"]')
    return values
