"""LockFiles: a turnstile of two lock files beside a database, for the processes that write to it.

Whoever wants to write locks ``next``, then ``hold``, and gives ``next`` back. So one process at a
time waits for ``hold``, and gets it; the one that had it before has to queue up at ``next`` again,
behind those that wait there. The kernel frees the locks of a process that dies (flock(2)).
"""

from __future__ import annotations

import os
import time
import weakref
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: SQLite's own lock, with retries and without an order
    fcntl = None  # type: ignore[assignment]


class LockFiles:
    """The two files, and what can be done with them; every error is an ``OSError``."""

    def __init__(self, path: str) -> None:
        self._open: list[int] = []
        self._close = weakref.finalize(self, _close, self._open)
        self._close.atexit = False
        if fcntl is None:
            raise OSError("no flock on this system")
        mode = os.stat(path).st_mode & 0o666
        try:
            for name in names(path):
                self._open.append(_open(name, mode))
        except OSError:
            self.close()
            raise
        self._next, self._hold = self._open

    def close(self) -> None:
        """Close both; what this process had locked is free, unless a fork shares it."""
        self._close()

    def try_lock(self) -> bool:
        """Get the turn if nobody has it or waits. If not, this may be the one at ``hold`` now."""
        try:
            fcntl.flock(self._next, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(self._hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self._got_it()
        return True

    def wait(self) -> None:
        """Wait for the turn; blocks the thread."""
        fcntl.flock(self._next, fcntl.LOCK_EX)
        fcntl.flock(self._hold, fcntl.LOCK_EX)
        self._got_it()

    def _got_it(self) -> None:
        fcntl.flock(self._next, fcntl.LOCK_UN)
        with suppress(OSError):  # a full disk: then the next process cannot say who had it
            note = f"{os.getpid():<10} {time.time():<20.6f}\n"
            os.pwrite(self._hold, note.encode(), 0)

    def unlock(self) -> None:
        """Give the turn back."""
        fcntl.flock(self._hold, fcntl.LOCK_UN)

    def wanted(self) -> bool:
        """Whether another process waits behind this one."""
        try:
            fcntl.flock(self._next, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._next, fcntl.LOCK_UN)
        return False


def names(path: str) -> tuple[str, str]:
    """The lock files of a database: ``next`` and ``hold``."""
    return f"{path}-qsession-next", f"{path}-qsession"


def last_holder(path: str) -> tuple[int, float] | None:
    """The process that took the turn on a file last, and when; None if that cannot be told."""
    try:
        pid, since = Path(names(path)[1]).read_text(encoding="ascii").split()
        return int(pid), float(since)
    except (OSError, ValueError):
        return None


def _open(name: str, mode: int) -> int:
    """Whoever may write to the database may lock: as SQLite does with its -wal and -shm."""
    found = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
    if os.fstat(found).st_uid == os.geteuid():
        os.fchmod(found, mode)
    return found


def _close(files: list[int]) -> None:
    while files:
        os.close(files.pop())
