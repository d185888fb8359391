"""LockFile: a file beside a database, which one process at a time has locked.

The system frees the locks of a process that dies. The files stay: one that is removed could be
locked twice, by its old and by its new name.
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
"""Bytes of a note: who has the turn, or what was checkpointed last."""
_NOTES = {
    "-qsession": re.compile(rb"\d+ +\d+\.\d{6} *\n"),
    "-qsession-checkpoint": re.compile(rb"[0-9a-f]{16} \d+ *\n"),
}
"""What is in the files that hold a note, by how their names end."""
_NEVER_ELSEWHERE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""Neither through a symbolic link, nor waiting for the other end of a pipe."""
_warned: set[str] = set()

logger = logging.getLogger("qsession")


class LockFile:
    """An open lock file; it is closed when it is forgotten. Every error is an ``OSError``."""

    def __init__(self, name: str, database: os.stat_result) -> None:
        self._file = _open(name, database)
        self._close = weakref.finalize(self, os.close, self._file)
        self._close.atexit = False
        fork.parts.add(self)

    @property
    def is_open(self) -> bool:
        return self._close.alive

    def close(self) -> None:
        """Close it; what this process had locked is free, unless a child of it has it open."""
        self._close()

    def begin_anew(self) -> None:
        """In a forked child: only close it. The lock stays its parent's."""
        self._close()

    def try_lock(self) -> bool:
        """Lock it, if nobody has it locked."""
        return locking.system.try_lock(self._descriptor())

    def lock(self) -> None:
        """Wait for it; blocks the thread."""
        locking.system.lock(self._descriptor())

    def unlock(self) -> None:
        """Let the next one have it."""
        locking.system.unlock(self._descriptor())

    def write_note(self, note: str) -> None:
        """Leave word for the next one. On a full disk there is none."""
        with suppress(OSError):
            os.lseek(self._descriptor(), locking.system.note_at, os.SEEK_SET)
            os.write(self._file, f"{note:<{NOTE - 1}}\n".encode())

    def _descriptor(self) -> int:
        if not self._close.alive:  # by now the number may be that of another file
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
    """The lock file of whoever checkpoints a database."""
    return f"{path}-qsession-checkpoint"


def migrate_name(path: str) -> str:
    """The lock file of whoever migrates a database."""
    return f"{path}-qsession-migrate"


def all_names(path: str) -> tuple[str, ...]:
    """What qsession makes beside a database."""
    return (*names(path), checkpoint_name(path), migrate_name(path))


def _open(name: str, database: os.stat_result) -> int:
    """Whoever may write to the database may lock: as SQLite does with its -wal and -shm.

    Only a file that is made here gets the mode, and from root the owner, of the database: one that
    was found could be any file of this user.
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
    with suppress(OSError, AttributeError):  # a file system, or a system, without owners and modes
        os.fchmod(made, mode)
        if os.geteuid() == 0:
            os.fchown(made, database.st_uid, database.st_gid)
    return made


def _open_regular(name: str, flags: int, mode: int = 0) -> int:
    """Open a file that has this one name only, or is a lock file for certain.

    A link by another user could lead to any file, and a note would be written into that. One by a
    backup that links what has not changed leads to a lock file.
    """
    file = os.open(name, flags | _NEVER_ELSEWHERE | getattr(os, "O_BINARY", 0), mode)
    found = os.fstat(file)
    if stat.S_ISREG(found.st_mode) and (found.st_nlink == 1 or _is_ours(name, file, found.st_size)):
        return file
    os.close(file)
    raise OSError(errno.EPERM, "it is not a regular file, or it has hard links", name)


def _is_ours(name: str, file: int, size: int) -> bool:
    """Whether a file holds what a lock file does: nothing, or a note."""
    note = next((form for end, form in _NOTES.items() if name.endswith(end)), None)
    if note is None:
        return size == 0
    if size != locking.system.note_at + NOTE:
        return False
    os.lseek(file, locking.system.note_at, os.SEEK_SET)
    return note.fullmatch(os.read(file, NOTE)) is not None
