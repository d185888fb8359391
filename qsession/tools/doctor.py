"""Checks of a database file, which do not change it."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from qsession.errors import (
    SQLITE_BUSY,
    SQLITE_CANTOPEN,
    SQLITE_CORRUPT,
    SQLITE_LOCKED,
    SQLITE_NOTADB,
    SQLITE_READONLY,
    sqlite_code,
)
from qsession.sqlite.files.explain import hint
from qsession.sqlite.files.filesystem import NETWORK, file_system, hard_links
from qsession.sqlite.processes.lock_file import all_names
from qsession.tools import integrity
from qsession.tools.integrity import quoted

WAL_LARGE = 64 * 1024 * 1024
"""Bytes."""
FREE_PAGES = 0.25
"""The empty part of the file above which VACUUM is suggested."""
FREE_BYTES = 10 * 1024 * 1024
BUSY_TIMEOUT = 5.0
"""Seconds to wait for a lock of another process."""
_WAL_FORMAT = b"\x02\x02"
"""Bytes 18 and 19 of a database in WAL mode (https://sqlite.org/fileformat.html)."""
_MAGIC = b"SQLite format 3\0"
_RECOVERY = "see https://sqlite.org/recovery.html, or restore a backup."
SPACE = 64 * 1024 * 1024
"""Free bytes on the disk below which the WAL has too little room to grow."""
_SYNCHRONOUS = ("OFF", "NORMAL", "FULL", "EXTRA")
_FIXED = (3, 51, 3)
_BACKPORTS = ((3, 44, 6), (3, 50, 7))
"""The versions of SQLite without the bug of https://sqlite.org/wal.html#walresetbug."""
_PROBLEMS = 5
"""The number of problems reported for a damaged database."""
_STALE = "_alembic_tmp_"


class Level(IntEnum):
    """How much a finding matters."""

    OK = 0
    NOTE = 1
    """For information; nothing to do."""
    WARNING = 2
    PROBLEM = 3
    BLIND = 4
    """It could not be examined."""


@dataclass(frozen=True)
class Finding:
    """The result of one check, with advice."""

    check: str
    level: Level
    found: str
    advice: str = ""


def examine(path: str, quick: bool = False) -> list[Finding]:
    """Run all checks on an existing file; ``quick`` skips those that read all of it.

    The file is opened read-only, in one snapshot, so applications in other processes can continue.
    An application in this process must not have it open: see `_is_wal`. The file and its journal
    are not changed; SQLite may rebuild the ``-shm`` of an old ``-wal``. Blocks the thread.
    """
    findings = [_of_file(path), *_of_links(path), _of_file_system(path), _of_space(path)]
    findings += [_of_library(), *_of_lock_files(path)]
    if reason := _unreadable(path):
        return [*findings, reason]
    findings += [_of_mode(path), *_of_journal(path), _of_wal(path)]
    unused = _is_wal(path) and not os.path.exists(f"{path}-wal")
    content = _of_database(path, quick, unused)
    if unused and os.path.exists(f"{path}-wal"):  # a program has opened it meanwhile
        content = _of_database(path, quick, unused=False)
    return findings + content


def _of_database(path: str, quick: bool, unused: bool) -> list[Finding]:
    """The checks by SQLite. ``unused``: no program has the file open. It is then opened as
    immutable, because a read-only connection would leave a ``-wal`` and a ``-shm`` beside it.
    """
    address = f"{Path(path).absolute().as_uri()}?mode=ro{'&immutable=1' * unused}"
    findings: list[Finding] = []
    try:
        with closing(
            sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None)
        ) as raw:
            raw.execute("BEGIN")
            for check in _CHECKS if quick else (*_CHECKS, *_OF_ALL):
                try:
                    findings += check(raw)
                except sqlite3.Error as error:
                    if sqlite_code(error) != SQLITE_CORRUPT:
                        raise
                    unread = _unread(error, path)  # but what the other checks look at may be there
                    if unread not in findings:
                        findings.append(unread)
    except sqlite3.Error as error:
        findings.append(_unread(error, path))
    return findings


