"""The file of a target on SQLite, which a copy removes only if it has made it.

Others may open a file as soon as it is there, another copy for instance, and wait for their turn to
write. What is removed under them takes their rows along. So a copy removes its file only while
nobody else can use it, by SQLite's own lock, and leaves it empty where others have it open.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from qsession.errors import CopyError
from qsession.sqlite.files.filesystem import file_identity

_BESIDE = ("", "-journal", "-wal", "-shm", "-qsession", "-qsession-next")
_MODE = 0o644
"""As SQLite makes files: https://sqlite.org/compile.html, SQLITE_DEFAULT_FILE_PERMISSIONS."""


@dataclass
class Opened:
    """The file before SQLite opens it."""

    file: Path
    made: bool
    """Whether this copy has made it."""
    identity: tuple[int, ...] | None

    def refuse_another(self) -> None:
        """Raise :class:`CopyError` if it is not the file by this name. The caller may write."""
        if file_identity(str(self.file)) != self.identity:
            raise CopyError(
                f"nothing was copied: another copy, which failed, removed {self.file} before this "
                "one could write. Start this one again"
            )

    def drop_unused(self) -> None:
        """Remove it if nobody has written to it: SQLite writes when it is switched to WAL mode."""
        if self.made and self.file.exists() and not self.file.stat().st_size:
            remove(self.file)


def open_or_make(path: Path) -> Opened:
    """The file that a path leads to, made if there is none. SQLite says why that is impossible."""
    file = Path(os.path.realpath(path))
    try:
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, _MODE))
    except OSError:
        return Opened(file, False, file_identity(str(file)))
    return Opened(file, True, file_identity(str(file)))


def refuse_to_make(path: Path | None) -> None:
    """Raise ``OSError`` if no file can be made at a path where there is none."""
    folder = None if path is None else Path(os.path.realpath(path)).parent
    if folder is None or not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"you may not create files in the folder {str(folder)!r}")


def remove(file: Path) -> bool:
    """Remove an empty database, with what is beside it; False if it is not empty, or in use.

    In WAL mode each connection that has looked into the file keeps the lock away, also one that
    idles. A program that has opened it and not looked yet is not noticed.
    """
    address = f"{file.absolute().as_uri()}?mode=rw"
    try:
        with closing(sqlite3.connect(address, uri=True, timeout=0, isolation_level=None)) as raw:
            raw.execute("PRAGMA locking_mode=EXCLUSIVE").fetchone()
            raw.execute("BEGIN EXCLUSIVE")  # the lock outlives the transaction
            (found,) = raw.execute("SELECT count(*) FROM sqlite_master").fetchone()
            raw.execute("COMMIT")
            if found:
                return False
            # Or the end of this connection would remove the log of whatever has the name by then.
            raw.execute("PRAGMA journal_mode=DELETE").fetchone()
            if os.name != "nt":
                _unlink(file)
        if os.name == "nt":  # which removes no file that anybody has open, so no lock is needed
            _unlink(file)
    except (sqlite3.Error, PermissionError):
        return False
    return True


def _unlink(file: Path) -> None:
    for end in _BESIDE:
        Path(f"{file}{end}").unlink(missing_ok=True)
