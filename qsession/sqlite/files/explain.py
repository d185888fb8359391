"""Explanations of SQLite's errors, with advice."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
from typing import Any

from qsession.errors import (
    SQLITE_CANTOPEN,
    SQLITE_CORRUPT,
    SQLITE_FULL,
    SQLITE_IOERR,
    SQLITE_IOERR_SHORT_READ,
    SQLITE_NOTADB,
    SQLITE_READONLY,
    sqlite_code,
)
from qsession.sqlite.files.read_only import is_stranded, path_of

_FOR_ONE_CONNECTION = 8
"""Descriptors of a connection that is opened, and of the lock files."""


def explain(error: Exception, database: str, query_only: bool = False) -> Exception:
    """The same error with the same code, and with cause and advice added to its message.

    ``query_only``: whether the application has set ``PRAGMA query_only``.
    """
    code = sqlite_code(error)
    remedy = hint(error, database) if isinstance(error, sqlite3.Error) else None
    if remedy is not None and query_only and code == SQLITE_READONLY:
        remedy = "PRAGMA query_only is ON; a listener or this session set it"
    if remedy is None:
        return error
    explained: Any = type(error)(f"{error}: {remedy}")
    explained.sqlite_errorcode = getattr(error, "sqlite_errorcode", code)  # Python 3.10 has none
    explained.sqlite_errorname = getattr(error, "sqlite_errorname", "")
    explained.__cause__ = error
    return explained  # type: ignore[no-any-return]


def hint(error: sqlite3.Error, database: str) -> str | None:
    """The cause of an error and advice; None if the error is clear in itself."""
    code = sqlite_code(error)
    path = path_of(database)
    if code in (SQLITE_READONLY, SQLITE_CANTOPEN) and is_stranded(path):
        return (
            f"{database!r} has committed changes in its '-wal' file, which cannot be read from a "
            "read-only folder; make the folder writable, or copy both files to a writable one"
        )
    if code == SQLITE_READONLY:
        return f"{database!r} can be read but not written: {_why_read_only(database, path)}"
    if code in (SQLITE_CANTOPEN, SQLITE_IOERR) and (odd := _what_else(path)) is not None:
        return f"{path!r} is {odd}"
    if code == SQLITE_CANTOPEN:
        folder = os.path.dirname(path) or "."
        if _is_missing(folder):
            return f"the folder {folder!r} does not exist"
        if "mode=ro" in database and _is_missing(path):
            return f"the file {path!r} does not exist, and mode=ro in the URL does not create it"
        closed = _file_beside(path, os.R_OK | os.W_OK)
        if closed is not None:
            return f"{closed!r}, which belongs to it, may not be read and written by this user"
        if _lacks_descriptors():
            return (
                f"{database!r} cannot be opened, because this process may open no more files; "
                "close some, such as engines that are not in use, or raise the limit (ulimit -n)"
            )
        return f"{database!r} cannot be opened; check the permissions of the file and its folder"
    if code == SQLITE_NOTADB:
        return f"{database!r} is not an SQLite database, or it is encrypted"
    if code == SQLITE_CORRUPT and "malformed database schema" in str(error):
        return (
            f"SQLite {sqlite3.sqlite_version} of this Python does not understand part of the "
            f"schema of {database!r}. A newer SQLite may have written it: use the same version as "
            "the application. If the error remains, see https://sqlite.org/recovery.html"
        )
    if code == SQLITE_CORRUPT:
        return f"{database!r} is damaged; see https://sqlite.org/recovery.html, or restore a backup"
    if getattr(error, "sqlite_errorcode", None) == SQLITE_IOERR_SHORT_READ:
        return (
            f"{database!r} or one of its files ends too soon: it was deleted, replaced or cut "
            "while a program had it open; stop all programs that have used it, and try again"
        )
    if code == SQLITE_IOERR:
        return (
            f"the system could not read or write {database!r} or one of its files; check the "
            "disk, quotas and limits on file sizes"
        )
    if code == SQLITE_FULL:
        return (
            f"the disk has no space left for {database!r}, or the limit of PRAGMA max_page_count "
            "is reached; the transaction was not written"
        )
    return None


def warn_of_old_wal(path: str) -> str:
    """A sentence about the WAL that a replaced file has left; empty if there is none.

    SQLite cannot tell that it belongs to another file
    (https://sqlite.org/howtocorrupt.html#_mispairing_database_files_and_hot_journals_).
    """
    wal = f"{path}-wal"
    try:
        is_empty = os.path.getsize(wal) == 0
    except OSError:  # there is none
        return ""
    if is_empty:
        return ""
    return (
        f" {wal!r} may belong to the old file, and SQLite plays it back over the new one: stop all "
        f"programs that use the file, remove {wal!r}, and put the new file in its place again."
    )


def _lacks_descriptors() -> bool:
    """Whether the descriptors that are left are too few for a connection."""
    opened: list[int] = []
    try:
        while len(opened) < _FOR_ONE_CONNECTION:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)
    finally:
        for each in opened:
            os.close(each)
    return False


def _is_missing(path: str) -> bool:
    try:
        os.stat(path)
    except OSError as error:
        return isinstance(error, FileNotFoundError)  # other errors: no permission, for example
    return False


def _why_read_only(database: str, path: str) -> str:
    if "mode=ro" in database or "immutable=1" in database:
        return "its URL makes it read-only"
    if not os.access(path, os.W_OK):
        return "the file is read-only for this user"
    folder = os.path.dirname(os.path.abspath(path))
    if not os.access(folder, os.W_OK):
        return f"its folder {folder!r} is read-only for this user, and SQLite needs a file there"
    closed = _file_beside(path, os.W_OK)
    if closed is not None:
        return f"{closed!r}, which belongs to it, is read-only for this user"
    return "the file system or the file is read-only"


def _what_else(path: str) -> str | None:
    """What a path leads to, if it is no file and cannot become one."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        target = os.path.realpath(path)
        folder = os.path.dirname(target)
        if os.path.islink(path) and _is_missing(folder):
            return f"a symbolic link to {target!r}, and the folder {folder!r} does not exist"
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            return f"no path that can be followed: {error.strerror}"
        return None
    if stat.S_ISDIR(mode):
        return "a folder"
    return None if stat.S_ISREG(mode) else "a device or a pipe, and not a file"


def _file_beside(path: str, access: int) -> str | None:
    """A file of the WAL that this user may not use so, as another user has created it."""
    for each in (f"{path}-wal", f"{path}-shm"):
        if os.path.exists(each) and not os.access(each, access):
            return each
    return None
