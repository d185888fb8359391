"""Cancelling a task at its n-th await, and at each of them in turn."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Generator
from enum import Enum
from itertools import count
from pathlib import Path
from typing import Any


class When(Enum):
    """The moment at which a task that is about to wait gets cancelled."""

    ASKED = "asked"
    """As soon as it waits."""
    ANSWERED = "answered"
    """What it waits for is there, but the task has not seen it yet."""
    TWICE = "twice"
    """As soon as it waits, and once more in the middle of its clean-up."""
    ALL = "all"
    """As soon as it waits, and every other task of the loop with it, but for the one that tests.
    `asyncio.run` does so at its end.
    """


async def cancel_at_every_await(
    function: Callable[[], Coroutine[Any, Any, Any]],
    check: Callable[[], Awaitable[Any] | None],
    *,
    when: When = When.ASKED,
) -> int:
    """Run ``function`` in a task again and again, and cancel it at its 1st await, its 2nd, ...

    An await counts if the task really waits there. ``check`` is called after each run, also after
    the last one, which completes. It may be a plain or an asynchronous function; write in it what
    must be true however far ``function`` came. Returns at how many awaits it was cancelled.

    An error of ``function`` or ``check`` after a cancellation is raised as `AssertionError` from
    that error, which says at which await and where that was. An error of the last run is raised
    as it is. If this call is cancelled, the task is cancelled too.
    """
    for number in count(1):
        run = _CancelAt(function(), number, when)
        try:
            ended = await _ended(run)
            checked = check()
            if checked is not None:
                await checked
        except Exception as error:
            if not run.where:
                raise
            raise AssertionError(
                f"cancelled at await {number}, {run.where}: {type(error).__name__}: {error}"
            ) from error
        if ended:
            return number - 1
    raise AssertionError  # count() does not end


async def cancel_at(coroutine: Coroutine[Any, Any, Any], n: int, when: When = When.ASKED) -> bool:
    """Run a coroutine in a task, which is cancelled at its ``n``-th await.

    Returns whether it had ended before. Raises what the coroutine raises, but no `CancelledError`
    from this cancellation.
    """
    return await _ended(_CancelAt(coroutine, n, when))


async def _ended(run: _CancelAt) -> bool:
    """Whether it ran to its end without having been cancelled."""

    async def drive() -> None:
        await run

    task = asyncio.create_task(drive())
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait([task])
        raise
    if task.cancelled() and run.where:
        return False
    task.result()
    return not run.where


class _CancelAt:
    """Awaits a coroutine and cancels the present task at its ``n``-th suspension."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], n: int, when: When) -> None:
        self.where = ""
        """The line at which the coroutine waited when it was cancelled; empty before that."""
        self._coroutine = coroutine
        self._n = n
        self._when = when
        self._suspensions = 0
        self._spared = asyncio.current_task()

    def __await__(self) -> Generator[Any, Any, Any]:
        error: BaseException | None = None
        while True:
            try:
                if error is None:
                    awaited = self._coroutine.send(None)
                else:
                    awaited = self._coroutine.throw(error)
            except StopIteration as end:
                return end.value
            self._suspensions += 1
            again = self._when is When.TWICE and self._suspensions == self._n + 1
            if self._suspensions == self._n or again:
                self.where = self.where or _line_of(self._coroutine)
                self._cancel(awaited)
            error = None
            try:
                yield awaited
            except BaseException as thrown:
                error = thrown

    def _cancel(self, awaited: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._when is When.ALL:
            for each in asyncio.all_tasks() - {self._spared}:
                each.cancel()
        elif self._when is not When.ANSWERED:
            task.cancel()
        elif awaited is None:
            asyncio.get_running_loop().call_soon(task.cancel)
        else:  # runs before the callback that wakes the task up, which is added later
            awaited.add_done_callback(lambda _: task.cancel())


def _line_of(coroutine: Any) -> str:
    """The line of a coroutine at which it waits. What it awaits is not followed further."""
    frame = getattr(coroutine, "cr_frame", None)
    if not inspect.isframe(frame):
        return repr(coroutine)
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} in {frame.f_code.co_name}"
