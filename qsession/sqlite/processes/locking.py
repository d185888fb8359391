"""How a lock file is locked on each system.

If the system has flock(2), it is used: it blocks until the lock is free, and the kernel queues the
waiting processes and frees the locks of a process that dies. On Windows portalocker locks the file.
A waiting process tries again every few milliseconds there, and the order is not defined.
"""

from __future__ import annotations

import sys
import time
from typing import Protocol

RETRY = 0.005
"""Seconds between two attempts, if the system cannot wait for a lock."""
MANDATORY = 0x10000
"""The size of the part of a locked file that other processes cannot read on Windows."""


class Locking(Protocol):
    """Exclusive locks on open files; every error is an ``OSError``."""

    note_at: int
    """The offset in a locked file from which other processes can read."""

    def try_lock(self, file: int) -> bool:
        """Lock it, if it is free."""
        ...

    def lock(self, file: int) -> None:
        """Wait for it; blocks the thread."""
        ...

    def unlock(self, file: int) -> None:
        """Release the lock."""
        ...


class Portable:
    """By portalocker."""

    note_at = MANDATORY

    def try_lock(self, file: int) -> bool:
        import portalocker

        try:
            portalocker.lock(
                file, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING
            )
        except portalocker.exceptions.AlreadyLocked:
            return False
        except portalocker.exceptions.LockException as error:
            raise OSError(str(error)) from error
        return True

    def lock(self, file: int) -> None:
        while not self.try_lock(file):
            time.sleep(RETRY)

    def unlock(self, file: int) -> None:
        import portalocker

        try:
            portalocker.unlock(file)
        except portalocker.exceptions.LockException as error:
            raise OSError(str(error)) from error


system: Locking = Portable()
"""The locking of this system."""

if sys.platform != "win32":
    import fcntl

    class Flock:
        """By flock(2)."""

        note_at = 0

        def try_lock(self, file: int) -> bool:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        def lock(self, file: int) -> None:
            fcntl.flock(file, fcntl.LOCK_EX)

        def unlock(self, file: int) -> None:
            fcntl.flock(file, fcntl.LOCK_UN)

    system = Flock()
