"""Job: a function that runs in the thread of a connection, and its result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from qsession.waiting.handoff import this_loop


class Job:
    """A function for the thread, and the future that waits for what it returns."""

    __slots__ = ("begun", "function", "future", "loop", "taken_back")

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.loop = this_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.begun = self.taken_back = False

    def settle(self, result: Any, error: BaseException | None) -> None:
        """Deliver the result. In the loop."""
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)
