"""Checkpointer: moves the WAL into the database file, off the path of a commit.

SQLite's automatic checkpoint runs inside of a COMMIT, with the write lock held. Here it is off
(https://sqlite.org/wal.html#ckpt), and whoever has committed is told when a checkpoint is due, runs
it in the thread of his connection and only then gives that back. So nobody but the application's
own connections, and no other copy of the SQLite library, ever opens the file.
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
"""What SQLite's automatic checkpoint is set to where nobody has set it."""
PAGES = 4_000
"""What stands in for that: a page that is changed often is copied less often."""
LOOK_EVERY = 16
"""Commits between two looks at the size of the WAL."""
GROWN = 4
"""Times the limit past which the WAL is emptied with writers kept out."""
OFTEN = 16
"""How many times as often it is tried past that."""

PASSIVE = "PRAGMA main.wal_checkpoint(PASSIVE)"
"""``main``: without a name it is about all attached databases."""

logger = logging.getLogger("qsession")


class When(Enum):
    """When whoever has committed is to run a checkpoint."""

    NOT = "none is due"
    AFTER = "when the ticket has been passed on"
    HOLDING = "while the ticket and the turn are still held"


class Checkpointer:
    """Looks at the WAL of one file after commits, from any thread."""

    def __init__(
        self, warn: Callable[[int], None] | None = None, wal_warn: int | None = None
    ) -> None:
        self._warn = warn
        self.wal_warn = wal_warn
        """Bytes past which it is told that readers keep the WAL from being reused."""
        self._path = ""
        self._automatic = DEFAULT_PAGES
        self._limit = 0
        self._due_at = 0
        """The size at which the WAL is to be checkpointed again."""
        self._commits = itertools.count(1)
        self._warned = False

    def set_up(self, raw: sqlite3.Connection, path: str) -> None:
        """Take over from the automatic one. In the connection's thread, after its listeners.

        A number that a listener has set is the limit; 0 leaves checkpoints to another program,
        Litestream for one.
        """
        self._automatic = pragma(raw, "wal_autocheckpoint")
        pages = PAGES if self._automatic == DEFAULT_PAGES else max(self._automatic, 0)
        limit: int = pages * pragma(raw, "page_size")
        # A WAL that begins anew is cut to this, or it would stay due for ever.
        if limit and not 0 <= pragma(raw, "journal_size_limit") <= limit:
            pragma(raw, f"journal_size_limit={limit}")
        self._path, self._limit = path, limit if path else 0
        self.share(raw)

    def share(self, raw: sqlite3.Connection) -> None:
        """Leave all to the automatic one while other databases are attached: they need it.

        It is one setting for all files of a connection. In the connection's thread.
        """
        pragma(raw, f"wal_autocheckpoint={self._automatic if attached(raw) else 0}")

    def due(self) -> When:
        """A transaction that wrote was committed: whether it is to run a checkpoint. Any thread."""
        if next(self._commits) % LOOK_EVERY or not self._limit:
            return When.NOT
        size = _size(f"{self._path}-wal")
        if size <= self._limit:
            self._due_at = 0  # it has begun anew
        return _when(size, self._limit, self._due_at)

    def run(self, raw: sqlite3.Connection) -> None:
        """Checkpoint, unless somebody else does or has just done so. In the connection's thread."""
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
            right.note(mark)  # what came into the WAL since then may still be there
            self._due_at = _again(mark.size, self._limit)

    def _checkpoint(self, raw: sqlite3.Connection) -> None:
        """PASSIVE waits for nobody; a WAL that it could empty is begun anew by the next writer.

        The numbers are of what was in the WAL when it began. So they differ where a reader is in
        the way, and not where a writer went on meanwhile.
        """
        level = pragma(raw, "main.synchronous")
        if level == OFF:  # what others have committed has to reach the disk
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
    """The size at which a WAL that was checkpointed at this one is to be so again.

    While writers come without a pause it goes on growing, and each checkpoint copies what is new.
    Past a multiple of the limit it is tried often: a reader that is in the way may be a short one.
    """
    return min(size + limit, max(GROWN * limit + 1, size + limit // OFTEN))


def _is_worth_it(last: Mark | None, now: Mark, limit: int) -> bool:
    """Whether a WAL is to be checkpointed, when another process may have done so at ``last``.

    One that has not begun anew and has not grown was emptied, and whoever writes next begins it
    anew: see :mod:`qsession.sqlite.processes.checkpoint_lock`.
    """
    if now.size <= limit:
        return False
    return last is None or now.salt != last.salt or now.size >= _again(last.size, limit)


def _size(name: str) -> int:
    try:
        return os.stat(name).st_size
    except OSError:
        return 0
