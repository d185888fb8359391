"""Pacing: which statement runs on the event loop next, and how many run in one turn of the loop.

All tasks join one line. In each turn of the loop, the holder of the write ticket continues first,
since others wait for it. Then the tasks in line continue in order, as many as fit into the budget,
judged by their recent cost. If all of them fit, they share the budget equally.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from time import perf_counter as clock
from time import thread_time

from qsession.waiting import shutdown

BUDGET = 0.001
"""Seconds for statements, and for the Python code between them, in one turn of the loop."""
WEIGHT = 0.25
"""The weight of the latest turn in the average cost."""


def admit(waiting: int, holders: int, cost: float) -> tuple[int, float]:
    """How many of the ``waiting`` tasks continue in a turn, and for how many seconds each.

    ``holders`` tasks continue before them. At least one task in line continues, whatever its cost.
    If not all tasks fit, each runs one statement only: the seconds are 0.
    """
    fitting = int(BUDGET / cost) if cost > 0.0 else 1
    number = max(fitting - holders, 1)
    return (number, 0.0) if waiting > number else (waiting, BUDGET / max(waiting + holders, 1))


class LoopTurn:
    """The turns of one loop, one after another. Only the thread of the loop uses it.

    A task enters before a statement runs on the loop. All that the task does until it waits for
    something else counts as its cost.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.mark: object | None = None
        """An object that identifies this turn, once a statement has begun in it; None before."""
        self._began = 0.0  # when the turn began, if mark is set
        self._until = 0.0  # until when the running task may begin another statement
        self._count = 0  # the number of statements admitted
        self._let_in = False  # whether tasks from the line were admitted
        self._share = 0.0
        self._cost = 0.0  # recent cost of a statement in seconds; 0: not known
        self._scheduled = False
        self._asked_in: object | None = None
        self._processor_time = 0.0
        self._holders: deque[asyncio.Future[None]] = deque()
        self._line: deque[asyncio.Future[None]] = deque()

    def __repr__(self) -> str:
        return f"<LoopTurn waiting={self.waiting} count={self._count} cost={self._cost:.6f}>"

    def enter(self, holder: bool = False) -> asyncio.Future[None] | None:
        """Enter before a statement runs. None if it may run at once, else a future to await first.

        The future may be cancelled. After awaiting it, a task does not enter again. ``holder``:
        whether the task holds the write ticket; then it goes to the head of the line.
        """
        if not self._scheduled:
            self._schedule()
        now = clock()
        if self.mark is None:
            at_once = holder or not (self._let_in or self._line or self._holders)
        else:
            at_once = now - self._began <= BUDGET if holder else now < self._until
        if at_once:
            self._begin(now)
            self._count += 1
            return None
        future = self.loop.create_future()
        (self._holders if holder else self._line).append(future)
        return future

    def processor_time(self) -> float:
        """The processor time of this thread, as it was at the first call in this turn."""
        if self._asked_in is not self.mark:
            self._asked_in, self._processor_time = self.mark, thread_time()
        return self._processor_time

    @property
    def waiting(self) -> int:
        """The number of tasks that wait for a later turn."""
        return len(self._holders) + len(self._line)

    @property
    def busy(self) -> bool:
        """Whether tasks wait for a later turn, or were admitted to this one and continue in it."""
        return self._let_in or self.waiting > 0

    @property
    def over(self) -> bool:
        """Whether the budget of the turn is used up, so that the next statement must wait."""
        return self.mark is not None and clock() - self._began > BUDGET

    def _schedule(self) -> None:
        self.loop.call_soon(self._turned)
        self._scheduled = True  # not before call_soon(), which may fail

    def _begin(self, now: float) -> None:
        if self.mark is None:
            self.mark, self._began = object(), now
            self._until = now if self._let_in else now + BUDGET

    def _turned(self) -> None:
        """Called when the loop has turned: all tasks admitted before have run."""
        self._scheduled = False
        if self._let_in and self.mark is not None and self._count:
            cost = (clock() - self._began) / self._count
            self._cost += (cost - self._cost) * (WEIGHT if self._cost else 1.0)
        self.mark = None
        self._count, self._let_in = 0, False
        try:
            self._let_go()
        finally:  # even after an error
            if self._let_in or self._line or self._holders:
                self._schedule()

    def _let_go(self) -> None:
        """Admit tasks, which continue one after another in the next turn of the loop."""
        for line in (self._holders, self._line):
            while line and line[0].done():  # cancelled
                line.popleft()
        if not (self._holders or self._line):
            return
        number, self._share = admit(len(self._line), len(self._holders), self._cost)
        self._let_in = True
        if self._holders or not self._share:
            self.loop.call_soon(self._goes_on)  # this begins the turn
        while self._holders:
            self._count += _resolve(self._holders)
        while self._line and number:
            if self._share:
                self.loop.call_soon(self._goes_on)
            let_in = _resolve(self._line)
            self._count += let_in
            number -= let_in

    def _goes_on(self) -> None:
        """Called before the step of a task that was admitted."""
        now = clock()
        self._begin(now)
        self._until = now + self._share


def _resolve(line: deque[asyncio.Future[None]]) -> bool:
    """Let the first task in line continue; False if it was cancelled."""
    future = line.popleft()
    if future.done():
        return False
    future.set_result(None)
    return True


class Turns(threading.local):
    """The turns of the loop that runs in this thread.

    If another loop runs in between, the waiting tasks are kept by the callbacks of their own loop.
    """

    _latest: LoopTurn | None = None

    def of(self, loop: asyncio.AbstractEventLoop) -> LoopTurn:
        if self._latest is None or self._latest.loop is not loop:
            self._latest = LoopTurn(loop)
            shutdown.note(loop)
        return self._latest


turns = Turns()
