"""LockFiles: a turnstile of two lock files beside a database, for the processes that write to it.

Whoever wants to write locks ``next``, then ``hold``, and gives ``next`` back. So one process at a
time waits for ``hold``, and gets it; the one that had it before has to queue up at ``next`` again,
behind those that wait there. The system frees the locks of a process that dies.
"""

from __future__ import annotations

import os
import time
import weakref
from contextlib import suppress

from . import locking

system: locking.Locking = locking.of_system()
NOTE = 32
"""Bytes of the note that says who has the turn."""


class LockFiles:
    """The two files, and what can be done with them; every error is an ``OSError``."""

    def __init__(self, path: str) -> None:
        self._open: list[int] = []
        self._close = weakref.finalize(self, _close, self._open)
        self._close.atexit = False
        self._system = system
        mode = os.stat(path).st_mode & 0o666
        try:
            for name in names(path):
                self._open.append(_open(name, mode))
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
        with open(names(path)[1], "rb") as file:
            file.seek(system.note_at)
            pid, since = file.read(NOTE).split()
        return int(pid), float(since)
    except (OSError, ValueError):
        return None


def _open(name: str, mode: int) -> int:
    """Whoever may write to the database may lock: as SQLite does with its -wal and -shm."""
    found = os.open(name, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), mode)
    if hasattr(os, "geteuid") and os.fstat(found).st_uid == os.geteuid():
        os.fchmod(found, mode)
    return found


def _close(files: list[int]) -> None:
    while files:
        os.close(files.pop())
