"""WalFile: the WAL of a database on its way from the page cache to the disk."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from qsession.sqlite.files.filesystem import file_identity


def fsync(file: int) -> None:
    """Bring what was written to a file to the disk. Tests put a slow or a failing disk here."""
    with suppress(ImportError, AttributeError, OSError):  # not macOS, or a file system without it
        import fcntl

        # The fsync of macOS leaves data in the cache of the disk.
        fcntl.fcntl(file, getattr(fcntl, "F_FULLFSYNC"))  # noqa: B009  # unknown to mypy on Linux
        return
    _sync_data(file)


_sync_data = getattr(os, "fdatasync", os.fsync)
"""As SQLite does where there is one: the size counts, the time of the last change does not."""


class DatabaseGone(Exception):
    """The database was deleted or replaced while it was open."""


class WalFile:
    """Our own descriptor of the WAL of a database. One thread uses it.

    SQLite locks bytes of the database and of the -shm file, never of the WAL. So closing this one
    gives up no lock of SQLite's, as closing those would
    (https://sqlite.org/howtocorrupt.html, 2.2).
    """

    def __init__(self, database: str, identity: tuple[int, ...]) -> None:
        self.database = database
        self._name = f"{database}-wal"
        self._of = identity
        self._file: int | None = None
        self._identity: tuple[int, ...] | None = None

    def sync(self) -> bool:
        """Bring it to the disk; False if there is none.

        Then the last connection has closed and deleted it, behind a checkpoint that has synced the
        database (https://sqlite.org/wal.html#the_wal_file). A WAL that was begun anew in place is
        synced as it is: what it held before was in the database, and synced, by then.
        """
        self.look()
        identity = file_identity(self._name)
        if self._file is not None and identity == self._identity:
            fsync(self._file)
            return True
        self.close()
        try:
            # For writing, though nothing is: Windows flushes no other file.
            file = os.open(self._name, os.O_RDWR | getattr(os, "O_BINARY", 0))
        except FileNotFoundError:
            return False
        self._file, found = file, os.fstat(file)
        fsync(file)
        _sync_folder(os.path.dirname(self._name) or ".")  # the name of a new file
        self._identity = found.st_dev, found.st_ino  # only now: what has failed is done again
        return True

    def look(self) -> None:
        """Raise :class:`DatabaseGone` unless the database is the one that was opened.

        SQLite goes on with a file that has no name any more, and with its WAL
        (https://sqlite.org/howtocorrupt.html, 4.2).
        """
        found = file_identity(self.database)
        if found != self._of:
            raise DatabaseGone("deleted" if found is None else "replaced by another file")

    def close(self) -> None:
        """Another file may get the inode of one that is not open any more."""
        file, self._file, self._identity = self._file, None, None
        if file is not None:
            os.close(file)


def _sync_folder(folder: str) -> None:
    """Where a folder cannot be opened, or be synced, it is done without, as SQLite does."""
    try:
        file = os.open(folder, os.O_RDONLY)
        try:
            fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        if error.errno == errno.EIO:
            raise
