"""The settings and files of a connection. In the connection's thread.

A "connect" listener may have set factories for rows and texts. The functions here ignore them.
"""

from __future__ import annotations

import itertools
import os
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

_explained = itertools.count(1)
OFF, NORMAL, FULL = 0, 1, 2
"""Values of ``PRAGMA synchronous``."""
_NO_CHECKPOINT_ON_CLOSE = 1006
"""https://sqlite.org/c3ref/c_dbconfig_defensive.html; `sqlite3` has the name since Python 3.12."""


class Sync(Enum):
    """How a COMMIT reaches the disk."""

    SHARED = "by one fsync of qsession for all commits before it"
    SQLITE = "by SQLite, in each COMMIT"
    NOBODY = "not at once, as set by a listener, the application or durability='normal'"


def prepare(raw: sqlite3.Connection, synchronous: int, keeps_wal: bool = False) -> bool:
    """Set WAL mode and durability, before listeners. False if another process holds a lock.

    ``keeps_wal``: the WAL is left as it is, also when this is the last connection that closes. If
    WAL mode is impossible (a read-only file or folder), reads still work, and writes raise the
    error.
    """
    path = databases(raw)["main"]
    refuse_network(path)
    warn_of_links(path)
    if keeps_wal:
        _keep_wal(raw)
    try:
        raw.execute(f"PRAGMA synchronous={synchronous}")
        (mode,) = raw.execute("PRAGMA journal_mode").fetchone()
        if mode not in ("wal", "memory"):
            raw.execute("PRAGMA journal_mode=WAL").fetchone()
        # The first read opens the WAL, and the connection then holds a shared lock. Without that
        # lock, a connection that closes would act as the last one and lock the file
        # (https://sqlite.org/wal.html, 8). If a statement meets such a lock while it is compiled,
        # SQLite says "no such table" instead of "database is locked".
        raw.execute("PRAGMA schema_version").fetchone()
    except Exception as error:
        code = sqlite_code(error)
        if code == SQLITE_BUSY:
            return False
        if code not in (SQLITE_READONLY, SQLITE_IOERR, SQLITE_CANTOPEN):
            raise
    return True


def _keep_wal(raw: sqlite3.Connection) -> None:
    """Run no checkpoint, neither in COMMIT nor when the connection closes.

    Before Python 3.12 the second cannot be turned off: the last connection of all programs moves
    the WAL into the file and deletes it.
    """
    raw.execute("PRAGMA wal_autocheckpoint=0")
    configure = getattr(raw, "setconfig", None)
    if configure is not None:
        configure(_NO_CHECKPOINT_ON_CLOSE, True)


class Found(NamedTuple):
    """The state of a connection after its "connect" listeners."""

    path: str
    sync: Sync
    has_attached: bool
    only_reads: bool
    """Whether ``PRAGMA query_only`` is on."""


def make_ready(raw: sqlite3.Connection, shares: bool) -> Found:
    """After listeners: apply qsession's settings, and return what the listeners have set.

    ``shares``: this engine shares its fsyncs.

    `prepare` has set synchronous=FULL. If a listener has set NORMAL or OFF, commits do not wait.
    """
    if raw.isolation_level is not None:  # qsession itself sends BEGIN
        raw.isolation_level = None  # this commits, so it must not be set inside a transaction
    raw.execute("PRAGMA busy_timeout=0")  # interrupt() does not end a wait inside SQLite
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
    """How commits are synced after the application has set something.

    A transaction over attached files needs SQLite's own syncs
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
    """Restore PRAGMAs to their original values."""
    for name, value in settings.items():
        raw.execute(f"PRAGMA {name}={value}")


def explaining(sql: str) -> str:
    """A text that lists the program of a statement, and that no connection has prepared before.

    ``sqlite3`` keeps prepared statements by their text. EXPLAIN does not check whether the schema
    has changed since it was prepared, so such a one would list an old program, and read memory that
    belonged to the old schema. The same holds for the first EXPLAIN after a change by another
    connection: send a statement that reads the file before it.
    """
    return f"EXPLAIN /* {next(_explained)} */ {sql}"


def databases(raw: sqlite3.Connection) -> dict[str, str]:
    """The files of a connection: ``main``, ``temp`` once it is used, and attached ones.

    The path is in the encoding of the file system. That need not be UTF-8, as a text must be.
    """
    with plain_cursor(raw) as cursor:
        raw.text_factory = bytes
        rows = cursor.execute("PRAGMA database_list").fetchall()
        return {name.decode(): os.fsdecode(file) for _, name, file in rows}


def attached(raw: sqlite3.Connection) -> list[str]:
    """The files of attached databases."""
    return [path for name, path in databases(raw).items() if name not in ("main", "temp")]


def attached_to_itself(raw: sqlite3.Connection) -> bool:
    """Whether a connection has attached its own file, so that it waits for its own lock."""
    main = file_identity(databases(raw)["main"])
    return main is not None and any(file_identity(path) == main for path in attached(raw))


def pragma(raw: sqlite3.Connection, name: str) -> Any:
    """The value of a PRAGMA."""
    with plain_cursor(raw) as cursor:
        row = cursor.execute(f"PRAGMA {name}").fetchone()
    return None if row is None else row[0]


@contextmanager
def plain_cursor(raw: sqlite3.Connection) -> Iterator[sqlite3.Cursor]:
    """A cursor whose rows are tuples of built-in types, independent of any factories."""
    text_factory, raw.text_factory = raw.text_factory, str
    cursor = raw.cursor()
    cursor.row_factory = None
    try:
        yield cursor
    finally:
        cursor.close()
        raw.text_factory = text_factory
