"""LockFiles: a turnstile of two lock files beside a database, for the processes that write to it.

Whoever wants to write locks ``next``, then ``hold``, and gives ``next`` back. So one process at a
time waits for ``hold``, and gets it; the one that had it before has to queue up at ``next`` again,
behind those that wait there. The system frees the locks of a process that dies.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import time
import weakref
from contextlib import suppress

from qsession.sqlite.processes import locking

system: locking.Locking = locking.of_system()
NOTE = 32
"""Bytes of the note that says who has the turn."""
_NEVER_ELSEWHERE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""Neither through a symbolic link, nor waiting for the other end of a pipe."""
_warned: set[str] = set()

logger = logging.getLogger("qsession")


class LockFiles:
    """The two files, and what can be done with them; every error is an ``OSError``."""

    def __init__(self, path: str) -> None:
        self._open: list[int] = []
        self._close = weakref.finalize(self, _close, self._open)
        self._close.atexit = False
        self._system = system
        database = os.stat(path)
        try:
            for name in names(path):
                self._open.append(_open(name, database))
        except OSError:
            self.close()
            raise
        self._next, self._hold = self._open
        self._has_next = False

    def close(self) -> None:
        """Close both; what this process had locked is free, unless a fork shares it."""
        self._close()

    def try_lock(self) -> bool:
        """Get the turn if nobody has it or waits. If not, this may be the one at ``hold`` now."""
        self._has_next = self._has_next or self._system.try_lock(self._next)
        if not (self._has_next and self._system.try_lock(self._hold)):
            return False
        self._got_it()
        return True

    def wait(self) -> None:
        """Wait for the turn; blocks the thread."""
        if not self._has_next:  # Windows would let it wait for itself
            self._system.lock(self._next)
            self._has_next = True
        self._system.lock(self._hold)
        self._got_it()

    def give_up(self) -> None:
        """Do not be the one at ``hold`` any more: somebody else may be."""
        if self._has_next:
            self._system.unlock(self._next)
            self._has_next = False

    def _got_it(self) -> None:
        self._system.unlock(self._next)
        self._has_next = False
        note = f"{os.getpid():<10} {time.time():<20.6f}\n".encode()
        with suppress(OSError):  # a full disk: then the next process cannot say who had it
            os.lseek(self._hold, self._system.note_at, os.SEEK_SET)
            os.write(self._hold, note)

    def unlock(self) -> None:
        """Give the turn back."""
        self._system.unlock(self._hold)

    def wanted(self) -> bool:
        """Whether another process waits behind this one, as far as the system can tell."""
        try:
            if not self._system.try_lock(self._next):
                return True
            self._system.unlock(self._next)
        except OSError:  # it is short of locks
            return False
        return False


def names(path: str) -> tuple[str, str]:
    """The lock files of a database: ``next`` and ``hold``."""
    return f"{path}-qsession-next", f"{path}-qsession"


def last_holder(path: str) -> tuple[int, float] | None:
    """The process that took the turn on a file last, and when; None if that cannot be told."""
    try:
        file = _open_regular(names(path)[1], os.O_RDONLY)
        try:
            os.lseek(file, system.note_at, os.SEEK_SET)
            pid, since = os.read(file, NOTE).split()
        finally:
            os.close(file)
        return int(pid), float(since)
    except (OSError, ValueError):
        return None


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
                "The lock file %r cannot be used (%s). Processes that write to the database go on "
                "without the order that it keeps: SQLite's own lock decides who is next. Remove "
                "what lies there, or give this user the rights to it that it has to the database.",
                name,
                error.strerror,
            )
        raise
    if hasattr(os, "fchown") and os.geteuid() == 0:
        with suppress(OSError):  # a file system without owners
            os.fchown(made, database.st_uid, database.st_gid)
    if hasattr(os, "fchmod"):
        with suppress(OSError):  # a file system without modes
            os.fchmod(made, mode)
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
    raise OSError(errno.EPERM, "it is no regular file, or has another name", name)


def _is_ours(name: str, file: int, size: int) -> bool:
    """Whether a file holds what a lock file does: ``next`` nothing, ``hold`` a note."""
    if name.endswith("-next"):
        return size == 0
    if size != system.note_at + NOTE:
        return False
    os.lseek(file, system.note_at, os.SEEK_SET)
    return re.fullmatch(rb"\d+ +\d+\.\d{6} *\n", os.read(file, NOTE)) is not None


def _close(files: list[int]) -> None:
    while files:
        os.close(files.pop())
