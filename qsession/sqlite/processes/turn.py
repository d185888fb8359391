"""FileTurn: when an engine may write to its file, in turn with other processes and engines.

A turn is kept for as long as anybody in this engine has a claim to it: a transaction that holds the
ticket, or a group whose COMMIT is still to come. SQLite's own lock stays what correctness rests on:
where the lock files cannot be made, writers only lose the order.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from enum import Enum
from typing import Any

from sqlalchemy.util import await_only

from qsession.sqlite.processes.lock_files import LockFiles, last_holder
from qsession.waiting.handoff import Serial, Waiter

_turns: weakref.WeakSet[FileTurn] = weakref.WeakSet()


class _State(Enum):
    NEW = "new"
    WAITING = "waiting"
    GRANTED = "granted"
    LEFT = "left"


class _Request(Waiter):
    """Somebody who asks for the turn on behalf of a claimant."""

    __slots__ = ("claimant", "state")

    def __init__(self, claimant: Any) -> None:
        super().__init__()
        self.claimant = claimant
        self.state = _State.NEW


class FileTurn:
    """The turn of one engine on its file.

    Plain functions change it, one at a time and from any thread; only ``take`` waits.
    """

    def __init__(self) -> None:
        self.held = False
        self.groups = 0
        """How many groups were begun in the turn that is held."""
        self._file: Any = None
        self._locks: LockFiles | None = None
        self._claims: set[Any] = set()
        self._request: _Request | None = None
        self._coming = False
        self._since = 0.0
        self._seen: Any = None
        self._serial = Serial()
        self._serve = self._serial.serve
        _turns.add(self)

    def on(self, path: str, identity: Any) -> None:
        """Say which file it is about; nothing changes while it is held or waited for."""
        if (path, identity) != self._file and not (self.held or self._coming):
            self._file = path, identity
            self._locks = None
            if path:
                try:
                    self._locks = LockFiles(path)
                except OSError:
                    return  # in a read-only folder nobody can write at all

    def take(self, claimant: Any, timeout: float) -> bool:
        """Wait for the turn: False after ``timeout`` seconds. In a greenlet.

        Cancelled: the claim is given up; what waits in the kernel is left to the next who asks.
        """
        request = _Request(claimant)
        self._serve(self._take, request)
        if request.state is not _State.GRANTED:
            await_only(self._wait(request, timeout))
        return request.state is _State.GRANTED

    def take_now(self, claimant: Any) -> bool:
        """The same without waiting."""
        request = _Request(claimant)
        self._serve(self._take, request)
        if request.state is _State.GRANTED:
            return True
        self._serve(self._leave, request)  # behind _take, which another thread may be about to run
        return False

    def share(self, group: Any) -> None:
        """A group is begun, and needs the turn that is held as well."""
        self._serve(self._share, group)

    def done(self, claimant: Any) -> None:
        """Give up a claim; the last one gives the turn back."""
        self._serve(self._done, claimant)

    @property
    def age(self) -> float:
        """Seconds since the turn that is held came."""
        return time.monotonic() - self._since

    @property
    def waits(self) -> bool:
        """Whether somebody of this engine waits for the turn."""
        return self._request is not None

    def stop_waiting(self) -> None:
        """Let the one who waits for the turn go on without it."""
        self._serve(self._expire, self._request)

    def moved(self) -> bool:
        """Whether the file was written to, or the turn taken, since this was asked last."""
        before, self._seen = self._seen, None
        if self._file is not None:
            path = self._file[0]
            self._seen = last_holder(path), _changed_at(f"{path}-wal")
        return bool(self._seen != before)

    def wanted(self) -> bool:
        """Whether another process, or engine, waits for the turn that is held here."""
        return self.held and self._locks is not None and self._locks.wanted()

    async def _wait(self, request: _Request, timeout: float) -> None:
        future = request.prepare()
        if request.state is _State.GRANTED:
            return
        await request.wait(future, timeout, self._serial, self._expire, self._leave)

    def _take(self, request: _Request) -> None:
        if self.held or (not self._coming and self._lock_now()):
            self._grant(request)
            return
        request.state, self._request = _State.WAITING, request
        if not self._coming:
            self._coming = True
            try:
                threading.Thread(target=self._block, name="qsession turn", daemon=True).start()
            except RuntimeError:  # no more threads
                self._coming = False
                self._give_up()
                self._leave(request)
                raise

    def _lock_now(self) -> bool:
        if self._locks is not None:
            try:
                return self._locks.try_lock()
            except OSError:
                self._locks = None  # a file system without locks
        return True

    def _give_up(self) -> None:
        """Let others by, where no thread is there to wait for ``hold``."""
        if self._locks is not None:
            try:
                self._locks.give_up()
            except OSError:
                self._locks.close()  # that unlocks as well
                self._locks = self._file = None

    def _block(self) -> None:
        """In a thread of its own."""
        try:
            assert self._locks is not None
            self._locks.wait()
        except OSError:
            self._locks = None
        self._serve(self._arrived, None)

    def _arrived(self, _: None) -> None:
        self._coming = False
        request, self._request = self._request, None
        if request is None or not self._grant(request):
            self._unlock()

    def _grant(self, request: _Request) -> bool:
        if not self.held:
            self.held, self.groups, self._since = True, 0, time.monotonic()
        self._claims.add(request.claimant)
        request.state = _State.GRANTED
        if request.wake():
            return True
        self._claims.discard(request.claimant)
        return False

    def _share(self, group: Any) -> None:
        self.groups += 1
        self._claims.add(group)

    def _done(self, claimant: Any) -> None:
        self._claims.discard(claimant)
        if self.held and not self._claims:
            self._unlock()

    def _unlock(self) -> None:
        self.held = False
        if self._locks is not None:
            try:
                self._locks.unlock()
            except OSError:
                self._locks.close()  # that unlocks as well
                self._locks = None
                self._file = None

    def _leave(self, request: _Request) -> None:
        if request.state is _State.GRANTED:
            self._done(request.claimant)
        if self._request is request:
            self._request = None
        request.state = _State.LEFT

    def _expire(self, request: _Request | None) -> None:
        if request is not None and request.state is _State.WAITING:
            self._leave(request)
            request.wake()

    def forget(self) -> None:
        """In a forked child: the turn is the parent's, and stays with it."""
        locks, self._locks = self._locks, None
        if locks is not None:
            locks.close()
        self.__init__()  # type: ignore[misc]

    def holder(self) -> tuple[int, float] | None:
        """Who took the turn last: the process and when, by :func:`time.time`."""
        return None if self._file is None else last_holder(self._file[0])


def _changed_at(path: str) -> int | None:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None


def _after_fork() -> None:
    for turn in list(_turns):
        turn.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
