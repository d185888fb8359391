"""Checkpointer: moves the WAL into the database file, off the loop and off the path of a commit.

SQLite's automatic checkpoint runs inside of a COMMIT, and whoever commits then waits for it. Here
it runs in a thread and on a connection of its own, once the WAL has grown past as many pages as the
automatic one would have allowed (https://sqlite.org/wal.html#ckpt). Where other databases are
attached, the automatic one goes on, for all of them.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from typing import TYPE_CHECKING

from qsession.sqlite.driver.physical import file_identity
from qsession.sqlite.driver.setup import databases
from qsession.sqlite.place import Place, State, stand_in
from qsession.waiting.ticket import Ticket, TicketState

if TYPE_CHECKING:
    from qsession.sqlite.pool import WriteQueuePool

LOOK_EVERY = 16
"""Commits between two looks at the size of the WAL."""
GROWN = 4
"""Times the limit past which the WAL is emptied with writers kept out."""

PASSIVE = "PRAGMA wal_checkpoint(PASSIVE)"

logger = logging.getLogger("qsession")


class _ThreadTicket(Ticket):
    """A ticket that a thread waits for."""

    __slots__ = ("woken",)

    def __init__(self, owner: Place) -> None:
        super().__init__(owner)
        self.woken = threading.Event()

    def wake(self) -> bool:
        self.woken.set()
        return True


class Checkpointer:
    """Looks at the WAL after commits, from any thread. One checkpoint runs at a time."""

    def __init__(self, pool: WriteQueuePool) -> None:
        self._pool = pool
        self._path = ""
        self._pages = 0
        self._limit = 0
        self._commits = 0
        self._running = threading.Lock()
        self._warned = False

    @property
    def is_running(self) -> bool:
        """Whether a checkpoint has its connection open."""
        return self._running.locked()

    def wait(self, patience: float) -> None:
        """Wait in this thread for a checkpoint that runs, ``patience`` seconds at the most."""
        if self._running.acquire(timeout=patience):
            self._running.release()

    def identity(self) -> tuple[int, ...] | None:
        """Device and inode of the file."""
        return file_identity(self._path)

    def take_over(self, raw: sqlite3.Connection, path: str) -> None:
        """Replace the automatic checkpoint of the writer. In the connection's thread.

        ``PRAGMA wal_autocheckpoint=0`` in a "connect" listener turns off both: some other program,
        Litestream for one, is to do it.
        """
        (self._pages,) = raw.execute("PRAGMA wal_autocheckpoint").fetchone()
        (page_size,) = raw.execute("PRAGMA page_size").fetchone()
        allowed = self._pages * page_size
        raw.execute(f"PRAGMA journal_size_limit={allowed}")  # when the WAL begins anew
        self._path, self._limit = path, 0 if self.share(raw) else allowed

    def share(self, raw: sqlite3.Connection) -> bool:
        """Leave all to the automatic one while other databases are attached: they need it.

        It is one setting for all files of a connection. In the connection's thread.
        """
        attached = bool(databases(raw).keys() - {"main", "temp"})
        raw.execute(f"PRAGMA wal_autocheckpoint={self._pages if attached else 0}")
        return attached

    def committed(self) -> None:
        """A transaction that wrote was committed. Does not wait."""
        self._commits += 1
        if self._commits % LOOK_EVERY or not (self._path and self._limit):
            return
        if self._wal_size() > self._limit and self._running.acquire(blocking=False):
            try:
                threading.Thread(target=self._run, name="qsession checkpoint", daemon=True).start()
            except RuntimeError:  # no more threads: a later commit looks again
                self._running.release()

    def _wal_size(self) -> int:
        try:
            return os.stat(f"{self._path}-wal").st_size
        except OSError:
            return 0

    def _run(self) -> None:
        try:
            raw = sqlite3.connect(self._path, timeout=0, isolation_level=None)
            try:
                self._checkpoint(raw)
            finally:
                raw.close()
        except sqlite3.Error as error:  # the next commits try again
            logger.info("The WAL of %r could not be checkpointed: %s", self._path, error)
        finally:
            self._running.release()

    def _checkpoint(self, raw: sqlite3.Connection) -> None:
        """PASSIVE waits for nobody; a WAL that it could empty is begun anew by the next writer.

        Nothing follows it beside a writer: a second checkpoint of a WAL that is empty already can
        damage the database before SQLite 3.51.3, if a writer begins it anew at that moment
        (https://sqlite.org/wal.html#walresetbug).
        While writers come without a pause there is always something new in it. So past a multiple
        of the limit the rest, which is short, is done by one that holds the ticket.
        """
        _, frames, done = raw.execute(PASSIVE).fetchone()
        size = self._wal_size()
        if size > GROWN * self._limit:
            self._finish_in_turn()
        warn = self._pool.settings.wal_warn
        if frames != done and warn is not None and size > warn:
            self._warn()
        else:
            self._warned = False

    def _finish_in_turn(self) -> None:
        """Take a place in the queue; then one more PASSIVE, with no writer beside it."""
        writer = self._pool.writer
        ticket = _ThreadTicket(stand_in(self._pool, PASSIVE))
        writer.queue.take(ticket)
        ticket.woken.wait()
        if ticket.state is not TicketState.HELD:
            return
        writer.close_group()
        writer.post(_passive, lambda: writer.give_back(ticket))

    def _warn(self) -> None:
        reading = [each for each in self._pool.admission if each.state is State.READING]
        if self._warned or not reading:
            return
        oldest = min(reading, key=lambda each: each.reading_since)
        self._warned = True
        task = oldest.task
        logger.warning(
            "The WAL of %r has grown to %d MiB: it cannot be reused while a transaction reads that "
            "began %.1f s ago with %r in %s. Close readers when they are done.",
            self._path,
            self._wal_size() >> 20,
            time.monotonic() - oldest.reading_since,
            oldest.first,
            "an unknown task" if task is None else f"task {task.get_name()!r}",
        )


def _passive(raw: sqlite3.Connection) -> None:
    raw.execute(PASSIVE).fetchone()