def _unread(error: sqlite3.Error, path: str) -> Finding:
    found = f"SQLite cannot read it: {error}"
    return Finding("content", Level.BLIND, found, _remedy(error, path))


def _unreadable(path: str) -> Finding | None:
    """Why the file cannot be read as a database; None if SQLite may try."""
    try:
        with open(path, "rb") as file:
            start = file.read(len(_MAGIC))
    except OSError as error:
        advice = "Run this as a user who may read the file. Its content was not examined."
        return Finding("content", Level.BLIND, f"it cannot be opened: {error.strerror}", advice)
    if start in (b"", _MAGIC):
        return None
    advice = (
        "Is it the right file? Only its own application can read an encrypted database. If it was "
        "a plain database, its beginning was overwritten: restore a backup."
    )
    found = "it does not have the header of an SQLite database"
    return Finding("content", Level.BLIND, found, advice)


def _remedy(error: sqlite3.Error, path: str) -> str:
    """Advice if SQLite cannot read the file. Recovery is only for damage."""
    code = sqlite_code(error)
    if code in (SQLITE_BUSY, SQLITE_LOCKED):
        return "Another process holds an exclusive lock: `qsession who` shows which one."
    if _is_hot(path) and code in (SQLITE_READONLY, SQLITE_CANTOPEN):
        return (
            "A transaction was not finished, and doctor does not change the file. Let the "
            "application open it, which rolls the transaction back; then run doctor again."
        )
    if code == SQLITE_NOTADB:
        return f"Its beginning is damaged. Keep a copy of it, and {_RECOVERY}"
    told = hint(error, path)
    if code == SQLITE_CORRUPT:
        return f"{told}."
    if integrity.lacks_the_application(error):
        return "This may not be damage: the application may register what is missing here."
    return f"The content was not examined: {told or 'see the message'}."


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def in_bytes(number: float) -> str:
    """A size in a suitable unit."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number / 1024:,.1f} KiB"


def _of_file(path: str) -> Finding:
    folder = os.path.dirname(os.path.abspath(path))
    found = in_bytes(_size(path))
    if not _size(path):
        found = "empty: it has no tables yet"
    for what, name in (("file", path), ("folder", folder)):
        if not os.access(name, os.W_OK):
            advice = f"This user cannot write to the {what} {name!r}, so writes fail."
            return Finding("file", Level.WARNING, f"{found}, read-only for this user", advice)
    return Finding("file", Level.OK, found)


def _of_links(path: str) -> Iterator[Finding]:
    if others := hard_links(path):
        advice = (
            "Open it by one name only: each name has its own WAL, and commits are lost if two are "
            "in use. Replace the others with symbolic links or copies."
        )
        yield Finding("hard links", Level.WARNING, f"it has {others:,} other names", advice)


def _of_file_system(path: str) -> Finding:
    kind = file_system(path)
    if kind is None:
        return Finding("file system", Level.NOTE, "unknown: the system does not say")
    if kind in NETWORK:
        advice = "WAL needs a local disk: move the file to one, or the data to PostgreSQL."
        return Finding("file system", Level.PROBLEM, f"{kind}, over the network", advice)
    return Finding("file system", Level.OK, kind)


def _of_space(path: str) -> Finding:
    """A commit needs room for the WAL, and a checkpoint for the content of the WAL."""
    try:
        free = shutil.disk_usage(os.path.dirname(os.path.abspath(path))).free
    except OSError as error:
        return Finding("disk space", Level.NOTE, f"unknown: {error.strerror}")
    wal = _size(f"{path}-wal")
    found = f"{in_bytes(free)} free"
    if free < max(SPACE, wal):
        advice = "Free some space: a commit fails if the disk is full, and writes nothing."
        return Finding("disk space", Level.WARNING, found, advice)
    if free < _size(path) + wal:
        advice = "This is less than the size of the database: a copy here, or VACUUM, will fail."
        return Finding("disk space", Level.NOTE, found, advice)
    return Finding("disk space", Level.OK, found)


def _is_fixed(version: tuple[int, ...]) -> bool:
    """Whether SQLite has the fix of the WAL-reset bug, perhaps as a backport."""
    return version >= _FIXED or any(
        version[:2] == patched[:2] and version >= patched for patched in _BACKPORTS
    )


def _of_library() -> Finding:
    found = f"{sqlite3.sqlite_version}, of this Python"
    if _is_fixed(sqlite3.sqlite_version_info):
        return Finding("SQLite", Level.OK, found)
    advice = (
        "Before 3.51.3 (3.50.7, 3.44.6), SQLite has a rare race between two checkpoints and a "
        "writer that can damage a database (https://sqlite.org/wal.html#walresetbug). Update "
        "SQLite when you can."
    )
    return Finding("SQLite", Level.NOTE, found, advice)


def _of_lock_files(path: str) -> Iterator[Finding]:
    for name in all_names(path):
        if os.path.exists(name) and not os.access(name, os.R_OK | os.W_OK):
            advice = f"Give this user the same permissions for {name!r} as for the database."
            found = "this user cannot open one of them"
            yield Finding("lock files", Level.WARNING, found, advice)


def _of_journal(path: str) -> Iterator[Finding]:
    size = _size(f"{path}-journal")
    if _is_hot(path):
        advice = (
            "A transaction is in progress, or its process was killed. In that case SQLite rolls "
            "it back when the file is next opened. Never delete the journal."
        )
        yield Finding("rollback journal", Level.WARNING, f"present, {in_bytes(size)}", advice)


def _is_hot(path: str) -> bool:
    """Whether there is a journal to roll back. In journal mode PERSIST, a finished journal has
    zeros in its header (https://sqlite.org/fileformat.html, 3).
    """
    try:
        with open(f"{path}-journal", "rb") as file:
            return any(file.read(8))
    except FileNotFoundError:
        return False
    except OSError:
        return True  # it cannot be looked at


def _of_wal(path: str) -> Finding:
    size = _size(f"{path}-wal")
    if size > WAL_LARGE:
        advice = (
            "A long read transaction keeps it from being reused, or no program runs checkpoints. "
            "Close readers when they are done; qsession names them in its log."
        )
        return Finding("WAL size", Level.WARNING, in_bytes(size), advice)
    return Finding("WAL size", Level.OK, in_bytes(size))


def _of_mode(path: str) -> Finding:
    if _is_wal(path):
        return Finding("journal mode", Level.OK, "WAL")
    advice = "qsession switches the file to WAL when it opens it."
    return Finding("journal mode", Level.NOTE, "rollback journal", advice)


def _is_wal(path: str) -> bool:
    """Whether a file is a database in WAL mode, according to its header.

    SQLite itself would create a ``-wal`` to tell. If this process has the database open, reading
    the header drops its locks (https://sqlite.org/howtocorrupt.html, 2.2).
    """
    try:
        with open(path, "rb") as file:
            return file.read(20)[18:] == _WAL_FORMAT
    except OSError:
        return False


def _of_synchronous(raw: sqlite3.Connection) -> Iterator[Finding]:
    (level,) = raw.execute("PRAGMA synchronous").fetchone()
    found = f"{_SYNCHRONOUS[level]} by default; qsession sets it according to durability="
    yield Finding("synchronous", Level.OK, found)


def _of_pages(raw: sqlite3.Connection) -> Iterator[Finding]:
    (pages,) = raw.execute("PRAGMA page_count").fetchone()
    (free,) = raw.execute("PRAGMA freelist_count").fetchone()
    (size,) = raw.execute("PRAGMA page_size").fetchone()
    found = f"{free:,} of {pages:,} pages of {size:,} bytes"
    if free > pages * FREE_PAGES and free * size > FREE_BYTES:
        advice = (
            f"VACUUM returns {in_bytes(free * size)} to the disk. It blocks all writers, and needs "
            "up to twice the size of the file (https://sqlite.org/lang_vacuum.html)."
        )
        yield Finding("free pages", Level.NOTE, found, advice)
    else:
        yield Finding("free pages", Level.OK, found)


def _of_migrations(raw: sqlite3.Connection) -> Iterator[Finding]:
    tables = [name for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type='table'")]
    for name in tables:
        if name.startswith(_STALE):
            whole = name.removeprefix(_STALE)
            (rows,) = raw.execute(f"SELECT count(*) FROM {quoted(name)}").fetchone()  # noqa: S608
            if whole in tables:
                advice = (
                    f"A batch migration failed. If {whole!r} is complete, drop {name!r}; if not, "
                    f"the rows are in {name!r}."
                )
            else:
                advice = (
                    f"A batch migration failed after it dropped {whole!r}: rename {name!r} to it."
                )
            found = f"{name!r} was left by a migration, with {rows:,} rows"
            yield Finding("migrations", Level.PROBLEM, found, advice)
    if "alembic_version" in tables:
        versions = [str(each) for (each,) in raw.execute("SELECT * FROM alembic_version")]
        yield Finding("migrations", Level.OK, f"at {', '.join(versions) or 'the beginning'}")


def _of_content(raw: sqlite3.Connection) -> Iterator[Finding]:
    found = integrity.check(raw, _PROBLEMS)
    if found.problems:
        advice = f"Stop writing, keep a copy, and {_RECOVERY}"
        if found.of_indexes:
            advice = (
                "The tables themselves are intact. If the application replaces a built-in function "
                "or collation, such as NOCASE, only the application can check these indexes. If "
                "not, keep a copy, and rebuild them with REINDEX."
            )
        yield Finding("integrity", Level.PROBLEM, "; ".join(found.problems), advice)
    elif found.unchecked:
        told = _without_application(found.unchecked, found.lacking)
        yield Finding("integrity", Level.NOTE, told)
    else:
        yield Finding("integrity", Level.OK, "ok")
    if found.violations:
        advice = "The file is intact. These rows were written without the constraint: correct them."
        yield Finding("constraints", Level.WARNING, "; ".join(found.violations), advice)


def _of_foreign_keys(raw: sqlite3.Connection) -> Iterator[Finding]:
    """Check table by table, since one that cannot be checked would hide problems of others."""
    broken: dict[tuple[str, str], int] = {}
    mismatched: list[Finding] = []
    unchecked: list[str] = []
    lacking: dict[str, None] = {}
    unread: dict[str, str] = {}
    for child in integrity.tables(raw):
        try:
            for _, _, parent, _ in raw.execute(f"PRAGMA foreign_key_check({quoted(child)})"):
                broken[child, parent] = broken.get((child, parent), 0) + 1
        except sqlite3.Error as error:
            if "foreign key mismatch" in str(error):
                advice = "With foreign keys on, writes fail. Make the referenced columns UNIQUE."
                mismatched.append(Finding("foreign keys", Level.WARNING, str(error), advice))
            elif integrity.lacks_the_application(error):
                unchecked.append(child)
                lacking[str(error)] = None
            elif sqlite_code(error) == SQLITE_CORRUPT:
                unread[child] = str(error)
            else:
                raise
    for (child, parent), count in broken.items():
        advice = f"PRAGMA foreign_key_check({quoted(child)}) lists them; delete or correct them."
        found = f"{count:,} rows of {child!r} refer to rows of {parent!r} that do not exist"
        yield Finding("foreign keys", Level.PROBLEM, found, advice)
    yield from mismatched
    for child, told in unread.items():
        advice = f"Keep a copy of the file, and {_RECOVERY}"
        found = f"those of {child!r} could not be checked: {told}"
        yield Finding("foreign keys", Level.PROBLEM, found, advice)
    if unchecked:
        yield Finding("foreign keys", Level.NOTE, _without_application(unchecked, lacking))
    elif not (broken or mismatched or unread):
        yield Finding("foreign keys", Level.OK, "ok")


def _without_application(tables: Sequence[str], lacking: Iterable[str]) -> str:
    return (
        f"ok, except that {', '.join(map(repr, tables))} cannot be fully checked without the "
        f"functions and collations that the application registers: {', '.join(lacking)}"
    )


_CHECKS: tuple[Callable[[sqlite3.Connection], Iterator[Finding]], ...] = (
    _of_synchronous,
    _of_pages,
    _of_migrations,
)
_OF_ALL = (_of_content, _of_foreign_keys)
"""Those that read the whole file."""
