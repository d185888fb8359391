"""Running: a statement of a task, which any thread may interrupt."""

from __future__ import annotations

import asyncio
import sys
import weakref
from contextlib import suppress
from typing import Any, cast

from qsession.waiting.handoff import this_task


class Running:
    """The statement of the current task, until `end`. Its reference to the task is weak."""

    __slots__ = ("_broken_off", "_ended", "_task")

    def __init__(self) -> None:
        self._task = weakref.ref(cast("asyncio.Task[Any]", this_task()))
        self._broken_off = False
        self._ended = False

    def end(self) -> None:
        """Note that it has ended, and can no longer be interrupted."""
        self._ended = True

    async def _terminate(self) -> None:
        """Interrupt it, without waiting."""
        task = self._task()
        if task is not None:
            self._broken_off = True
            with suppress(RuntimeError):  # the loop is closed
                task.get_loop().call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        task = self._task()
        if task is not None and not self._ended:
            task.cancel()

    def was_broken_off(self) -> bool:
        """Whether the pool caused the cancellation, and no other code did."""
        task = self._task()
        if task is None or not self._broken_off:
            return False
        return sys.version_info < (3, 11) or task.uncancel() == 0
