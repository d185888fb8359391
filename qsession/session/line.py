"""How several tasks share one session: its operations queue up behind one another.

A SQLAlchemy session is in the middle of something whenever it awaits, and a second operation begun
then would find it half changed. Here the second waits for the first to end. The one who is next is
handed the session directly, in the order of asking. Nothing is awaited while the session is free.
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

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

_F = TypeVar("_F", bound=Callable[..., Any])
_C = TypeVar("_C", bound=type)
_Task = asyncio.Task[Any]


class Line:
    """The tasks that wait for one session, and the one that is using it.

    Invariant: whoever waits, waits for an owner. Like the session, it is used by one thread.
    """

    __slots__ = ("conflict", "owner", "waiting")

    def __init__(self) -> None:
        self.owner: _Task | None = None
        self.conflict = False
        """Whether an operation has met a conflict, and its transaction is still to be ended."""
        self.waiting: deque[tuple[asyncio.Future[None], _Task | None]] = deque()

    async def wait(self, task: _Task | None, place: asyncio.Future[None] | None = None) -> None:
        """Wait until the session is handed to `task`.

        Cancellation, and an error that is set on `place`: the place is given up; if the session had
        just been handed over, it goes on to the next in line.
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
        """Give the session to the next task that still waits, or to nobody."""
        while self.waiting:
            place, task = self.waiting.popleft()
            if not place.done() and not place.get_loop().is_closed():
                self.owner = task
                place.set_result(None)
                return
        self.owner = None


def in_turn(operation: _F) -> _F:
    """Make an async method of an object with a `line` wait for its turn.

    A task that has the session already goes straight in, since operations call each other.
    """

    @functools.wraps(operation)
    async def queued(self: Any, *args: Any, **kw: Any) -> Any:
        line: Line = self.line
        task = asyncio.current_task()
        if line.owner is task:
            return await operation(self, *args, **kw)
        if line.owner is None:
            line.owner = task
        else:
            await line.wait(task)
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

    It is reached without the async session by ``awaitable_attrs`` and by lazy loads in
    ``greenlet_spawn``. Outside of a loop it goes straight in, and SQLAlchemy says what is wrong.
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
    """Rows of a stream. Other tasks may use the session between two fetches, not during one."""

    line: Line

    async def partitions(self, size: int | None = None) -> AsyncIterator[Sequence[Any]]:
        """Lists of `size` rows, each fetched in its turn."""
        while part := await self.fetchmany(size):
            yield part

    def scalars(self, index: Any = 0) -> SharedScalarResult:
        """The values of one column, as `AsyncResult.scalars` gives them."""
        result = SharedScalarResult(self, index)
        result._real_result = self._real_result  # which SQLAlchemy's later versions do themselves
        result.line = self.line
        return result

    def mappings(self) -> SharedMappingResult:
        """The rows as mappings, as `AsyncResult.mappings` gives them."""
        result = SharedMappingResult(self)
        result._real_result = self._real_result
        result.line = self.line
        return result
