"""How a lock file is locked, by the means of the system.

flock(2) where there is one: it blocks until the lock is free, the kernel queues those who wait, and
frees the locks of a process that dies. Windows has no such call; there portalocker locks the file,
and who waits looks again every few milliseconds. What waits there is woken in no certain order.
"""

from __future__ import annotations

import sys
import time
from typing import Protocol

RETRY = 0.005
"""Seconds between two looks, where the system cannot wait for a lock."""
MANDATORY = 0x10000
"""Bytes at the start of a file that Windows keeps others from reading while they are locked."""


class Locking(Protocol):
    """Exclusive locks on open files; every error is an ``OSError``."""

    note_at: int
    """Where in a file that is locked something can be written that others can read."""

    def try_lock(self, file: int) -> bool:
        """Lock it, if nobody has it locked."""
        ...

    def lock(self, file: int) -> None:
        """Wait for it; blocks the thread."""
        ...

    def unlock(self, file: int) -> None:
        """Let the next one have it."""
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
"""What this system has."""

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
