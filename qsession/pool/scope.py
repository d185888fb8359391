"""Scope: which task may use a connection, when several tasks have statements and transactions.

Statements run one after another. A transaction keeps other tasks out until it has ended, except
tasks that were started inside it, which have a separate line. So scopes nest as transactions do.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any

from qsession.errors import QueueTimeout
from qsession.session.line import Line
from qsession.waiting.handoff import this_task

_inside: ContextVar[tuple[Scope, ...]] = ContextVar("inside", default=())
"""The open transactions that contain the current task, or the task that started it."""


class Scope:
    """A connection outside any transaction, or the inside of a transaction.

    Invariant: while `block` is set, this scope's line belongs to it, and no task gets a turn here.
    """

    __slots__ = ("block", "line", "open", "task")

    def __init__(self) -> None:
        self.line = Line()
        self.block: Scope | None = None
        """The open transaction in this scope."""
        self.open = True
        self.task: asyncio.Task[Any] | None = this_task()
        """The task that began it."""

    def _admits(self) -> bool:
        """Whether the current task belongs to this transaction.

        If the task that began it has ended, as with a test fixture or
        ``wait_for(transaction.start(), 5)``, any task may use and end it.
        """
        began_it = self.task is None or self.task.done() or self.task is asyncio.current_task()
        return began_it or self in _inside.get()

    def _innermost(self, closing: bool) -> Scope:
        """The scope for the current task's next statement; the innermost one of all to close."""
        scope = self
        while scope.block is not None and (closing or scope.block._admits()):
            scope = scope.block
        return scope

    async def turn(self, timeout: float | None, closing: bool = False) -> Scope:
        """Wait for a turn in the innermost scope. It lasts until ``give()`` of the returned scope.

        Raises `QueueTimeout` if one transaction of another task lasts for ``timeout`` seconds, or
        up to twice that, during the wait. With ``closing`` it does not wait for transactions. If
        cancelled, the task leaves the line.
        """
        task = this_task()
        while True:
            scope = self._innermost(closing)
            if scope.line.owner is None:
                scope.line.owner = task
                return scope
            place = asyncio.get_running_loop().create_future()
            watch = _Watch(scope, place, timeout)
            try:
                await scope.line.wait(task, place)
            finally:
                watch.stop()
            if scope is self._innermost(closing):
                return scope
            scope.give()  # the transaction ended during the wait

    def give(self) -> None:
        """End the turn, and give the line to the next waiting task."""
        self.line.hand_over()

    def enter(self) -> Scope:
        """Open a transaction in this scope. The current task has the turn, and keeps it."""
        self.block = block = Scope()
        _inside.set((*(each for each in _inside.get() if each.open), block))
        return block

    def shut(self) -> None:
        """End all transactions in this scope, and give back their turns."""
        block, self.block = self.block, None
        if block is not None:
            block.shut()
            block.open = False
            self.give()


class _Watch:
    """Checks repeatedly whether the same transaction still makes a task wait."""

    def __init__(self, scope: Scope, place: asyncio.Future[None], timeout: float | None) -> None:
        self._scope = scope
        self._place = place
        self._timeout = timeout
        self._timer: asyncio.TimerHandle | None = None
        self._begin()

    def _begin(self) -> None:
        self._block = self._scope.block
        if self._timeout is not None:
            self._timer = self._place.get_loop().call_later(self._timeout, self._look)

    def _look(self) -> None:
        block = self._scope.block
        if block is None or block is not self._block:
            self._begin()
        elif not self._place.done():
            task = "another task" if block.task is None else f"task {block.task.get_name()!r}"
            self._place.set_exception(
                QueueTimeout(
                    f"The connection was in a transaction of {task} for {self._timeout:g} s. "
                    "Statements of other tasks wait until it ends; tasks started inside the "
                    "transaction belong to it. Use a separate connection for each task."
                )
            )

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
