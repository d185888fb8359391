"""Job: a function on its way through the thread of a connection, and back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol


class Driver(Protocol):
    """The connection whose thread runs it."""

    def job_begins(self, job: Job) -> bool:
        """Whether it is to run: it may have been taken back."""
        ...

    def job_ended(self, job: Job) -> None:
        """It has run."""
        ...


class Job:
    """A function on its way through the thread, and the future that waits for what it returns."""

    __slots__ = ("begun", "driver", "function", "future", "loop", "taken_back")

    def __init__(self, function: Callable[[], Any], driver: Driver) -> None:
        self.function = function
        self.driver = driver
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.begun = self.taken_back = False

    def __call__(self) -> None:
        """Run in the thread. The loop may be closed by then; there is nobody left to tell."""
        result, error = None, None
        try:
            if self.driver.job_begins(self):
                result = self.function()
        except BaseException as raised:
            error = raised
        self.driver.job_ended(self)
        try:
            self.loop.call_soon_threadsafe(self.settle, result, error)
        except RuntimeError:
            return

    def settle(self, result: Any, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


def run_once(box: list[Callable[[], None]]) -> None:
    """Run what is in the box, in the thread, which refers to its last function until the next.

    Nothing may be left in there: rows, or this connection, which would never be closed if nobody
    disposes of the engine.
    """
    box.pop()()
