"""Running: a statement that a task runs, and that may be broken off from anywhere."""

from __future__ import annotations

import asyncio
import sys
import weakref
from contextlib import suppress
from typing import Any, cast


class Running:
    """The statement of the current task, until `end`. It keeps no task alive that is dropped."""

    __slots__ = ("_broken_off", "_ended", "_task")

    def __init__(self) -> None:
        self._task = weakref.ref(cast("asyncio.Task[Any]", asyncio.current_task()))
        self._broken_off = False
        self._ended = False

    def end(self) -> None:
        """It has ended, and is not broken off any more."""
        self._ended = True

    async def _terminate(self) -> None:
        """Break it off, without waiting for that."""
        task = self._task()
        if task is not None:
            self._broken_off = True
            with suppress(RuntimeError):  # its loop is closed
                task.get_loop().call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        task = self._task()
        if task is not None and not self._ended:
            task.cancel()

    def was_broken_off(self) -> bool:
        """Whether a cancellation is from the end of the pool, and from nobody else."""
        task = self._task()
        if task is None or not self._broken_off:
            return False
        return sys.version_info < (3, 11) or task.uncancel() == 0
