"""What a connection is set to, and what it is open on. In the connection's thread.

A "connect" listener may have set factories for rows and texts: nothing here goes by them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, NamedTuple

from qsession.errors import (
    SQLITE_BUSY,
    SQLITE_CANTOPEN,
    SQLITE_IOERR,
    SQLITE_READONLY,
    sqlite_code,
)
from qsession.sqlite.files.filesystem import file_identity, refuse_network, warn_of_links

OFF, NORMAL, FULL = 0, 1, 2
"""Values of ``PRAGMA synchronous``."""


class Sync(Enum):
    """Who sees to it that a COMMIT is on the disk."""

    SHARED = "one fsync of ours for all who committed before it began"
    SQLITE = "SQLite, in each COMMIT"
    NOBODY = "nobody: a listener, the application or durability='normal' says so"


def prepare(raw: sqlite3.Connection, synchronous: int) -> bool:
    """WAL mode and durability, before listeners; False if another process is in the way.

    Where WAL is impossible (a read-only file or folder) reads still work, and a write says why not.
    """
    path = databases(raw)["main"]
    refuse_network(path)
    warn_of_links(path)
    try:
        raw.execute(f"PRAGMA synchronous={synchronous}")
        (mode,) = raw.execute("PRAGMA journal_mode").fetchone()
        if mode not in ("wal", "memory"):
            raw.execute("PRAGMA journal_mode=WAL").fetchone()
        # The first read opens the WAL, and holds a shared lock from then on. Without it another
        # connection that is closed takes itself for the last one and locks the file
        # (https://sqlite.org/wal.html, 8); and to a statement that meets this lock while it is
        # compiled, SQLite says "no such table" instead of "database is locked".
        raw.execute("PRAGMA schema_version").fetchone()
    except Exception as error:
        code = sqlite_code(error)
        if code == SQLITE_BUSY:
            return False
        if code not in (SQLITE_READONLY, SQLITE_IOERR, SQLITE_CANTOPEN):
            raise
    return True


class Found(NamedTuple):
    """A connection as its "connect" listeners have left it."""

    path: str
    sync: Sync
    has_attached: bool
    only_reads: bool
    """Whether ``PRAGMA query_only`` is on."""


def make_ready(raw: sqlite3.Connection, shares: bool) -> Found:
    """After listeners: what is ours to set, and what they have set.

    ``shares``: this engine shares its fsyncs.

    `prepare` has set synchronous=FULL. A listener that has set NORMAL or OFF wants no waiting.
    """
    if raw.isolation_level is not None:  # whatever a listener made of it: BEGIN is ours to send
        raw.isolation_level = None  # this commits, so it must not be set inside a transaction
    raw.execute("PRAGMA busy_timeout=0")  # interrupt() does not end a wait inside of SQLite
    path = databases(raw)["main"]
    if path and pragma(raw, "locking_mode") == "exclusive":
        raise sqlite3.OperationalError(
            "A 'connect' listener sent PRAGMA locking_mode=EXCLUSIVE, which allows only one "
            "connection to the file, but an engine uses several: remove it"
        )
    found = Found(path, Sync.SQLITE, bool(attached(raw)), bool(pragma(raw, "query_only")))
    level = pragma(raw, "synchronous")
    if level in (OFF, NORMAL):
        return found._replace(sync=Sync.NOBODY)
    shares = shares and level == FULL and bool(path) and not found.has_attached
    if shares and pragma(raw, "journal_mode") == "wal":
        raw.execute(f"PRAGMA synchronous={NORMAL}")
        return found._replace(sync=Sync.SHARED)
    return found


def sync_after_setting(raw: sqlite3.Connection, sync: Sync, name: str) -> Sync:
    """Who syncs from here on, after the application has set something.

    A transaction over attached files needs SQLite's own syncs, to be one transaction
    (https://sqlite.org/lang_attach.html).
    """
    raw.execute("PRAGMA busy_timeout=0")
    if raw.in_transaction:  # the level may not be changed in it; an attached file has its own
        return sync
    if name == "synchronous":
        return Sync.NOBODY if pragma(raw, "synchronous") in (OFF, NORMAL) else Sync.SQLITE
    if sync is Sync.SHARED and (attached(raw) or pragma(raw, "journal_mode") != "wal"):
        raw.execute(f"PRAGMA main.synchronous={FULL}")
        return Sync.SQLITE
    return sync


def set_back(raw: sqlite3.Connection, settings: dict[str, Any]) -> None:
    """Set PRAGMAs to what they were before their user set them."""
    for name, value in settings.items():
        raw.execute(f"PRAGMA {name}={value}")


def databases(raw: sqlite3.Connection) -> dict[str, str]:
    """The files of a connection: of ``main``, of ``temp`` once it is used, and attached ones."""
    with plain_cursor(raw) as cursor:
        return {name: file for _, name, file in cursor.execute("PRAGMA database_list")}


def attached(raw: sqlite3.Connection) -> list[str]:
    """The files of attached databases."""
    return [path for name, path in databases(raw).items() if name not in ("main", "temp")]


def attached_to_itself(raw: sqlite3.Connection) -> bool:
    """Whether a connection has attached its own file: then its write lock is in its own way."""
    main = file_identity(databases(raw)["main"])
    return main is not None and any(file_identity(path) == main for path in attached(raw))


def pragma(raw: sqlite3.Connection, name: str) -> Any:
    """The value of a PRAGMA."""
    with plain_cursor(raw) as cursor:
        row = cursor.execute(f"PRAGMA {name}").fetchone()
    return None if row is None else row[0]


@contextmanager
def plain_cursor(raw: sqlite3.Connection) -> Iterator[sqlite3.Cursor]:
    """A cursor whose rows are tuples of Python's own types, whatever factories are set."""
    text_factory, raw.text_factory = raw.text_factory, str
    cursor = raw.cursor()
    cursor.row_factory = None
    try:
        yield cursor
    finally:
        cursor.close()
        raw.text_factory = text_factory
