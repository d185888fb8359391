"""WalFile: syncs the WAL of a database from the page cache to the disk."""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress

from qsession.sqlite.files.filesystem import file_identity

PATIENCE = 5.0
"""Seconds to wait for a descriptor, if the process has none left."""
RETRY = 0.01
"""Seconds between two attempts to get one."""


def fsync(file: int) -> None:
    """Sync a file to the disk. Tests replace this function with a slow or failing disk."""
    with suppress(ImportError, AttributeError, OSError):  # not macOS, or not supported by the file
        import fcntl

        # The fsync of macOS leaves data in the cache of the disk.
        fcntl.fcntl(file, getattr(fcntl, "F_FULLFSYNC"))  # noqa: B009  # unknown to mypy on Linux
        return
    _sync_data(file)


_sync_data = getattr(os, "fdatasync", os.fsync)
"""As in SQLite, fdatasync if there is one: it syncs the size, but not the modification time."""


class DatabaseGone(Exception):
    """The database was deleted or replaced while it was open."""


class WalFile:
    """A separate descriptor of the WAL of a database. One thread uses it.

    SQLite locks bytes of the database and of the -shm file, but not of the WAL. So closing this
    descriptor drops no lock of SQLite (https://sqlite.org/howtocorrupt.html, 2.2).
    """

    def __init__(self, database: str, identity: tuple[int, ...]) -> None:
        self.database = database
        self._name = f"{database}-wal"
        self._of = identity
        self._file: int | None = None
        self._identity: tuple[int, ...] | None = None

    def sync(self) -> bool:
        """Sync the WAL; False if there is none.

        If there is none, the last connection has closed and deleted it after a checkpoint that
        synced the database (https://sqlite.org/wal.html#the_wal_file). If the WAL was restarted in
        place, its earlier content is already in the database, and synced.
        """
        self.look()
        identity = file_identity(self._name)
        if self._file is not None and identity == self._identity:
            fsync(self._file)
            return True
        self.close()
        try:
            # Open for writing, because Windows flushes only such files.
            file = _opened(self._name, os.O_RDWR | getattr(os, "O_BINARY", 0))
        except FileNotFoundError:
            return False
        self._file, found = file, os.fstat(file)
        fsync(file)
        _sync_folder(os.path.dirname(self._name) or ".")  # the name of a new file
        self._identity = found.st_dev, found.st_ino  # last, so that a failed sync is repeated
        return True

    def look(self) -> None:
        """Raise :class:`DatabaseGone` unless the database is still the file that was opened.

        SQLite continues to use a file and its WAL that no longer have a name
        (https://sqlite.org/howtocorrupt.html, 4.2).
        """
        found = file_identity(self.database)
        if found != self._of:
            raise DatabaseGone("deleted" if found is None else "replaced by another file")

    def close(self) -> None:
        """Close it and forget its identity, since another file may get the same inode."""
        file, self._file, self._identity = self._file, None, None
        if file is not None:
            os.close(file)


def _opened(path: str, flags: int) -> int:
    """A new descriptor. That there is none left says nothing about the disk, so one is waited for.

    SQLite needs no new one for the sync of a WAL.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return os.open(path, flags)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or time.monotonic() > deadline:
                raise
        time.sleep(RETRY)


def _sync_folder(folder: str) -> None:
    """Sync a folder. As in SQLite, it is not an error if a folder cannot be opened or synced."""
    try:
        file = os.open(folder, os.O_RDONLY)
        try:
            fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        if error.errno == errno.EIO:
            raise
