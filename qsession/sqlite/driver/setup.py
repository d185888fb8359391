"""Ready: what a connection is set to, and what it is open on. In the connection's thread.

A "connect" listener may have set factories for rows and texts: nothing here goes by them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from qsession.errors import SQLITE_BUSY, SQLITE_CANTOPEN, SQLITE_IOERR, SQLITE_READONLY, sqlite_code
from qsession.sqlite.files.filesystem import refuse_network, warn_of_links


def prepare(raw: sqlite3.Connection, synchronous: str) -> bool:
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
    except sqlite3.OperationalError as error:
        code = sqlite_code(error)
        if code == SQLITE_BUSY:
            return False
        if code not in (SQLITE_READONLY, SQLITE_IOERR, SQLITE_CANTOPEN):
            raise
    return True


def make_ready(raw: sqlite3.Connection, role: str) -> str:
    """After listeners: how it waits, what it may do; and the file it is open on."""
    if raw.isolation_level is not None:  # whatever a listener made of it: BEGIN is ours to send
        raw.isolation_level = None  # this commits, so it must not be set inside a transaction
    keep_ready(raw, role)
    return databases(raw)["main"]


def keep_ready(raw: sqlite3.Connection, role: str) -> None:
    """How it waits and what it may do, after a PRAGMA that may have changed that."""
    raw.execute("PRAGMA busy_timeout=0")  # interrupt() does not end a wait inside of SQLite
    if role == "reader":
        raw.execute("PRAGMA query_only=ON")


def databases(raw: sqlite3.Connection) -> dict[str, str]:
    """The files of a connection: of ``main``, of ``temp`` once it is used, and attached ones."""
    with plain_cursor(raw) as cursor:
        return {name: file for _, name, file in cursor.execute("PRAGMA database_list")}


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
