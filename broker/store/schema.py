"""The SQLite file itself: found or made, known to be ours, locked, and of today's form."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

from broker.store.base import StoreError

APPLICATION_ID = int.from_bytes(b"Pnts", "big")
"""What SQLite files of this program carry in their header."""

_LOCK_WAIT_S = 0.5

_TABLES = """
-- Live jobs as they were enqueued, by seq (rows.py describes the blocks).
CREATE TABLE live (
    first INTEGER PRIMARY KEY,
    last INTEGER NOT NULL,
    count INTEGER NOT NULL,
    top_seq INTEGER NOT NULL,
    rows BLOB NOT NULL
);
CREATE TABLE live_gone (
    first INTEGER PRIMARY KEY, gone BLOB NOT NULL, remaining INTEGER NOT NULL
);
-- What happened to live jobs since.
CREATE TABLE attempts (row INTEGER PRIMARY KEY, attempts BLOB NOT NULL);
-- Ended jobs by place, the order in which they are forgotten.
CREATE TABLE ended (
    first INTEGER PRIMARY KEY,
    last INTEGER NOT NULL,
    count INTEGER NOT NULL,
    top_seq INTEGER NOT NULL,
    rows BLOB NOT NULL
);
CREATE TABLE ended_gone (
    first INTEGER PRIMARY KEY, gone BLOB NOT NULL, remaining INTEGER NOT NULL
);
CREATE TABLE places (id TEXT PRIMARY KEY, place INTEGER NOT NULL) WITHOUT ROWID;
-- Who depends on whom, live or ended.
CREATE TABLE edges (
    dependency TEXT, dependent TEXT, PRIMARY KEY (dependency, dependent)
) WITHOUT ROWID;
-- No job that has left the tables above had a higher seq than this.
CREATE TABLE removed (highest_seq INTEGER NOT NULL);
INSERT INTO removed VALUES (0);
"""

VERSION = 1
"""The form of the tables, kept as user_version."""

MIGRATIONS: dict[int, Callable[[sqlite3.Connection], None]] = {}
"""Version -> what makes a file of that version one of the next, inside a transaction."""


def open_file(path: str) -> sqlite3.Connection:
    """Open the file at `path`, made new if there is none, locked until it is closed.

    Raises StoreError, and leaves a file as it is that is not ours.
    """
    _make_if_missing(Path(path))
    try:
        db = sqlite3.connect(
            # As a URI it cannot be made by mistake; absolute, it stays the same after a chdir.
            Path(path).absolute().as_uri() + "?mode=rw",
            uri=True,
            timeout=_LOCK_WAIT_S,
            isolation_level=None,
            # The thread that opens a store may be another than the one that uses it.
            check_same_thread=False,
        )
    except sqlite3.Error as error:
        raise StoreError(f"{path}: cannot be opened: {error}") from error
    try:
        _prepare(db, path)
    except sqlite3.Error as error:
        db.close()
        raise StoreError(explain(path, error)) from error
    except StoreError:
        db.close()
        raise
    return db


def _make_if_missing(path: Path) -> None:
    if path.is_dir():
        raise StoreError(f"{path} is a folder: name a file in it, such as {path / 'pointsman.db'}")
    if path.exists():
        return
    try:
        # Jobs may hold secrets: for the owner alone. SQLite gives the files beside the same mode.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileNotFoundError as error:
        raise StoreError(
            f"{path}: the folder {path.parent} does not exist: make it first"
        ) from error
    except OSError as error:
        raise StoreError(f"{path}: cannot be made: {error.strerror}") from error


def _prepare(db: sqlite3.Connection, path: str) -> None:
    # Exclusive: the lock that keeps a second broker out is the file's own, goes with the process
    # however that ends, and saves the shared-memory file: a fifth of the time of small commits.
    db.execute("PRAGMA locking_mode = EXCLUSIVE")
    is_new = _check_ours(db, path)
    if not os.access(path, os.W_OK):
        raise StoreError(f"{path} is read-only: the broker must be able to write it")
    _pragma(db, "journal_mode = WAL")
    # FULL: every commit is on disk when it returns, on macOS really so.
    _pragma(db, "synchronous = FULL")
    _pragma(db, "fullfsync = ON")
    _pragma(db, "checkpoint_fullfsync = ON")
    # The default, 4 MB of WAL: each checkpoint stops the loop for 5 to 10 ms, at 16000 for 150.
    _pragma(db, "wal_autocheckpoint = 1000")
    # A large transaction's WAL is cut back at the next checkpoint.
    _pragma(db, "journal_size_limit = 67108864")
    _pragma(db, "cache_size = -16384")
    # Pages of forgotten jobs are not overwritten with zeros first, as some builds have it.
    _pragma(db, "secure_delete = OFF")
    db.execute("BEGIN IMMEDIATE")
    try:
        if is_new:
            _make_tables(db)
        else:
            _migrate(db, path)
        db.execute("COMMIT")
    except (sqlite3.Error, StoreError):
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


def _pragma(db: sqlite3.Connection, setting: str) -> None:
    db.execute(f"PRAGMA {setting}").fetchall()


def _check_ours(db: sqlite3.Connection, path: str) -> bool:
    """Say whether the file is empty; raise StoreError if it is something else than a store."""
    application_id, version, tables = db.execute(
        "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_schema)"
        " FROM pragma_application_id, pragma_user_version"
    ).fetchone()
    if application_id == 0 and version == 0 and tables == 0:
        return True
    if application_id != APPLICATION_ID:
        raise StoreError(
            f"{path} is a database of another program: name a file that does not exist yet, "
            "or one that a broker has made"
        )
    if not 0 < version <= VERSION:
        raise StoreError(
            f"{path} has form {version}, and this version of Pointsman knows forms up to "
            f"{VERSION}: use the version that wrote it, or a newer one"
        )
    return False


def _make_tables(db: sqlite3.Connection) -> None:
    for statement in _TABLES.strip().split(";\n"):
        db.execute(statement)
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {VERSION}")


def _migrate(db: sqlite3.Connection, path: str) -> None:
    """Bring the tables to today's form, all steps in the caller's one transaction."""
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    for step in range(version, VERSION):
        if step not in MIGRATIONS:
            raise StoreError(f"{path} has form {version}: no way leads from {step} to {step + 1}")
        MIGRATIONS[step](db)
        db.execute(f"PRAGMA user_version = {step + 1}")


def explain(path: str, error: sqlite3.Error) -> str:
    """Say what is wrong with the file, and what would be right."""
    # The lower byte is the kind of error, the rest its detail.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"{path} is in use by another broker: one file serves one broker at a time"
    if code == sqlite3.SQLITE_NOTADB:
        return f"{path} is not a database: name a file that does not exist yet, or a broker's own"
    if code == sqlite3.SQLITE_CORRUPT:
        return f"{path} is damaged: {error}"
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return f"{path} cannot be read and written: check its and its folder's permissions"
    if code == sqlite3.SQLITE_FULL:
        return f"{path}: the disk is full"
    return f"{path}: {error}"
