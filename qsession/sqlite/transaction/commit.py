"""Commit: what follows a commit that SQLite has written, until the disk has confirmed it."""

from __future__ import annotations

import sqlite3
import time
from contextlib import suppress
from typing import Protocol

from sqlalchemy.util import await_only

from qsession import errors, events
from qsession.sqlite.driver.physical import DriverConnection
from qsession.sqlite.driver.setup import Sync
from qsession.sqlite.durability.checkpoint import Checkpointer, When
from qsession.sqlite.durability.syncer import Syncer, recover
from qsession.sqlite.queue.write_queue import WriteQueue


class Files(Protocol):
    """What a commit needs from the pool of its connection."""

    write_queue: WriteQueue
    checkpointer: Checkpointer

    def syncer(self, driver: DriverConnection) -> Syncer: ...

    def check_file(self, driver: DriverConnection, again: bool = False) -> None: ...


class Commit:
    """A commit that SQLite has written. It is made before the ticket passes on, so that the numbers
    are in the order of the commits.
    """

    __slots__ = ("_driver", "_pool", "at", "due", "keeps_ticket", "number", "syncer")

    def __init__(self, pool: Files, driver: DriverConnection) -> None:
        self._pool, self._driver = pool, driver
        self.syncer: Syncer | None = None
        """The syncer that has to confirm it; None if SQLite has synced it, or nobody does."""
        self.number = 0
        """Its number at the syncer."""
        shared, failed = driver.sync is Sync.SHARED, False
        # If the disk has lost earlier frames, commits that SQLite itself synced are lost as well.
        if shared or (driver.sync is Sync.SQLITE and driver.identity is not None):
            syncer = pool.syncer(driver)
            self.number, failed = syncer.committed(), syncer.failed
            self.syncer = syncer if shared or failed else None
        pool.write_queue.counters.commits += 1
        self.due = pool.checkpointer.due()
        """When a checkpoint has to run."""
        self.keeps_ticket = failed or self.due is When.HOLDING
        """Whether :meth:`work` has to run before the ticket passes on."""
        self.at = time.monotonic() if events.observers else 0.0
        """When it was written, if somebody is to be told."""

    def work(self, raw: sqlite3.Connection) -> None:
        """Run a checkpoint, or the one after a failed sync. In the connection's thread, outside a
        transaction. If it fails, a later commit tries again.
        """
        checkpointer, syncer = self._pool.checkpointer, self.syncer
        if self.due is When.HOLDING:
            checkpointer.run(raw)
        if syncer is not None and syncer.failed:
            recover(raw, syncer, checkpointer.external)

    def wait(self, now: bool) -> None:
        """Wait until the disk has confirmed it. In a greenlet.

        ``now``: whether the sync begins at once. Raises :class:`DurabilityError`.
        """
        assert self.syncer is not None
        outcome = "cancelled"
        try:
            await_only(self.syncer.wait(self.number, now=now))
            outcome = "confirmed"
        except errors.DurabilityError:
            outcome = "failed"
            self.look_at_file()
            raise
        finally:
            if self.at:
                self.tell(outcome)

    def look_at_file(self) -> None:
        """The disk has not confirmed it: if the file is gone, the next transaction reopens it."""
        with suppress(Exception):
            self._pool.check_file(self._driver, again=True)

    def tell(self, outcome: str) -> None:
        """Tell the subscribers of events how long it has waited for the disk."""
        assert self.syncer is not None
        events.emit(events.DiskWait(self.syncer.database, time.monotonic() - self.at, outcome))
