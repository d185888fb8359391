"""Turns between processes that migrate one SQLite file.

The turn to write would be enough if a run were always one transaction. But an
``autocommit_block()`` ends it, and the run continues in further transactions. A process that came
in between would run the same migration again. So a run holds a separate lock file until its end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from qsession.errors import QueueTimeout
from qsession.migrate.patience import wait_until
from qsession.sqlite.processes.lock_file import LockFile, migrate_name


@contextmanager
def one_at_a_time(path: str, wait: float) -> Iterator[None]:
    """Hold the migration lock of a file. In a greenlet. ``wait`` is in seconds.

    A waiting process holds no transaction. If there is no file, or a lock file cannot be created,
    the migration runs without the lock; runs of one transaction still take turns. Raises
    :class:`QueueTimeout`. If cancelled, the lock is not held.
    """
    try:
        file = LockFile(migrate_name(path), os.stat(path))
    except OSError:
        yield
        return
    try:
        if not wait_until(file.try_lock, wait):
            raise QueueTimeout(
                f"Another process has been migrating {path!r} for {wait:g} s; this process "
                "migrated nothing. If the migration needs that long, set a longer queue_timeout"
            )
        try:
            yield
        finally:
            with suppress(OSError):  # in a child that was forked meanwhile
                file.unlock()  # such a child may also have the file open
    finally:
        file.close()
