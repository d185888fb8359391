"""How several tasks share one session: its operations run one after the other.

While a SQLAlchemy session awaits, an operation is not finished, and a second one would find the
session half changed. Here the second operation waits until the first has ended. A task that ends
an operation hands the session to the next task in line. If the session is free, nothing is awaited.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sqlalchemy.ext.asyncio import AsyncMappingResult, AsyncResult, AsyncScalarResult
from sqlalchemy.util import await_only

from qsession.errors import ConflictError
from qsession.waiting.handoff import this_task

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

_F = TypeVar("_F", bound=Callable[..., Any])
_C = TypeVar("_C", bound=type)
_Task = asyncio.Task[Any]


class Line:
    """The tasks that wait for one session, and the task that uses it.

    Invariant: tasks wait only while there is an owner. Only one thread uses a line and its session.
    """

    __slots__ = ("conflict", "owner", "waiting")

    def __init__(self) -> None:
        self.owner: _Task | None = None
        self.conflict = False
        """Whether an operation raised a conflict, and its transaction has not ended yet."""
        self.waiting: deque[tuple[asyncio.Future[None], _Task | None]] = deque()

    async def wait(self, task: _Task | None, place: asyncio.Future[None] | None = None) -> None:
        """Wait until the session is handed to `task`.

        After a cancellation, or an error set on `place`, the task leaves the line. If it had just
        got the session, the session goes to the next task.
        """
        assert self.owner is not None
        place = place or asyncio.get_running_loop().create_future()
        entry = (place, task)
        self.waiting.append(entry)
        try:
            await place
        except BaseException:
            if self.owner is task:
                self.hand_over()
            elif entry in self.waiting:
                self.waiting.remove(entry)
            raise

    def hand_over(self) -> None:
        """Give the session to the next task that still waits, if there is one."""
        while self.waiting:
            place, task = self.waiting.popleft()
            if not place.done() and not place.get_loop().is_closed():
                self.owner = task
                place.set_result(None)
                return
        self.owner = None


def in_turn(operation: _F) -> _F:
    """Make an async method of an object with a `line` wait for its turn.

    A task that already has the session does not wait, since operations call each other.
    """

    @functools.wraps(operation)
    async def queued(self: Any, *args: Any, **kw: Any) -> Any:
        line: Line = self.line
        owner = line.owner
        if owner is None:
            line.owner = this_task()
        elif asyncio.current_task(owner.get_loop()) is owner:
            return await operation(self, *args, **kw)
        else:
            await line.wait(this_task())
        try:
            return await operation(self, *args, **kw)
        except ConflictError:
            line.conflict = True
            raise
        finally:
            if line.waiting:
                line.hand_over()
            else:
                line.owner = None

    return cast("_F", queued)


def in_turn_from_greenlet(operation: _F) -> _F:
    """Make a method of the synchronous session wait for its turn.

    ``awaitable_attrs`` and lazy loads in ``greenlet_spawn`` call it without the async session.
    Outside an event loop it does not wait, and SQLAlchemy raises its own error.
    """

    @functools.wraps(operation)
    def queued(self: Any, *args: Any, **kw: Any) -> Any:
        line: Line = self.line
        try:
            task = asyncio.current_task()
        except RuntimeError:
            task = None
        if line.owner is task:
            return operation(self, *args, **kw)
        if line.owner is None:
            line.owner = task
        else:
            await_only(line.wait(task))
        try:
            return operation(self, *args, **kw)
        except ConflictError:
            line.conflict = True
            raise
        finally:
            line.hand_over()

    return cast("_F", queued)


_FETCHES = (
    "__anext__",
    "all",
    "close",
    "fetchall",
    "fetchmany",
    "fetchone",
    "first",
    "freeze",
    "one",
    "one_or_none",
    "scalar",
    "scalar_one",
    "scalar_one_or_none",
)


def _fetching_in_turn(result: _C) -> _C:
    for name in _FETCHES:
        if hasattr(result, name):
            setattr(result, name, in_turn(getattr(result, name)))
    return result


@_fetching_in_turn
class SharedScalarResult(AsyncScalarResult[Any]):
    """Single values of a stream, each fetch in its turn."""

    line: Line

    async def partitions(self, size: int | None = None) -> AsyncIterator[Sequence[Any]]:
        """Lists of `size` values, each fetched in its turn."""
        while part := await self.fetchmany(size):
            yield part


@_fetching_in_turn
class SharedMappingResult(AsyncMappingResult):
    """Rows of a stream as mappings, each fetch in its turn."""

    line: Line

    async def partitions(self, size: int | None = None) -> AsyncIterator[Sequence[Any]]:
        """Lists of `size` mappings, each fetched in its turn."""
        while part := await self.fetchmany(size):
            yield part


@_fetching_in_turn
class SharedResult(AsyncResult[Any]):
    """Rows of a stream. Other tasks may use the session between two fetches."""

    line: Line

    async def partitions(self, size: int | None = None) -> AsyncIterator[Sequence[Any]]:
        """Lists of `size` rows, each fetched in its turn."""
        while part := await self.fetchmany(size):
            yield part

    def scalars(self, index: Any = 0) -> SharedScalarResult:
        """The values of one column, as `AsyncResult.scalars` gives them."""
        result = SharedScalarResult(self, index)
        result._real_result = self._real_result  # later versions of SQLAlchemy do this themselves
        result.line = self.line
        return result

    def mappings(self) -> SharedMappingResult:
        """The rows as mappings, as `AsyncResult.mappings` gives them."""
        result = SharedMappingResult(self)
        result._real_result = self._real_result
        result.line = self.line
        return result
