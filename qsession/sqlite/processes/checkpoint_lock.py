"""The right to checkpoint a file, for one thread of one process at a time.

Before SQLite 3.51.3, a checkpoint can damage the database if another one has just emptied the WAL
and a writer restarts the WAL at that moment (https://sqlite.org/wal.html#walresetbug). So a
checkpoint runs under a lock. It leaves a note in the lock file about the state of the WAL, so that
the next one can tell whether there are new frames.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from qsession.sqlite.processes.lock_file import LockFile, checkpoint_name, read_note

_SALT = slice(16, 24)
"""The bytes in the header of a WAL that change each time it is restarted
(https://sqlite.org/fileformat2.html#walformat)."""


class Mark(NamedTuple):
    """The state of a WAL."""

    salt: str
    size: int


def mark_of(path: str) -> Mark | None:
    """The state of the WAL of a database; None if it is empty."""
    try:
        with open(f"{path}-wal", "rb", buffering=0) as wal:
            salt = wal.read(_SALT.stop)[_SALT].hex()
            size = os.fstat(wal.fileno()).st_size
    except OSError:
        return None
    return Mark(salt, size) if salt else None


class CheckpointRight:
    """Held while a checkpoint runs."""

    def __init__(self, path: str, file: LockFile | None) -> None:
        self._path = path
        self._file = file

    def last(self) -> Mark | None:
        """The state of the WAL at the last checkpoint; None if unknown."""
        try:
            salt, size = read_note(checkpoint_name(self._path))
            return Mark(salt, int(size))
        except ValueError:
            return None

    def note(self, mark: Mark) -> None:
        """Write a note for the next checkpoint."""
        if self._file is not None:
            self._file.write_note(f"{mark.salt} {mark.size}")


@contextmanager
def right_to_checkpoint(path: str) -> Iterator[CheckpointRight | None]:
    """Hold the right for a block. None, at once, if another thread or process has it.

    If a lock file cannot be created or locked, the checkpoint runs without it, because otherwise
    there would be no checkpoints. SQLite has its own lock as well.
    """
    file, locked = None, True
    with suppress(OSError):
        file = LockFile(checkpoint_name(path), os.stat(path))
        locked = file.try_lock()
    try:
        yield CheckpointRight(path, file) if locked else None
    finally:
        if file is not None:
            with suppress(OSError):  # a child forked meanwhile may have it open, too
                file.unlock()
            file.close()
