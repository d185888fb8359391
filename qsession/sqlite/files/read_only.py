"""A database in WAL mode in a read-only folder.

To read it, SQLite must create a file beside it, and fails
(https://sqlite.org/wal.html, "Read-Only Databases"). With ``immutable=1`` SQLite does not need that
file, and assumes that the database does not change. Another user may still change it. So the
database is checked after each statement, and no result is returned that was read while it changed.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from urllib.parse import unquote, urlsplit

from qsession.errors import SQLITE_CANTOPEN, SQLITE_READONLY, sqlite_code


def frozen_uri(database: str, uri: bool) -> str | None:
    """The URI for reading a database that cannot be opened normally; None if it can."""
    path, query = database, ""
    if uri:
        parts = urlsplit(database)
        path, query = unquote(parts.path), parts.query
    if "immutable=" in query or not _needs_folder(path) or _has_content(f"{path}-wal"):
        return None
    address = database if uri else uri_of(path)
    return f"{address}{'&' if query else '?'}immutable=1"


def uri_of(path: str) -> str:
    """A path as a URI to which parameters can be added."""
    return f"file:{_quote(path)}"


def path_of(database: str) -> str:
    """The file behind a path or a URI."""
    return unquote(urlsplit(database).path) if database.startswith("file:") else database


def is_stranded(path: str) -> bool:
    """Whether a database has changes in a ``-wal`` file that cannot be read in its folder."""
    return _needs_folder(path) and _has_content(f"{path}-wal")


def _needs_folder(path: str) -> bool:
    """Whether SQLite would have to write into a read-only folder in order to read.

    This asks SQLite. Opening the file by other means would drop the locks of this process on it
    (https://sqlite.org/howtocorrupt.html, 2.2).
    """
    if os.access(os.path.dirname(os.path.abspath(path)), os.W_OK) or os.path.exists(f"{path}-shm"):
        return False
    if not os.access(path, os.R_OK) or os.path.isdir(path) or _has_content(f"{path}-journal"):
        return False
    try:
        with closing(sqlite3.connect(f"file:{_quote(path)}?mode=ro", timeout=0, uri=True)) as raw:
            raw.execute("PRAGMA schema_version").fetchone()
    except sqlite3.Error as error:
        return sqlite_code(error) in (SQLITE_READONLY, SQLITE_CANTOPEN)
    return False


def fingerprint(path: str) -> tuple[int, ...] | None:
    """A value that changes when a frozen database changes; None if there is no such file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    changed = found.st_mtime_ns, found.st_ctime_ns, found.st_size, _has_content(f"{path}-wal")
    return found.st_dev, found.st_ino, *changed


def _has_content(path: str) -> bool:
    return os.path.exists(path) and os.path.getsize(path) > 0


def _quote(path: str) -> str:
    """Quote a path for a URI (https://sqlite.org/uri.html, section 3.1)."""
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
