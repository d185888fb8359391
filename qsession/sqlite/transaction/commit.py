"""Commit: what follows a commit that SQLite has written, until the disk has confirmed it."""

from __future__ import annotations

import asyncio
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

    __slots__ = ("_driver", "_pool", "_shared", "at", "due", "number", "syncer")

    def __init__(self, pool: Files, driver: DriverConnection) -> None:
        self._pool, self._driver = pool, driver
        self.syncer: Syncer | None = None
        """The syncer that has numbered it; None if nobody syncs it, or there is no file."""
        self.number = 0
        """Its number at the syncer."""
        self._shared = driver.sync is Sync.SHARED
        if self._shared or (driver.sync is Sync.SQLITE and driver.identity is not None):
            self.syncer = pool.syncer(driver)
            self.number = self.syncer.committed()
        pool.write_queue.counters.commits += 1
        self.due = pool.checkpointer.due()
        """When a checkpoint has to run."""
        self.at = time.monotonic() if events.observers else 0.0
        """When it was written, if somebody is to be told."""

    @property
    def keeps_ticket(self) -> bool:
        """Whether :meth:`work` has to run before the ticket passes on."""
        return self.due is When.HOLDING or (self.syncer is not None and self.syncer.failed)

    @property
    def waits(self) -> bool:
        """Whether the syncer has to confirm it.

        SQLite itself may have synced it. If the disk has lost earlier frames, it is lost as well.
        """
        return self.syncer is not None and (self._shared or self.syncer.failed)

    def work(self, raw: sqlite3.Connection) -> None:
        """Run a checkpoint, or the one after a failed sync. In the connection's thread, outside a
        transaction. If it fails, a later commit tries again.
        """
        checkpointer, syncer = self._pool.checkpointer, self.syncer
        if self.due is When.HOLDING:
            with suppress(Exception):  # the recovery does not depend on it
                checkpointer.run(raw)
        if syncer is not None and syncer.failed:
            recover(raw, syncer, checkpointer.external)

    def wait(self, now: bool) -> None:
        """Wait until the disk has confirmed it. In a greenlet.

        ``now``: whether the sync begins at once. Raises :class:`DurabilityError`.
        """
        assert self.syncer is not None
        if self.at:
            self.at = time.monotonic()  # a checkpoint before this is no wait for the disk
        outcome = "cancelled"
        try:
            await_only(self.syncer.wait(self.number, now=now))
            outcome = "confirmed"
        except errors.DurabilityError:
            outcome = "failed"
            self._look_at_file()
            raise
        finally:
            if self.at:
                self.tell(outcome)

    def enlist(self, future: asyncio.Future[Exception | None]) -> None:
        """Have ``future`` resolved when the disk has confirmed it, or with the error."""
        assert self.syncer is not None
        self.syncer.enlist(self.number, future)

    def unconfirmed(self, failure: Exception) -> errors.DurabilityError:
        """The error to raise, because the disk has not confirmed it."""
        assert self.syncer is not None
        self._look_at_file()
        return self.syncer.unconfirmed(failure)

    def _look_at_file(self) -> None:
        """If the file is gone, the next transaction reopens it."""
        with suppress(Exception):
            self._pool.check_file(self._driver, again=True)

    def tell(self, outcome: str) -> None:
        """Tell the subscribers of events how long it has waited for the disk."""
        assert self.syncer is not None
        events.emit(events.DiskWait(self.syncer.database, time.monotonic() - self.at, outcome))
