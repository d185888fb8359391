"""A file of SQLite that is only read: it keeps its bytes and its journal mode."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from sqlalchemy import URL, exc

from qsession.sqlite.files.read_only import path_of, uri_of

_PATIENCE = 3600
"""Seconds to wait for a program that has locked the file."""


def sqlite_file(url: URL) -> Path | None:
    """The file of a database; None for a server, or for one in memory."""
    if url.get_backend_name() != "sqlite" or not url.database or ":memory:" in url.database:
        return None
    return Path(path_of(url.database))


def untouched(url: URL) -> URL:
    """The URL of a file, so that an engine neither switches it to WAL mode nor moves its WAL.

    A read-only connection can do neither. A file in WAL mode whose WAL is empty is opened as ever:
    a read-only connection leaves files beside it that it may not remove
    (https://sqlite.org/wal.html). A WAL with content stays as it is, also where nobody else has the
    file open: the last connection that may write would move it into the file.

    A transaction that a killed program left half done is rolled back, as by every program that
    opens the file. Raises :class:`sqlalchemy.exc.DatabaseError` for a file that is no database.
    """
    file = sqlite_file(url)
    if file is None or (not _has_wal(file) and mode_of(file) == "wal"):
        return url
    database = url.database or ""
    if not database.startswith("file:"):
        url = url.set(database=uri_of(database))
    return url.update_query_dict({"uri": "true", "mode": "ro"})


def _has_wal(file: Path) -> bool:
    wal = Path(f"{os.path.realpath(file)}-wal")
    return wal.exists() and wal.stat().st_size > 0


def mode_of(file: Path) -> str:
    """The journal mode of a file. Raises :class:`sqlalchemy.exc.DatabaseError`."""
    address = f"{uri_of(str(file))}?mode=rw"
    try:
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=_PATIENCE)) as raw:
            (mode,) = raw.execute("PRAGMA journal_mode").fetchone()
    except sqlite3.Error as error:
        raise exc.DatabaseError(None, None, error) from error
    return str(mode)
