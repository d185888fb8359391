"""Checkpointer: moves the WAL into the database file after a commit, not during it.

SQLite's automatic checkpoint runs inside COMMIT, while the write lock is held. It is turned off
here (https://sqlite.org/wal.html#ckpt). When a checkpoint is due, the transaction that has
committed runs it in the thread of its connection, and then gives the connection back. So only the
application's own connections, and no other copy of the SQLite library, open the file.
"""

from __future__ import annotations

import itertools
import logging
import os
import sqlite3
from collections.abc import Callable
from enum import Enum

from qsession.sqlite.driver.setup import NORMAL, OFF, attached, plain_cursor, pragma
from qsession.sqlite.processes.checkpoint_lock import Mark, mark_of, right_to_checkpoint

DEFAULT_PAGES = 1_000
"""SQLite's default for the automatic checkpoint, in pages."""
PAGES = 4_000
"""The limit used instead of that default: a page that changes often is copied less often."""
LOOK_EVERY = 16
"""The number of commits between two checks of the size of the WAL."""
GROWN = 4
"""The multiple of the limit above which a checkpoint runs while writers are kept out."""
OFTEN = 16
"""The factor by which checkpoints are attempted more often above that size."""

PASSIVE = "PRAGMA main.wal_checkpoint(PASSIVE)"
"""``main``: without a name it applies to all attached databases."""

logger = logging.getLogger("qsession")


class When(Enum):
    """When a transaction that has committed runs a checkpoint."""

    NOT = "none is due"
    AFTER = "when the ticket has been passed on"
    HOLDING = "while the ticket and the turn are still held"


class Checkpointer:
    """Checks the WAL of one file after commits, from any thread."""

    def __init__(
        self,
        warn: Callable[[int], None] | None = None,
        wal_warn: int | None = None,
        external: bool = False,
    ) -> None:
        self._warn = warn
        self.wal_warn = wal_warn
        """Bytes above which a warning names the reader that keeps the WAL from being reused."""
        self.external = external
        """Whether checkpoints are left to another program, such as Litestream. Then none runs here,
        and the size of the WAL is only watched.
        """
        self._last_size: int | None = None
        """The size of the WAL when it was last watched."""
        self._path = ""
        self._automatic = DEFAULT_PAGES
        self._limit = 0
        self._due_at = 0
        """The size of the WAL at which the next checkpoint is due."""
        self._commits = itertools.count(1)
        self._warned = False

    def set_up(self, raw: sqlite3.Connection, path: str) -> None:
        """Replace the automatic checkpoint. In the connection's thread, after its listeners.

        If a listener has set a number of pages, that is the limit, and 0 turns checkpoints off.
        What it has set does not count if checkpoints are left to another program.
        """
        self._automatic = 0 if self.external else pragma(raw, "wal_autocheckpoint")
        pages = PAGES if self._automatic == DEFAULT_PAGES else max(self._automatic, 0)
        limit: int = pages * pragma(raw, "page_size")
        # A restarted WAL is cut to this size, or a checkpoint would always be due.
        if limit and not 0 <= pragma(raw, "journal_size_limit") <= limit:
            pragma(raw, f"journal_size_limit={limit}")
        self._path, self._limit = path, limit if path else 0
        self.share(raw)

    def share(self, raw: sqlite3.Connection) -> None:
        """Use the automatic checkpoint while other databases are attached, because they need it.

        The setting applies to all files of a connection. In the connection's thread.
        """
        pragma(raw, f"wal_autocheckpoint={self._automatic if attached(raw) else 0}")

    def due(self) -> When:
        """Whether a transaction that has committed must run a checkpoint. Any thread."""
        if next(self._commits) % LOOK_EVERY or not (self._limit or self.external):
            return When.NOT
        size = _size(f"{self._path}-wal")
        if self.external:
            self._watch(size)
            return When.NOT
        if size <= self._limit:
            self._due_at = 0  # the WAL was restarted
        return _when(size, self._limit, self._due_at)

    def _watch(self, size: int) -> None:
        """Warn once if the WAL grows although it is large.

        A WAL that is restarted keeps its size, so only growth shows that it is not.
        """
        last, self._last_size = self._last_size, size
        if self.wal_warn is None or size <= self.wal_warn:
            self._warned = False
        elif last is not None and size > last and not self._warned and self._warn is not None:
            self._warned = True
            self._warn(size)

    def run(self, raw: sqlite3.Connection) -> None:
        """Run a checkpoint, unless another one runs or has just run. In the connection's thread."""
        with right_to_checkpoint(self._path) as right:
            mark = None if right is None else mark_of(self._path)
            if right is None or mark is None:
                return
            last = right.last()
            if not _is_worth_it(last, mark, self._limit):
                self._due_at = 0 if last is None else _again(last.size, self._limit)
                return
            try:
                self._checkpoint(raw)
            except sqlite3.Error as error:  # a later commit tries again
                logger.info("A checkpoint of %r failed: %s", self._path, error)
                return
            right.note(mark)  # frames that were added since then may still be in the WAL
            self._due_at = _again(mark.size, self._limit)

    def _checkpoint(self, raw: sqlite3.Connection) -> None:
        """Run a PASSIVE checkpoint, which does not wait. If it is complete, the next writer
        restarts the WAL.

        Its numbers refer to the WAL at its start. So they differ if a reader is in the way, but not
        if a writer continued meanwhile.
        """
        level = pragma(raw, "main.synchronous")
        if level == OFF:  # commits of other connections must reach the disk
            pragma(raw, f"main.synchronous={NORMAL}")
        try:
            with plain_cursor(raw) as cursor:
                busy, frames, done = cursor.execute(PASSIVE).fetchone()
        finally:
            if level == OFF:
                pragma(raw, f"main.synchronous={OFF}")
        size = _size(f"{self._path}-wal")
        pinned = not busy and frames != done
        if not pinned or self.wal_warn is None or size <= self.wal_warn:
            self._warned = False
        elif not self._warned and self._warn is not None:
            self._warned = True
            self._warn(size)


def _when(size: int, limit: int, due_at: int) -> When:
    if size <= limit or size < due_at:
        return When.NOT
    return When.HOLDING if size > GROWN * limit else When.AFTER


def _again(size: int, limit: int) -> int:
    """The size at which the next checkpoint is due, after one at ``size``.

    While writers come without a pause the WAL keeps growing, and each checkpoint copies the new
    frames. Above a multiple of the limit it is tried often, since a reader may be short.
    """
    return min(size + limit, max(GROWN * limit + 1, size + limit // OFTEN))


def _is_worth_it(last: Mark | None, now: Mark, limit: int) -> bool:
    """Whether a checkpoint is due, given the last one, perhaps by another process, at ``last``.

    A WAL that was not restarted and has not grown is already copied, and the next writer restarts
    it: see :mod:`qsession.sqlite.processes.checkpoint_lock`.
    """
    if now.size <= limit:
        return False
    return last is None or now.salt != last.salt or now.size >= _again(last.size, limit)


def _size(name: str) -> int:
    try:
        return os.stat(name).st_size
    except OSError:
        return 0
