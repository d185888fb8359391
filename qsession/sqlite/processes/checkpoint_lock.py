"""The right to checkpoint a file: for one thread of one process at a time.

Before SQLite 3.51.3 a checkpoint that begins on a WAL that another one has just emptied can damage
the database, if a writer begins the WAL anew at that moment
(https://sqlite.org/wal.html#walresetbug). So a checkpoint is made under a lock, and leaves a note
in the lock file that says how far the WAL had come: the next one can see that nothing is new.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from qsession.sqlite.processes.lock_file import LockFile, checkpoint_name, read_note

_SALT = slice(16, 24)
"""Where the header of a WAL has what is new each time that it begins anew
(https://sqlite.org/fileformat2.html#walformat)."""


class Mark(NamedTuple):
    """How far a WAL has come."""

    salt: str
    size: int


def mark_of(path: str) -> Mark | None:
    """How far the WAL of a database has come; None if there is nothing in it."""
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
        """How far the WAL had come when it was checkpointed last; None if nobody knows."""
        try:
            salt, size = read_note(checkpoint_name(self._path))
            return Mark(salt, int(size))
        except ValueError:
            return None

    def note(self, mark: Mark) -> None:
        """Leave word for the next one."""
        if self._file is not None:
            self._file.write_note(f"{mark.salt} {mark.size}")


@contextmanager
def right_to_checkpoint(path: str) -> Iterator[CheckpointRight | None]:
    """Have it for a while; None, at once, if another thread or process has it.

    Where there can be no lock file, or no lock on it, it is had without: nothing would be
    checkpointed else. SQLite has its own lock for the rest.
    """
    file, locked = None, True
    with suppress(OSError):
        file = LockFile(checkpoint_name(path), os.stat(path))
        locked = file.try_lock()
    try:
        yield CheckpointRight(path, file) if locked else None
    finally:
        if file is not None:
            with suppress(OSError):  # a child may have been forked meanwhile, and have it open, too
                file.unlock()
            file.close()
