"""LockFiles: a turnstile of two lock files beside a database, for the processes that write to it.

A process that wants to write locks ``next``, then ``hold``, and then releases ``next``. So only one
process waits for ``hold``, and gets it next. The previous holder must wait at ``next`` again,
behind the processes that wait there.
"""

from __future__ import annotations

import os
import time

from qsession.sqlite.processes.lock_file import LockFile, names, read_note


class LockFiles:
    """The two lock files. Every error is an ``OSError``."""

    def __init__(self, path: str) -> None:
        database = os.stat(path)
        self._next, self._hold = (LockFile(name, database) for name in names(path))
        self._has_next = False
        self._since = 0.0

    @property
    def is_open(self) -> bool:
        return self._hold.is_open

    def close(self) -> None:
        """Close both. This frees the locks, unless a forked child has the files open."""
        self._next.close()
        self._hold.close()

    def try_lock(self) -> bool:
        """Get the turn if it is free and no process waits. If not, this may now hold ``next``."""
        self._has_next = self._has_next or self._next.try_lock()
        if not (self._has_next and self._hold.try_lock()):
            return False
        self._got_it()
        return True

    def wait(self) -> None:
        """Wait for the turn; blocks the thread."""
        if not self._has_next:  # on Windows it would wait for itself
            self._next.lock()
            self._has_next = True
        self._hold.lock()
        self._got_it()

    def give_up(self) -> None:
        """Release ``next``, so that another process may wait for ``hold``."""
        if self._has_next:
            self._next.unlock()
            self._has_next = False

    def _got_it(self) -> None:
        self.give_up()
        self._since = time.time()
        self._write_note()

    def renew(self) -> None:
        """Write the note anew: another one, also where a float is rounded, that says the same."""
        self._since += 2e-6
        self._write_note()

    def _write_note(self) -> None:
        self._hold.write_note(f"{os.getpid():<10} {self._since:<20.6f}")

    def unlock(self) -> None:
        """Give the turn back."""
        self._hold.unlock()

    def wanted(self) -> bool:
        """Whether another process waits for the turn, as far as the system can tell."""
        try:
            if not self._next.try_lock():
                return True
            self._next.unlock()
        except OSError:  # the system has no more locks
            return False
        return False


def last_holder(path: str) -> tuple[int, float] | None:
    """The process that took the turn on a file last, and when; None if unknown.

    The value changes each time the turn is taken.
    """
    try:
        pid, since = read_note(names(path)[1])
        return int(pid), float(since)
    except ValueError:
        return None
