"""A database in WAL mode that lies where nothing can be written.

To read it SQLite wants to create a file beside it, and fails
(https://sqlite.org/wal.html, "Read-Only Databases"). With ``immutable=1`` it does without, and
trusts that nobody changes the file. Another user may be able to, so every statement is followed by
a look at the file: nothing is returned that was read while it changed.
"""

from __future__ import annotations

import os
from urllib.parse import unquote, urlsplit

_WAL_FORMAT = b"\x02\x02"
"""Bytes 18 and 19 of a database in WAL mode (https://sqlite.org/fileformat.html)."""


def frozen_uri(database: str, uri: bool) -> str | None:
    """The URI to read a database by that cannot be opened as it is; None if it can."""
    path, query = database, ""
    if uri:
        parts = urlsplit(database)
        path, query = unquote(parts.path), parts.query
    if "immutable=" in query or not _needs_folder(path) or _has_content(f"{path}-wal"):
        return None
    address = database if uri else f"file:{_quote(path)}"
    return f"{address}{'&' if query else '?'}immutable=1"


def path_of(database: str) -> str:
    """The file behind a path or a URI."""
    return unquote(urlsplit(database).path) if database.startswith("file:") else database


def is_stranded(path: str) -> bool:
    """Whether a database has changes beside it that cannot be read where it lies."""
    return _needs_folder(path) and _has_content(f"{path}-wal")


def _needs_folder(path: str) -> bool:
    """Whether SQLite would have to write into a folder that is read-only, only to read."""
    if os.access(os.path.dirname(os.path.abspath(path)), os.W_OK) or os.path.exists(f"{path}-shm"):
        return False
    return is_wal(path)


def is_wal(path: str) -> bool:
    """Whether a file is a database in WAL mode, by its header."""
    try:
        with open(path, "rb") as file:
            return file.read(20)[18:] == _WAL_FORMAT
    except OSError:
        return False


def fingerprint(path: str) -> tuple[int, ...] | None:
    """What changes when a frozen database does; None where there is no such file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    changed = found.st_mtime_ns, found.st_ctime_ns, found.st_size, _has_content(f"{path}-wal")
    return found.st_dev, found.st_ino, *changed


def _has_content(path: str) -> bool:
    return os.path.exists(path) and os.path.getsize(path) > 0


def _quote(path: str) -> str:
    """As https://sqlite.org/uri.html, section 3.1 says."""
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
