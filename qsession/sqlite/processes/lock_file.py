"""LockFile: a file beside a database that one process at a time locks.

The system frees the locks of a process that dies. The files are never removed: after a removal, one
process could lock the old file and another one the new file.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import weakref
from contextlib import suppress

from qsession.sqlite.processes import fork, locking

NOTE = 32
"""The length of a note in bytes: the holder of the turn, or the last checkpoint."""
_NOTES = {
    "-qsession": re.compile(rb"\d+ +\d+\.\d{6} *\n"),
    "-qsession-checkpoint": re.compile(rb"[0-9a-f]{16} \d+ *\n"),
}
"""The form of the notes, by the ends of the file names."""
_NEVER_ELSEWHERE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""Flags for open(): do not follow a symbolic link, and do not wait for a pipe."""
_warned: set[str] = set()

logger = logging.getLogger("qsession")


class LockFile:
    """An open lock file; it is closed when it is collected. Every error is an ``OSError``."""

    def __init__(self, name: str, database: os.stat_result) -> None:
        self._file = _open(name, database)
        self._close = weakref.finalize(self, os.close, self._file)
        self._close.atexit = False
        fork.parts.add(self)

    @property
    def is_open(self) -> bool:
        return self._close.alive

    def close(self) -> None:
        """Close it. This frees the lock, unless a child of this process has the file open."""
        self._close()

    def begin_anew(self) -> None:
        """In a forked child: only close it. The lock stays with the parent."""
        self._close()

    def try_lock(self) -> bool:
        """Lock it, if it is free."""
        return locking.system.try_lock(self._descriptor())

    def lock(self) -> None:
        """Wait for it; blocks the thread."""
        locking.system.lock(self._descriptor())

    def unlock(self) -> None:
        """Release the lock."""
        locking.system.unlock(self._descriptor())

    def write_note(self, note: str) -> None:
        """Write a note for the next holder. On a full disk there is none."""
        with suppress(OSError):
            os.lseek(self._descriptor(), locking.system.note_at, os.SEEK_SET)
            os.write(self._file, f"{note:<{NOTE - 1}}\n".encode())

    def _descriptor(self) -> int:
        if not self._close.alive:  # the number may now belong to another file
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._file


def read_note(name: str) -> list[str]:
    """The words of the note in a lock file; empty if there is none, or no such file."""
    try:
        file = _open_regular(name, os.O_RDONLY)
        try:
            os.lseek(file, locking.system.note_at, os.SEEK_SET)
            return os.read(file, NOTE).decode("ascii").split()
        finally:
            os.close(file)
    except (OSError, ValueError):
        return []


def names(path: str) -> tuple[str, str]:
    """The lock files of the turn on a database: ``next`` and ``hold``."""
    return f"{path}-qsession-next", f"{path}-qsession"


def checkpoint_name(path: str) -> str:
    """The lock file for checkpoints of a database."""
    return f"{path}-qsession-checkpoint"


def migrate_name(path: str) -> str:
    """The lock file for migrations of a database."""
    return f"{path}-qsession-migrate"


def follow_name(path: str) -> str:
    """The lock file of the copy that follows a database."""
    return f"{path}-qsession-follow"


def all_names(path: str) -> tuple[str, ...]:
    """All files that qsession creates beside a database."""
    return (*names(path), checkpoint_name(path), migrate_name(path), follow_name(path))


def _open(name: str, database: os.stat_result) -> int:
    """Open a lock file. All users who may write to the database may lock it, as with -wal and -shm.

    Only a new file gets the mode of the database, and from root its owner. An existing file is left
    as it is, because it could be any file of this user.
    """
    mode = database.st_mode & 0o666
    try:
        try:
            made = _open_regular(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError:
            return _open_regular(name, os.O_RDWR)
    except OSError as error:
        if os.path.lexists(name) and name not in _warned:
            _warned.add(name)
            logger.warning(
                "The lock file %r cannot be used (%s). Processes write to the database without a "
                "fair order: SQLite's own lock decides which is next. Remove the file, or give "
                "this user the same permissions for it as for the database.",
                name,
                error.strerror,
            )
        raise
    with suppress(OSError, AttributeError):  # no owners and modes on this system or file system
        os.fchmod(made, mode)
        if os.geteuid() == 0:
            os.fchown(made, database.st_uid, database.st_gid)
    return made


def _open_regular(name: str, flags: int, mode: int = 0) -> int:
    """Open a file that has no other name, or is certainly a lock file.

    A hard link by another user could lead to any file, into which a note would be written. A hard
    link by a backup program leads to a lock file.
    """
    file = os.open(name, flags | _NEVER_ELSEWHERE | getattr(os, "O_BINARY", 0), mode)
    found = os.fstat(file)
    if stat.S_ISREG(found.st_mode) and (found.st_nlink == 1 or _is_ours(name, file, found.st_size)):
        return file
    os.close(file)
    raise OSError(errno.EPERM, "it is not a regular file, or it has hard links", name)


def _is_ours(name: str, file: int, size: int) -> bool:
    """Whether a file has the content of a lock file: nothing, or a note."""
    note = next((form for end, form in _NOTES.items() if name.endswith(end)), None)
    if note is None:
        return size == 0
    if size != locking.system.note_at + NOTE:
        return False
    os.lseek(file, locking.system.note_at, os.SEEK_SET)
    return note.fullmatch(os.read(file, NOTE)) is not None
