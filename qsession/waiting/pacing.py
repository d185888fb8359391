"""Pacing: whose statement runs on the event loop next, and how many in one turn of the loop.

Everybody joins one line. A turn of the loop first lets the holder of the write ticket go on, since
others wait for it, and then those in line in the order of coming: as many as fit into the budget by
what they have cost lately. If all of them fit, they share the budget equally.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from time import perf_counter as clock
from time import thread_time

from qsession.waiting import shutdown

BUDGET = 0.001
"""Seconds of statements, and of all the Python between them, in one turn of the loop."""
WEIGHT = 0.25
"""Of the latest turn in what one has cost lately."""


def admit(waiting: int, holders: int, cost: float) -> tuple[int, float]:
    """How many of ``waiting`` in line go on in a turn, and for how many seconds each.

    ``holders`` go on before them. At least one of the line does, whatever it costs. Where some are
    left over, each has one statement: the seconds are 0.
    """
    fitting = int(BUDGET / cost) if cost > 0.0 else 1
    number = max(fitting - holders, 1)
    return (number, 0.0) if waiting > number else (waiting, BUDGET / max(waiting + holders, 1))


class LoopTurn:
    """The turns of one loop, one after the other. Only the thread of the loop uses it.

    A statement that is about to run on the loop enters. In between, what a task does until it
    waits for something else counts as the cost of having let it in.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.mark: object | None = None
        """Something of this turn alone, once a statement has begun in it; None before."""
        self._began = 0.0  # when, if mark is set
        self._until = 0.0  # until when the task that runs may begin one more statement
        self._count = 0  # how many statements were let in
        self._let_in = False  # whether some of them come from the line
        self._share = 0.0
        self._cost = 0.0  # seconds that one has taken lately; 0: not known
        self._scheduled = False
        self._asked_in: object | None = None
        self._processor_time = 0.0
        self._holders: deque[asyncio.Future[None]] = deque()
        self._line: deque[asyncio.Future[None]] = deque()

    def __repr__(self) -> str:
        return f"<LoopTurn waiting={self.waiting} count={self._count} cost={self._cost:.6f}>"

    def enter(self, holder: bool = False) -> asyncio.Future[None] | None:
        """A statement is about to run: None if it may at once, or what to await before it does.

        The future may be cancelled, and whoever awaited it goes on without entering again.
        ``holder``: of the write ticket. It stands at the head of the line.
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
        """Of this thread when the first statement of the turn asked for it."""
        if self._asked_in is not self.mark:
            self._asked_in, self._processor_time = self.mark, thread_time()
        return self._processor_time

    @property
    def waiting(self) -> int:
        """How many wait for a later turn."""
        return len(self._holders) + len(self._line)

    @property
    def busy(self) -> bool:
        """Whether some wait for a later turn, or were let into this one and go on in it."""
        return self._let_in or self.waiting > 0

    @property
    def over(self) -> bool:
        """Whether the turn is as old as the budget: the next statement is for a later one."""
        return self.mark is not None and clock() - self._began > BUDGET

    def _schedule(self) -> None:
        self.loop.call_soon(self._turned)
        self._scheduled = True  # only now: a failure must not look like a turn that is to come

    def _begin(self, now: float) -> None:
        if self.mark is None:
            self.mark, self._began = object(), now
            self._until = now if self._let_in else now + BUDGET

    def _turned(self) -> None:
        """The loop has turned: all who were let in before have had their step."""
        self._scheduled = False
        if self._let_in and self.mark is not None and self._count:
            cost = (clock() - self._began) / self._count
            self._cost += (cost - self._cost) * (WEIGHT if self._cost else 1.0)
        self.mark = None
        self._count, self._let_in = 0, False
        try:
            self._let_go()
        finally:  # even if it failed half-way
            if self._let_in or self._line or self._holders:
                self._schedule()

    def _let_go(self) -> None:
        """Their tasks go on one behind the other, in the next turn of the loop."""
        for line in (self._holders, self._line):
            while line and line[0].done():  # cancelled
                line.popleft()
        if not (self._holders or self._line):
            return
        number, self._share = admit(len(self._line), len(self._holders), self._cost)
        self._let_in = True
        if self._holders or not self._share:
            self.loop.call_soon(self._goes_on)  # it begins the turn
        while self._holders:
            self._count += _resolve(self._holders)
        while self._line and number:
            if self._share:
                self.loop.call_soon(self._goes_on)
            let_in = _resolve(self._line)
            self._count += let_in
            number -= let_in

    def _goes_on(self) -> None:
        """The task whose step comes next was let in."""
        now = clock()
        self._begin(now)
        self._until = now + self._share


def _resolve(line: deque[asyncio.Future[None]]) -> bool:
    """Let the first in line go on; False if it was cancelled."""
    future = line.popleft()
    if future.done():
        return False
    future.set_result(None)
    return True


class Turns(threading.local):
    """The turns of the loop that runs in this thread.

    Should another loop run in between, those who wait are kept by their own loop.
    """

    _latest: LoopTurn | None = None

    def of(self, loop: asyncio.AbstractEventLoop) -> LoopTurn:
        if self._latest is None or self._latest.loop is not loop:
            self._latest = LoopTurn(loop)
            shutdown.note(loop)
        return self._latest


turns = Turns()
