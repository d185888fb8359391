"""FileTurn: when an engine may write to its file, in turn with other processes and engines.

It is a courtesy between those who use this library, and SQLite's own lock is the law. Where the
turn cannot be had, because the lock files cannot be made, or because the process that has it is
stopped, the engine writes without it and loses only the order.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from contextlib import suppress
from enum import Enum
from time import monotonic as clock
from typing import Any

from sqlalchemy.util import await_only

from qsession.sqlite.processes import fork
from qsession.sqlite.processes.lock_files import LockFiles, last_holder
from qsession.waiting.handoff import Serial, Waiter

SLICE = 0.01
"""Seconds for which a turn is kept without a look at who else wants it."""
LOOKS = 5
"""A turn is stalled when it was seen unmoved this many times in a row.

Each look is set only after the one before. After a pause of this loop, or of the whole machine,
everybody else looks stopped; such a pause counts for one look.
"""


class _State(Enum):
    WAITING = "waiting"
    GOES_ON = "goes on"  # with the turn, or without it where it did not come
    LEFT = "left"  # cancelled, or its time is up


class _Request(Waiter):
    """Somebody who asks for the turn, and what has been seen of the turn while it waits."""

    __slots__ = ("holder", "looks", "state")

    def __init__(self) -> None:
        super().__init__()
        self.state = _State.WAITING
        self.holder: tuple[int, float] | None = None
        self.looks = 0


class FileTurn:
    """The turn of one engine on its file. The holder of the engine's ticket uses it.

    Plain functions change it, one at a time and from any thread; only ``take`` waits.

    Invariant: a turn that is held and not used was released to somebody of this engine, who takes
    it at once.
    """

    def __init__(self) -> None:
        self.begin_anew()
        fork.parts.add(self)

    def begin_anew(self) -> None:
        """In a forked child: the turn is the parent's, and stays with it."""
        self.held = False
        """Whether this engine has the turn, used or kept. True as well where there are no locks."""
        self._file: tuple[str, Any] | None = None
        self._locks: LockFiles | None = None
        self._locks_opened = False
        self._user: _Request | None = None
        self._requests: list[_Request] = []
        self._was_wanted = False
        """At the last look: it is the answer while another thread looks."""
        self._pending = False
        """Whether a thread waits for the lock."""
        self._stalled: tuple[int, float] | None = None
        """Who had it when it was seen to be stalled."""
        self._slice_began = 0.0
        self._serial = Serial()
        self._serve = self._serial.serve

    def on(self, path: str, identity: Any) -> None:
        """Say which file it is about. Nothing changes while the turn is used."""
        if (path, identity) != self._file:
            self._serve(self._open, (path, identity))

    def take_now(self) -> bool:
        """Take the turn if this engine has it, or if nobody has it or waits for it."""
        request = _Request()
        self._serve(self._take_now, request)
        if request.state is _State.GOES_ON:
            return True
        self._serve(self._leave, request)  # another thread may be about to run _take_now
        return False

    def take(self, timeout: float, stall_after: float) -> bool:
        """Wait for the turn, in a greenlet; False after ``timeout`` seconds.

        True: the caller may write. Either the turn is held, or it has not moved for
        ``stall_after`` seconds and the caller goes on without it: then ``held`` is False.

        Cancelled, it takes nothing; the thread that waits for the lock waits for the next who asks.
        """
        request = _Request()
        self._serve(self._take, request)
        if request.state is _State.WAITING:
            try:
                await_only(self._wait(request, timeout, stall_after))
            except BaseException:  # cancelled, or there is no greenlet
                self._serve(self._leave, request)
                raise
        return request.state is _State.GOES_ON

    def release(self, wanted_here: bool) -> None:
        """The ticket was given back; ``wanted_here``: the next of this engine goes on at once.

        It may be called from any thread, without a loop, and by the garbage collector.
        """
        self._serve(self._release, wanted_here)

    @property
    def waits(self) -> bool:
        """Whether somebody of this engine waits for the turn."""
        return bool(self._requests)

    def wanted(self) -> bool:
        """Whether another process, or engine, waits for the turn that is held here."""
        self._serve(self._look_for_others, None)  # another thread may be about to run it
        return self._was_wanted

    def holder(self) -> tuple[int, float] | None:
        """Who took the turn last: the process and when, by :func:`time.time`.

        It changes whenever somebody has taken the turn anew. The WAL says less: it is also written
        by those who go on without the turn, and they would keep each other waiting for a turn that
        does not move.
        """
        return None if self._file is None else last_holder(self._file[0])

    def close(self) -> None:
        """Give the turn back and close the files. Whoever waits goes on without it."""
        self._serve(self._close, None)

    async def _wait(self, request: _Request, timeout: float, stall_after: float) -> None:
        future = request.prepare()
        if request.state is not _State.WAITING:
            return
        watch = _Watch(self, request, max(stall_after / LOOKS, 0.001))
        try:
            await request.wait(future, timeout, self._serial, self._expire, self._leave)
        finally:
            watch.stop()

    def _open(self, file: tuple[str, Any]) -> None:
        if self._user is not None:
            return
        self._close(None)
        self._file = file

    def _open_locks(self) -> None:
        """With the first turn: an engine that only reads leaves no files behind."""
        if self._locks_opened:
            return
        self._locks_opened = True
        if self._file is not None and self._file[0]:
            with suppress(OSError):  # in a read-only folder nobody can write at all
                self._locks = LockFiles(self._file[0])

    def _take_now(self, request: _Request) -> None:
        self._open_locks()
        if self.held or (not self._pending and self._lock()):
            self._let_go_on(request)
        elif not self._pending:
            self._leave_the_line()

    def _take(self, request: _Request) -> None:
        self._open_locks()
        if self.held or (not self._pending and self._lock()):
            self._let_go_on(request)
            return
        request.holder = self.holder()
        if self._pending and self._stalled is not None and request.holder == self._stalled:
            self._let_go_on(request)
            return
        self._requests.append(request)
        if not self._pending:
            self._wait_in_a_thread()

    def _wait_in_a_thread(self) -> None:
        try:
            threading.Thread(
                target=_wait_for,
                args=(weakref.ref(self), self._locks),
                name="qsession turn",
                daemon=True,
            ).start()
            self._pending = True
        except (RuntimeError, MemoryError):  # no more threads
            self._leave_the_line()
            self._let_all_go_on()

    def _lock(self) -> bool:
        """Lock the files if they are free."""
        if self._locks is not None:
            try:
                if not self._locks.try_lock():
                    return False
            except OSError:
                self._locks = None  # a file system without locks
        self._got_it()
        return True

    def _got_it(self) -> None:
        self.held, self._was_wanted, self._stalled = True, False, None
        self._slice_began = clock()

    def _arrived(self, locks: LockFiles) -> None:
        """The thread has the lock; for whoever uses it by now. Closed: there are no locks here."""
        if locks is not self._locks:  # the file was changed, or the engine disposed of
            _unlock_and_close(locks)
            return
        if not locks.is_open:
            self._locks = None
        self._pending = False
        self._got_it()
        self._let_all_go_on()
        if self._user is None:
            self._unlock()

    def _let_go_on(self, request: _Request) -> None:
        request.state = _State.GOES_ON
        if request.wake():
            self._user = request
        else:
            request.state = _State.LEFT

    def _let_all_go_on(self) -> None:
        """At most one of those who wait has the ticket; the last, if one has lost it meanwhile."""
        requests, self._requests = self._requests, []
        for request in requests:
            self._let_go_on(request)

    def _look(self, request: _Request) -> None:
        """Has the turn moved since the last look? If not for long, all who wait go on."""
        if request not in self._requests:
            return
        holder = self.holder()
        if holder != request.holder:
            request.holder, request.looks = holder, 0
            return
        request.looks += 1
        if request.looks >= LOOKS:
            self._stalled = holder
            self._let_all_go_on()

    def _release(self, wanted_here: bool) -> None:
        self._user = None
        if not self.held:
            return
        now = clock()
        slice_is_over = now - self._slice_began >= SLICE
        if not wanted_here or (slice_is_over and self._wanted()):
            self._unlock()
        elif slice_is_over:
            self._slice_began = now

    def _look_for_others(self, _: None) -> None:
        self._was_wanted = self._wanted()

    def _wanted(self) -> bool:
        return self.held and self._locks is not None and self._locks.wanted()

    def _leave(self, request: _Request) -> None:
        if self._user is request:
            self._release(False)
        if request in self._requests:
            self._requests.remove(request)
        request.state = _State.LEFT

    def _expire(self, request: _Request) -> None:
        if request in self._requests:
            self._leave(request)
            request.wake()

    def _unlock(self) -> None:
        self.held = self._was_wanted = False
        if self._locks is not None:
            try:
                self._locks.unlock()
            except OSError:
                self._close_files()

    def _leave_the_line(self) -> None:
        """Let others by, where no thread is there to wait for ``hold``."""
        if self._locks is not None:
            try:
                self._locks.give_up()
            except OSError:
                self._close_files()

    def _close_files(self) -> None:
        """That unlocks as well. They are opened again for the next turn."""
        locks, self._locks, self._locks_opened = self._locks, None, False
        if locks is not None:
            locks.close()

    def _close(self, _: None) -> None:
        if self.held:
            self._unlock()
        if self._pending:  # the thread closes them: it must not find them closed, or others there
            self._pending, self._locks, self._locks_opened = False, None, False
        self._close_files()
        self._user = self._stalled = None
        self._let_all_go_on()


class _Watch:
    """Looks at the turn again and again for somebody who waits."""

    def __init__(self, turn: FileTurn, request: _Request, interval: float) -> None:
        self._turn = turn
        self._request = request
        self._interval = interval
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_later(interval, self._look)

    def _look(self) -> None:
        self._handle = self._loop.call_later(self._interval, self._look)
        self._turn._serve(self._turn._look, self._request)

    def stop(self) -> None:
        self._handle.cancel()


def _wait_for(turn: weakref.ref[FileTurn], locks: LockFiles) -> None:
    """Wait for the lock, in a thread of its own, which keeps no engine alive."""
    try:
        locks.wait()
    except OSError:
        locks.close()
    found = turn()
    if found is None:
        _unlock_and_close(locks)
    else:
        found._serve(found._arrived, locks)


def _unlock_and_close(locks: LockFiles) -> None:
    with suppress(OSError):
        locks.unlock()
    locks.close()
