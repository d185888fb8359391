"""FileTurn: when an engine may write to its file, in turn with other processes and engines.

The turn only provides a fair order between users of this library; SQLite's own lock provides
correctness. If the lock files cannot be created, or the process that has the turn is stopped, the
engine writes without the turn, and only the order is lost.
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
"""Seconds for which an engine keeps the turn without checking whether other processes want it."""
LOOKS = 5
"""The number of consecutive checks without movement after which a turn is stalled.

Each check is scheduled after the one before. After a pause of this loop, or of the whole machine,
all other processes look stopped; such a pause counts as one check.
"""


class _State(Enum):
    WAITING = "waiting"
    GOES_ON = "goes on"  # with the turn, or without it if it is stalled
    LEFT = "left"  # cancelled or timed out


class _Request(Waiter):
    """A request for the turn, and what was seen of the turn while it waits."""

    __slots__ = ("holder", "looks", "state")

    def __init__(self) -> None:
        super().__init__()
        self.state = _State.WAITING
        self.holder: tuple[int, float] | None = None
        self.looks = 0


class FileTurn:
    """The turn of one engine on its file. The holder of the engine's ticket uses it.

    Plain functions change it, one at a time and from any thread; only ``take`` waits.

    Invariant: if the turn is held and not used, the next holder of the engine's ticket takes it at
    once.
    """

    def __init__(self) -> None:
        self.begin_anew()
        fork.parts.add(self)

    def begin_anew(self) -> None:
        """In a forked child: reset the state. The turn stays with the parent."""
        self.held = False
        """Whether this engine has the turn, used or kept. Also true if there are no locks."""
        self._file: tuple[str, Any] | None = None
        self._locks: LockFiles | None = None
        self._locks_opened = False
        self._user: _Request | None = None
        self._requests: list[_Request] = []
        self._was_wanted = False
        """The result of the last check, used while another thread checks."""
        self._pending = False
        """Whether a thread waits for the lock."""
        self._stalled: tuple[int, float] | None = None
        """The holder of the turn when it stalled."""
        self._slice_began = 0.0
        self._contended = False
        """Whether another process or engine had it before, and may wait for it again."""
        self._aside: list[Waiter] = []
        """Tasks that wait until it is given back."""
        self._serial = Serial()
        self._serve = self._serial.serve

    def on(self, path: str, identity: Any) -> None:
        """Set the file. No effect while the turn is used."""
        if (path, identity) != self._file:
            self._serve(self._open, (path, identity))

    def take_now(self) -> bool:
        """Take the turn if this engine has it, or if it is free and no process waits for it."""
        request = _Request()
        self._serve(self._take_now, request)
        if request.state is _State.GOES_ON:
            return True
        self._serve(self._leave, request)  # another thread may be about to run _take_now
        return False

    def take(self, timeout: float, stall_after: float) -> bool:
        """Wait for the turn, in a greenlet; False after ``timeout`` seconds.

        True: the caller may write. Either the turn is held, or it has not moved for
        ``stall_after`` seconds, and the caller continues without it: then ``held`` is False.

        If cancelled, it takes nothing. The thread that waits for the lock then serves the next
        request.
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

    def step_aside(self) -> None:
        """Wait until the turn is given back, for at most ``SLICE`` seconds. In a greenlet.

        A task whose work does not need the turn leaves the loop to those whose work does. It goes
        on while other processes write. No effect if no other process may wait for the turn. A
        cancellation is raised at once.
        """
        if not self._contended:
            return
        waiter = Waiter()
        future = waiter.prepare()
        self._serve(self._put_aside, waiter)
        await_only(waiter.wait(future, SLICE, self._serial, self._call_back, self._call_back))

    def release(self, wanted_here: bool) -> None:
        """Called when the ticket is given back. ``wanted_here``: this engine uses the turn again.

        May be called from any thread, without a loop, and by the garbage collector.
        """
        self._serve(self._release, wanted_here)

    def renew(self) -> None:
        """Show the waiting processes that the holder is at work, so that the turn is not stalled.

        For a holder that knows that it takes long. Call it every 20 ms or so.
        """
        self._serve(self._renew, None)

    @property
    def has_lock(self) -> bool:
        """Whether this engine keeps other engines from the turn."""
        return self.held and self._locks is not None

    @property
    def waits(self) -> bool:
        """Whether a transaction of this engine waits for the turn."""
        return bool(self._requests)

    def wanted(self) -> bool:
        """Whether another process or engine waits for the turn that is held here."""
        self._serve(self._look_for_others, None)  # another thread may be about to run it
        return self._was_wanted

    def holder(self) -> tuple[int, float] | None:
        """The process that took the turn last, and when, by :func:`time.time`.

        The value changes each time the turn is taken. The size of the WAL would not do: engines
        that continue without the turn also write to it, and would make a stalled turn seem to move.
        """
        return None if self._file is None else last_holder(self._file[0])

    def close(self) -> None:
        """Give the turn back and close the files. Waiting requests continue without it."""
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
        """Open the files at the first turn, so that an engine that only reads creates none."""
        if self._locks_opened:
            return
        self._locks_opened = True
        if self._file is not None and self._file[0]:
            with suppress(OSError):  # in a read-only folder no process can write
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
        self._contended = False
        self._slice_began = clock()

    def _arrived(self, locks: LockFiles) -> None:
        """Called when the thread has the lock. If the files are closed, locking is impossible."""
        if locks is not self._locks:  # the file has changed, or the engine was disposed of
            _unlock_and_close(locks)
            return
        if not locks.is_open:
            self._locks = None
        self._pending = False
        self._got_it()
        self._contended = True
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
        """Let all requests continue. Only the last one can hold the ticket; others have lost it."""
        requests, self._requests = self._requests, []
        for request in requests:
            self._let_go_on(request)

    def _look(self, request: _Request) -> None:
        """Check whether the turn has moved. If it is stalled, let all requests continue."""
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
            self._call_all_back()

    def _put_aside(self, waiter: Waiter) -> None:
        if self._contended:
            self._aside.append(waiter)
        else:
            waiter.wake()

    def _call_back(self, waiter: Waiter) -> None:
        if waiter in self._aside:
            self._aside.remove(waiter)
            waiter.wake()

    def _call_all_back(self) -> None:
        self._contended, aside, self._aside = False, self._aside, []
        for each in aside:
            each.wake()

    def _renew(self, _: None) -> None:
        if self.held and self._locks is not None:
            with suppress(OSError):  # they were closed
                self._locks.renew()

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
        self._call_all_back()
        if self._locks is not None:
            try:
                self._locks.unlock()
            except OSError:
                self._close_files()

    def _leave_the_line(self) -> None:
        """Release ``next``, because no thread waits for ``hold``."""
        if self._locks is not None:
            try:
                self._locks.give_up()
            except OSError:
                self._close_files()

    def _close_files(self) -> None:
        """Close the files, which unlocks them. The next turn opens them again."""
        locks, self._locks, self._locks_opened = self._locks, None, False
        if locks is not None:
            locks.close()

    def _close(self, _: None) -> None:
        if self.held:
            self._unlock()
        if self._pending:  # the waiting thread uses the files, and closes them itself
            self._pending, self._locks, self._locks_opened = False, None, False
        self._close_files()
        self._user = self._stalled = None
        self._let_all_go_on()


class _Watch:
    """Checks the turn repeatedly for a request that waits."""

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
    """Wait for the lock in a separate thread, which must not keep the engine alive."""
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
