"""Turns between processes that migrate one file of SQLite.

The turn to write would do, if a run were always one transaction. An ``autocommit_block()`` ends
that: the run then goes on in further transactions, and a process that came between would do the
same migration once more. So a run holds a lock file of its own from its beginning to its end.
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
    """Hold the lock of migrations of a file; in a greenlet. ``wait`` is in seconds.

    Whoever waits holds no transaction. A database without a file, and one beside which no lock file
    can be made, is migrated without: its runs of one transaction take turns all the same. Raises
    :class:`QueueTimeout`. Cancelled: the lock is not held.
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
            with suppress(OSError):  # this is a child that was forked meanwhile
                file.unlock()  # such a child may have the file open as well
    finally:
        file.close()
