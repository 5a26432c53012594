"""Changes to a policy file: keys are added and revoked, the rest stays as people wrote it.

A key is added at the end, and revoked by a line below its table's heading. What comes out is read
as the broker will read it, before it takes the file's place in one step.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from broker.policy import Grant, Policy, PolicyError, load, parse

_MODE = 0o644  # public keys alone; what counts is who can write it
_HEAD = "# Who may do what: docs/security.md. The broker reads it again at SIGHUP."


def add(path: Path, grant: Grant) -> None:
    """Add a key to the policy in `path`, which is made if there is none; raises PolicyError."""
    if any('"' in each or "\\" in each for each in (*grant.channels, *grant.types)):
        raise PolicyError('a channel or type with " or \\ in it is to be written by hand')

    def appended(text: str, policy: Policy) -> str:
        for known in policy.grants:
            if known.name == grant.name:
                raise PolicyError(f"policy {path}: there is a key {grant.name!r} already")
        return f"{text.rstrip() or _HEAD}\n\n{_table(grant)}"

    with _locked(path):
        _change(path, appended)


def revoke(path: Path, name: str) -> Grant:
    """Revoke a key of the policy in `path`; give what it was allowed. Raises PolicyError."""
    found: list[Grant] = []

    def revoked(text: str, policy: Policy) -> str:
        found.extend(each for each in policy.grants if each.name == name)
        if not found:
            known = ", ".join(each.name for each in policy.grants) or "none"
            raise PolicyError(f"policy {path}: there is no key {name!r}; there are {known}")
        if found[0].revoked:
            return text
        blank = "[ \\t]*"
        table = rf"^{blank}\[{blank}keys{blank}\.{blank}[\"']?{name}[\"']?{blank}\].*$"
        changed = re.sub(table, r"\g<0>\nrevoked = true", text, count=1, flags=re.MULTILINE)
        if not _is_revoked(changed, name):
            raise PolicyError(f"policy {path}: {name!r} is to be revoked by hand: revoked = true")
        return changed

    with _locked(path):
        _change(path, revoked)
    return found[0]


def _is_revoked(text: str, name: str) -> bool:
    try:
        return any(each.name == name and each.revoked for each in parse(text.encode()).grants)
    except PolicyError:  # it says otherwise already
        return False


def _table(grant: Grant) -> str:
    lists = [(field, getattr(grant, field)) for field in ("roles", "channels", "types")]
    lines = [f"[keys.{grant.name}]", f'public_key = "{grant.public_key}"']
    lines += [f"{field} = {_list(values)}" for field, values in lists]
    return "\n".join(lines) + "\n"


def _list(values: Sequence[str]) -> str:
    return json.dumps(list(values), ensure_ascii=False)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep others from changing the policy at the same time."""
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise PolicyError(f"policy {path}: {error.strerror or error}") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _change(path: Path, change: Callable[[str, Policy], str]) -> None:
    """Put what `change` makes of the file in its place."""
    path = path.resolve()
    exists = path.exists()
    before = load(path) if exists else Policy()
    text = path.read_text(encoding="utf-8") if exists else ""
    changed = change(text, before)
    parse(changed.encode(), f"policy {path}")
    if changed == text:
        return
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        mode = path.stat().st_mode & 0o777 if exists else _MODE
        number = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(number, "w", encoding="utf-8") as file:
            os.fchmod(number, mode)
            file.write(changed)
            file.flush()
            os.fsync(number)
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise PolicyError(f"policy {path}: {error.strerror or error}") from None
