"""Copies of a database that is in use: whole or not at all, checked, and in nobody's way."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from threading import get_ident

PAGES = 256
"""Pages that are copied between two calls of ``progress``."""
BUSY_TIMEOUT = 30.0
"""Seconds to wait for a lock of another process, where the database is not in WAL mode."""

Progress = Callable[[int, int], object]
"""Told how many pages are done, of how many."""


class BackupError(sqlite3.DatabaseError):
    """The copy is not what it should be; it was removed."""


def back_up(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    replace: bool = False,
    progress: Progress | None = None,
) -> None:
    """Copy what is committed in ``source`` now to the file ``target``.

    It is SQLite's online backup (https://sqlite.org/backup.html) out of one snapshot: writers go
    on, and what they commit meanwhile is not in it. Without the snapshot each commit of another
    process would make the copy start again. The copy is written beside ``target``, checked by
    ``PRAGMA integrity_check``, flushed to disk and renamed, so that ``target`` is never half there.

    Blocks the thread. Raises ``FileExistsError`` if ``target`` exists and is not to be replaced,
    ``FileNotFoundError`` if ``source`` does not, ``OSError`` or ``sqlite3.Error`` for what went
    wrong with either, and :class:`BackupError` if the copy is damaged, as then the source may be.
    Whatever is raised, ``KeyboardInterrupt`` included, leaves ``target`` as it was.
    """
    source, target = Path(source), Path(target)
    if not source.is_file():
        raise FileNotFoundError(f"there is no database {str(source)!r}")
    if target.exists() and target.samefile(source):
        raise FileExistsError(f"{str(target)!r} is the database itself: name a new file")
    if target.exists() and not replace:
        raise FileExistsError(f"{str(target)!r} exists already: name a new file")
    if not target.parent.is_dir():
        raise NotADirectoryError(f"there is no folder {str(target.parent)!r} for the copy")
    unfinished = target.with_name(f"{target.name}.{os.getpid()}-{get_ident()}.unfinished")
    try:
        _copy(source, unfinished, progress)
        _flush(unfinished)
        if replace:
            unfinished.replace(target)
        else:
            os.link(unfinished, target)  # unlike a rename it fails where a file has come into being
        _flush(target.parent)
    finally:
        for end in ("", "-journal", "-wal", "-shm"):
            Path(f"{unfinished}{end}").unlink(missing_ok=True)


def _copy(source: Path, unfinished: Path, progress: Progress | None) -> None:
    def report(_status: int, remaining: int, total: int) -> None:
        if progress is not None:
            progress(total - remaining, total)

    address = f"{source.absolute().as_uri()}?mode=rw"  # "ro" could not read beside nobody else
    try:
        reader = sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None)
    except sqlite3.OperationalError:
        address = f"{source.absolute().as_uri()}?mode=ro"
        reader = sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None)
    with closing(reader), closing(sqlite3.connect(unfinished)) as copy:
        if reader.execute("PRAGMA journal_mode").fetchone() == ("wal",):
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM sqlite_master").fetchone()
        reader.backup(copy, pages=PAGES, progress=report)
        problems = [line for (line,) in copy.execute("PRAGMA integrity_check(3)")]
        if problems != ["ok"]:
            raise BackupError(
                f"the copy of {str(source)!r} is damaged, and was removed; the database itself may "
                f"be: {'; '.join(problems)}"
            )


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows has no way to flush a folder
    flags = os.O_RDWR if os.name == "nt" else os.O_RDONLY
    opened = os.open(path, flags)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
