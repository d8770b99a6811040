"""Opening the database file: who may read it, how durable it is, and which schema it has.

The schema grows by numbered files in ``migrations/``. ``PRAGMA user_version`` holds the number of the last one that was
applied; each is applied with its number in one transaction, so a process killed on the way leaves the schema before or
after it. There is no way back but a copy of the file made before.

Statements keep to SQLite 3.37, the first with STRICT tables.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.resources
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ..errors import ConfigError, RelayError, ServerBusy

APPLICATION_ID: Final = 0x524C4353
"""``RLCS``, written into the head of the file, so that a database of another program is not taken for ours."""

BUSY_TIMEOUT_S: Final = 5.0
"""How long a statement waits for another process that writes. A write takes milliseconds; a worker thread cannot be
cancelled, so this also bounds how long closing the store may take."""

MEMORY: Final = ":memory:"


@functools.cache
def migrations() -> tuple[tuple[int, str], ...]:
    """Every migration as (number, SQL), in order. The numbers run from 1 without a gap."""
    folder = importlib.resources.files(__package__) / "migrations"
    found = sorted(
        (int(entry.name.partition("_")[0]), entry.read_text(encoding="utf-8"))
        for entry in folder.iterdir()
        if entry.name.endswith(".sql")
    )
    assert [number for number, _ in found] == list(range(1, len(found) + 1)), "migrations are numbered from 1"
    return tuple(found)


def open_database(path: Path | str, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> sqlite3.Connection:
    """Open or create a store's file and bring its schema up to date. Blocks; for a worker thread.

    A new file is readable by its owner only (0600), and so is a new directory that has to hold it (0700); what is there
    already keeps its mode.

    Args:
      path: the file, or ``":memory:"``.
      busy_timeout_s: how long any statement waits for another process.

    Returns: a connection without implicit transactions, usable from one thread at a time.

    Raises:
      ConfigError: the file cannot be used, and what to do about it.
      ServerBusy: another process held it for too long.
    """
    name = str(path)
    if name != MEMORY:
        _make_private(Path(path))
    deadline = time.monotonic() + busy_timeout_s
    with explained(name):
        while True:
            try:
                return _connect(name, busy_timeout_s)
            except sqlite3.OperationalError as error:
                # Two processes that open a fresh file at once meet in the change to WAL, where SQLite says "busy"
                # without asking its busy handler: both would wait for each other.
                if not _is_busy(error) or time.monotonic() >= deadline:
                    raise
                time.sleep(_RETRY_S)


def _connect(name: str, busy_timeout_s: float) -> sqlite3.Connection:
    connection = sqlite3.connect(name, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)
    try:
        _configure(connection, name)
        _migrate(connection, name)
    except BaseException:
        connection.close()
        raise
    return connection


def _make_private(path: Path) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # SQLite would create it with the umask's idea of a mode; its companions (-wal, -shm) take the mode of the file.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise ConfigError(
            f"the store cannot be opened for writing ({error.strerror}); name a file that this user may write",
            source=str(path),
        ) from error


def _configure(connection: sqlite3.Connection, name: str) -> None:
    # Cheap and first: everything after it would also fail on a file that is no database, with less telling errors.
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    is_empty = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0
    if application_id != APPLICATION_ID and not is_empty:
        raise ConfigError("this is a database of another program; name another file for the store", source=name)
    damage = connection.execute("PRAGMA quick_check(1)").fetchone()
    if damage[0] != "ok":
        raise ConfigError(_DAMAGED, source=name)
    # WAL: readers and a writer do not wait for each other. FULL: what was committed is still there after a power cut.
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    # Old keys are overwritten, not left behind in free pages.
    connection.execute("PRAGMA secure_delete = ON")


def _migrate(connection: sqlite3.Connection, name: str) -> None:
    steps = migrations()
    check_schema(connection, name)
    for number, sql in steps:
        if number <= schema_version(connection):
            continue
        with transaction(connection):
            # Another process may have been faster while we waited for the lock.
            if number > schema_version(connection):
                for statement in statements(sql):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number:d}")


def schema_version(connection: sqlite3.Connection) -> int:
    """The number of the last migration that was applied; 0 for an empty file."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def check_schema(connection: sqlite3.Connection, name: str) -> None:
    """Refuse a store that a newer relaycore has taken over.

    Raises:
      ConfigError: it has a migration that we do not know.
    """
    found, known = schema_version(connection), len(migrations())
    if found > known:
        raise ConfigError(
            f"the store was written by a newer relaycore (schema {found}, this one knows {known}); "
            "run that version, or restore a copy made before the upgrade",
            source=name,
        )


def statements(sql: str) -> Iterator[str]:
    """The statements of a script, one by one: ``executescript`` would commit our transaction first."""
    statement = ""
    for line in sql.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """A write transaction, rolled back by any exception. Takes the write lock at once, waiting for other processes."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # A failed COMMIT (disk full) may or may not have ended the transaction by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


_DAMAGED: Final = (
    "this is not a store, or it is damaged; restore a copy of it, or move it away to begin with an empty one"
)

_DAMAGE_CODES: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_BUSY_CODES: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})


_RETRY_S: Final = 0.01
"""Pause before a file that another process is making is tried again."""


def _is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _BUSY_CODES


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn errors of SQLite into ours. ``name`` is the file's."""
    try:
        yield
    except sqlite3.Error as error:
        raise explain(error, name) from error


def explain(error: sqlite3.Error, name: str) -> RelayError:
    """What an error of SQLite means to whoever runs the relay. The text of the error is part of it."""
    # The low byte is the error, the rest its variety (https://www.sqlite.org/rescode.html).
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if _is_busy(error):
        return ServerBusy("The store is busy: another process is writing to it")
    if code in _DAMAGE_CODES:
        return ConfigError(_DAMAGED, source=name)
    if code == sqlite3.SQLITE_CANTOPEN:
        return ConfigError(f"the store cannot be opened ({error})", source=name)
    return ServerBusy(f"The store cannot be used right now: {error}")
