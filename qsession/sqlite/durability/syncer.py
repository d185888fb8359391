"""Syncer: one fsync of the WAL confirms all commits before it.

With ``PRAGMA synchronous=NORMAL`` a COMMIT only writes to the page cache
(https://sqlite.org/pragma.html#pragma_synchronous). It is durable after an fsync of the WAL that
began after the COMMIT returned. Commits and syncs get their numbers from one counter, a sync when
it begins. So a commit with a lower number than a sync is on disk when that sync has ended.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import os
import sqlite3
import threading
import time
import weakref
from collections import deque
from collections.abc import Collection
from contextlib import suppress
from typing import NamedTuple

from qsession import events
from qsession.errors import DurabilityError
from qsession.sqlite.durability.wal_file import DatabaseGone, WalFile
from qsession.sqlite.processes import fork
from qsession.sqlite.processes.checkpoint_lock import Mark, mark_of, right_to_checkpoint
from qsession.waiting.pacing import turns

GATHER = 0.010
"""Seconds from the beginning of one sync to that of the next, while others continue to commit. If a
sync takes more than half of this, the pause after its end is as long as the sync, at most GATHER.
"""

TRUNCATE = "PRAGMA main.wal_checkpoint(TRUNCATE)"
"""``main``: without a name it applies to all attached databases."""

logger = logging.getLogger("qsession")


def syncer_of(path: str, identity: tuple[int, ...]) -> Syncer:
    """The syncer of a database file in this process. It lives as long as a reference to it.

    The path counts as well as device and inode: if a file has several names, each name has its own
    WAL (https://sqlite.org/howtocorrupt.html, 2.5).
    """
    key = os.path.realpath(path), identity
    with _lock:
        syncer = _syncers.get(key)
        if syncer is None:
            syncer = _syncers[key] = Syncer(*key)
        return syncer


def recover(raw: sqlite3.Connection, syncer: Syncer, external: bool = False) -> None:
    """After a failed sync: see :meth:`Syncer.recover` and :meth:`Syncer.look_for_restart`."""
    if external:
        syncer.look_for_restart()
    else:
        syncer.recover(raw)


class Syncer:
    """Counts the commits to one file, and tells waiting tasks when their commit is on disk.

    The garbage collector may call ``hurry`` and ``close`` in the middle of any other method, so
    they take no lock. Each change is followed by a ring of the alarm. The thread checks for changes
    after it has set ``_sleeps``.

    Invariant: a commit is acknowledged only after an fsync or a checkpoint that began after it.
    """

    def __init__(self, path: str, identity: tuple[int, ...]) -> None:
        self.syncs = 0
        """The number of successful fsyncs of the WAL."""
        self._wal = WalFile(path, identity)
        """Only the thread opens it, and closes it before the thread ends."""
        self._numbers = itertools.count(1)
        self._synced = 0
        """Commits with lower numbers are on disk."""
        self._urgent = 0
        """Commits with lower numbers are synced without gathering more."""
        self._holds = False
        """Whether tasks that the last sync answered may be about to commit again. The next sync
        then waits for them.
        """
        self._latest = object()
        """Stands for the last answers that a loop has passed on."""
        self._began = -math.inf
        """When the last sync began."""
        self._took = 0.0
        """How long the last sync took, in seconds."""
        self._error: Exception | None = None
        """Why a sync failed, until a checkpoint has succeeded."""
        self._lost: Mark | None = None
        """The WAL whose sync failed; None if it could not be read."""
        self.begin_anew()
        fork.parts.add(self)

    def begin_anew(self) -> None:
        """In a forked child: the thread and the waiting tasks belong to the parent.

        A failure stays, because it concerns the file, which parent and child share.
        """
        self._waiters: deque[_Waiter] = deque()
        self._lock = threading.Lock()
        self._alarm = Alarm()
        self._runs = False
        """Whether the thread runs."""
        self._sleeps = False
        """Whether the thread sleeps until it is woken."""
        self._closing = False
        self._wal.close()

    @property
    def database(self) -> str:
        """The path of the database."""
        return self._wal.database

    @property
    def failed(self) -> bool:
        """Whether a sync has failed, and no checkpoint has succeeded since.

        Until then no commit is acknowledged: the system may treat pages that it failed to write as
        clean, and a later fsync would not report them.
        """
        return self._error is not None

    def committed(self) -> int:
        """Note that a COMMIT has returned. Returns its number. Any thread; no system call."""
        return next(self._numbers)

    async def wait(self, number: int, *, now: bool) -> None:
        """Wait until the commit with this number is on disk.

        ``now``: no other writer waits, so a sync begins at once, or right after the running one.
        Otherwise the sync begins when :meth:`hurry` is called, or ``GATHER`` seconds after the last
        one began. Raises :class:`DurabilityError` if the disk fails or the file is gone. A
        cancellation is raised at once; the commit has happened, and the sync continues.
        """
        if number < self._synced:
            return
        future: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.answer(number, future, now=now)
        error = await future
        if error is not None:
            raise self.unconfirmed(error) from error

    def answer(self, number: int, future: asyncio.Future[Exception | None], *, now: bool) -> None:
        """Resolve ``future`` when the commit with this number is on disk, or with the error.

        ``now``: as for :meth:`wait`. In the loop of the future.
        """
        if self.enlist(number, future):
            if now:
                self._urgent = next(self._numbers)
            if self._sleeps or number < self._urgent:
                self._alarm.ring()

    def enlist(self, number: int, future: asyncio.Future[Exception | None]) -> bool:
        """As :meth:`answer`, if the caller calls :meth:`hurry` or :meth:`gather` soon.

        False if the future is already resolved.
        """
        error = self._error
        if number < self._synced or error is not None:
            future.set_result(None if number < self._synced else error)
            return False
        self._waiters.append(_Waiter(number, future))
        try:
            if not self._runs:
                self._start()
        except RuntimeError as refused:  # no more threads
            future.set_result(refused)
            return False
        return True

    def gather(self) -> None:
        """Wake the thread for new commits, although more are to come."""
        if self._sleeps and self._waiters:
            self._alarm.ring()

    def unconfirmed(self, error: Exception) -> DurabilityError:
        """The error for a commit that the disk has not confirmed."""
        return _unconfirmed(self._wal.database, error)

    def hurry(self) -> None:
        """Sync now, because the queue has become empty. Any thread."""
        self._urgent, self._holds = next(self._numbers), False
        if self._waiters:
            self._alarm.ring()

    def close(self) -> None:
        """Close the descriptor and end the thread as soon as no task waits. Any thread.

        The last connection that closes deletes the WAL, which Windows refuses while it is open
        here. A later wait opens it again.
        """
        self._closing = True
        self._alarm.ring()

    def recover(self, raw: sqlite3.Connection) -> None:
        """After a failed sync: bring all commits to the disk by a checkpoint.

        In the connection's thread, outside a transaction. A complete checkpoint syncs both files.
        TRUNCATE restarts the WAL: after a power cut, SQLite would not find frames of later commits
        behind frames that the disk has lost. Like any checkpoint, only one process at a time runs
        it. If it fails, the next commit tries again.
        """
        error, begun = self._error, next(self._numbers)
        with right_to_checkpoint(self._wal.database) as right:
            if right is None:
                return
            row_factory, raw.row_factory = raw.row_factory, None
            try:
                busy = raw.execute(TRUNCATE).fetchone()[0]
                self._wal.look()
            except (sqlite3.Error, DatabaseGone) as failure:
                logger.warning(
                    "The checkpoint of %r after a failed sync also failed: %s",
                    self._wal.database,
                    failure,
                )
                return
            finally:
                raw.row_factory = row_factory
        with self._lock:
            if not busy:
                self._synced = max(self._synced, begun)
            if not busy and self._error is error:  # a later error may concern later commits
                self._error = None

    def look_for_restart(self) -> None:
        """After a failed sync, where another program runs the checkpoints: end the failure once the
        WAL was restarted, and so has another salt.

        Only a complete checkpoint, which has synced the database, lets a WAL be restarted. No
        checkpoint that could be run here would do. TRUNCATE would take frames away that the other
        program has not copied. FULL leaves the WAL as it is, so that commits after it would stand
        behind frames that the disk has lost. Commits in the new WAL wait for the next sync.
        """
        error, lost = self._error, self._lost
        try:
            self._wal.look()
        except DatabaseGone:
            return
        found = mark_of(self._wal.database)
        with self._lock:
            if lost is None:
                self._lost = found
            elif found is not None and found.salt != lost.salt and self._error is error:
                self._error = None

    def _start(self) -> None:
        with self._lock:
            if self._runs:
                return  # another thread has started it
            self._alarm = alarm = Alarm()
            syncer = weakref.ref(self, lambda _: alarm.ring())
            threading.Thread(
                target=_serve, args=(syncer, self._wal, alarm), name="qsession syncer", daemon=True
            ).start()
            self._closing, self._runs = False, True

    def serve(self) -> float | None:
        """Sync while commits are due. Return how long to sleep; negative: the thread ends.

        After a sync it sleeps for a limited time, so that the next commits need not wake it.
        """
        self._sleeps = False
        while True:
            closing = self._closing
            self._answer_what_is_known()
            numbers = [each.number for each in list(self._waiters)]
            urgent = 0 if self._holds else self._urgent
            pause = _pause(numbers, urgent, time.monotonic() - self._began, self._took)
            if pause == 0.0:
                self._sync()
            elif closing and not numbers:
                if self._end():
                    return -1.0
            else:
                self._sleeps = pause is None
                if pause is not None or not self._waiters:
                    return pause

    def _sync(self) -> None:
        if self._error is not None:
            return  # a second fsync would report success without having written the pages
        begun, self._began = next(self._numbers), time.monotonic()
        try:
            found = self._wal.sync()
        except Exception as error:
            # Now, so that a WAL that was restarted meanwhile counts as lost.
            self._lost = mark_of(self._wal.database)
            self._error = error
            return
        finally:
            self._took = time.monotonic() - self._began
            if events.observers:
                failed = self._error is not None
                events.emit(events.Synced(self._wal.database, self._took, failed))
        self.syncs += found
        with self._lock:
            self._synced = max(self._synced, begun)

    def _answer_what_is_known(self) -> None:
        """Resolve all futures that are decided: on disk, or failed until a recovery.

        With one call for each loop, since each call costs a system call.
        """
        synced, error = self._synced, self._error
        loops: dict[asyncio.AbstractEventLoop, list[tuple[_Waiter, Exception | None]]] = {}
        for _ in range(len(self._waiters)):
            waiter = self._waiters.popleft()
            if waiter.number < synced or error is not None:
                answer = None if waiter.number < synced else error
                loops.setdefault(waiter.future.get_loop(), []).append((waiter, answer))
            else:
                self._waiters.append(waiter)
        for loop, answers in loops.items():
            self._holds = True
            try:
                loop.call_soon_threadsafe(self._resolve, answers)
            except RuntimeError:  # the loop is closed, and no task waits there
                self._holds = False

    def _resolve(self, answers: Collection[tuple[_Waiter, Exception | None]]) -> None:
        """In the loop of the waiting tasks."""
        for waiter, error in answers:
            if not waiter.future.done():
                waiter.future.set_result(error)
        loop = asyncio.get_running_loop()
        self._latest = latest = object()
        loop.call_soon(loop.call_soon, self._go_on, latest)

    def _go_on(self, answers: object) -> None:
        """Allow the next sync when the answered tasks have run. Some may wait for a turn first.

        It looks in each turn of the loop, and only for the last answers: later ones begin anew.
        """
        loop = asyncio.get_running_loop()
        if not self._holds or self._latest is not answers:
            return
        if turns.of(loop).busy:
            loop.call_soon(self._go_on, answers)
        else:
            self._holds = False
            if self._waiters:
                self._alarm.ring()

    def _end(self) -> bool:
        """End the thread, unless a task has begun to wait for it."""
        self._wal.close()
        with self._lock:
            self._runs = False
            self._runs = bool(self._waiters)
            return not self._runs


class _Waiter(NamedTuple):
    """A commit that a task waits for. The result of the future is the error, or None."""

    number: int
    future: asyncio.Future[Exception | None]


def _pause(numbers: Collection[int], urgent: int, since: float, took: float) -> float | None:
    """Seconds until the next sync for these commits; 0 for a sync at once.

    ``since``: the time since the last sync began; ``took``: its duration. None: no commit waits,
    and none is expected soon. The commit of a cancelled task counts, because it is in the file.
    """
    left = max(0.0, max(GATHER, took + min(took, GATHER)) - since)
    if numbers:
        return 0.0 if min(numbers) < urgent else left
    return left or None


def _unconfirmed(path: str, error: Exception) -> DurabilityError:
    if isinstance(error, DatabaseGone):
        return DurabilityError(
            f"The database file {path!r} was {error} while it was open, and the transaction was "
            "committed to the old file. Programs that open the file by its name do not see it. "
            "The next transaction opens the file again. Close a database in all programs before "
            "you replace it."
        )
    reason = (isinstance(error, OSError) and error.strerror) or str(error) or repr(error)
    return DurabilityError(
        f"The transaction was committed to {path!r}, but the disk has not confirmed it: syncing "
        f"the WAL failed ({reason}). Other transactions see it, but it is lost if the power fails "
        "before a checkpoint succeeds. Do not simply run it again, because it would take effect "
        "twice. Check the disk. No commit is acknowledged before a checkpoint has succeeded. The "
        "next commit tries one, unless checkpoints='external' leaves that to another program."
    )


def _serve(syncer: weakref.ref[Syncer], wal: WalFile, alarm: Alarm) -> None:
    """The thread. While it sleeps it does not keep the syncer alive; a collected one wakes it."""
    while (found := syncer()) is not None:
        pause = found.serve()
        del found
        if pause is not None and pause < 0.0:
            return
        alarm.sleep(pause)
    wal.close()


class Alarm:
    """One thread sleeps; any other may wake it. A ring while it is awake ends its next sleep.

    It is a lock, because ``threading.Event`` allocates a lock for each sleep, and takes another.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def sleep(self, seconds: float | None) -> None:
        self._lock.acquire(timeout=-1 if seconds is None else seconds)

    def ring(self) -> None:
        with suppress(RuntimeError):  # it was already rung
            self._lock.release()


_lock = threading.Lock()
_syncers: weakref.WeakValueDictionary[tuple[str, tuple[int, ...]], Syncer] = (
    weakref.WeakValueDictionary()
)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )
