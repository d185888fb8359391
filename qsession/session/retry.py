"""Running a transaction again when it lost a race: how often, how soon, and how the end is told."""

from __future__ import annotations

import asyncio
import builtins
import inspect
import random
import sys
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sqlalchemy import exc

from qsession.errors import ConflictError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

ATTEMPTS = 10
FIRST_PAUSE = 0.01
"""Seconds: the longest pause before the second attempt; it doubles with every further one."""
LONGEST_PAUSE = 1.0
"""Seconds: where the doubling ends."""


class _MayConflict(Protocol):
    """What `run` hands to the function: a session, or a connection of a pool."""

    locks_first: bool

    @property
    def in_conflict(self) -> bool:
        """Whether its transaction has lost to another one, and can only be rolled back."""
        ...

    @property
    def conflict(self) -> BaseException | None:
        """The conflict that its transaction cannot go on after, whoever has hidden that error."""
        ...


_S = TypeVar("_S", bound=_MayConflict)
_T = TypeVar("_T")
_Group: Any = getattr(builtins, "BaseExceptionGroup", ())  # from Python 3.11
_jitter = random.SystemRandom().uniform


def longest_pause(attempt: int) -> float:
    """Seconds to wait at the most after attempt number `attempt`, counted from 1."""
    return float(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(attempt - 1, 30)))


def is_conflict(error: BaseException) -> bool:
    """Whether running again can help: the transaction lost to others, and nothing was written.

    Libraries make errors of their own of SQLAlchemy's, so what an error comes from counts as well,
    also where it says ``from None``. A group is one of conflicts if each error in it is.
    """
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        if isinstance(each, ConflictError):
            return True
        if isinstance(each, _Group):
            return all(is_conflict(member) for member in each.exceptions)
        seen.add(id(each))
        each = each.__cause__ or each.__context__
    return False


def check_attempts(attempts: Any) -> int:
    """`attempts` itself, or `sqlalchemy.exc.ArgumentError` when it is no count."""
    if not isinstance(attempts, int) or attempts < 1:
        raise exc.ArgumentError(f"attempts={attempts!r} is not allowed: use a whole number above 0")
    return attempts


async def run(
    begin: Callable[[], AbstractAsyncContextManager[_S]],
    attempts: int,
    fn: Callable[..., Awaitable[_T]],
    /,
    *args: Any,
    **kw: Any,
) -> _T:
    """Run ``fn(session, *args, **kw)`` in a transaction of `begin`, again after each conflict.

    The transaction is over before the pause, so that it holds nobody up. It has ended in a conflict
    if the error comes from one, or if the session says so: a library may have hidden the error.
    """
    for attempt in range(1, check_attempts(attempts) + 1):
        lost = False
        try:
            async with begin() as session:
                session.locks_first = attempt > 1
                try:
                    result: _T = await _awaitable(fn, fn(session, *args, **kw))
                    if session.conflict is not None:  # hidden: SQLAlchemy would end, and not commit
                        raise session.conflict
                finally:
                    lost = session.in_conflict
                return result
        except Exception as error:
            if not (lost or is_conflict(error)):
                raise
            if attempt == attempts:
                _tell(error, attempt)
                raise
        await asyncio.sleep(_jitter(0, longest_pause(attempt)))
    raise AssertionError


def _awaitable(fn: Any, result: Any) -> Any:
    if not inspect.isawaitable(result):
        raise TypeError(f"{fn!r} is not an async function: it returned {result!r}")
    return result


def _tell(error: Exception, attempts: int) -> None:
    vars(error)["attempts"] = attempts
    if sys.version_info >= (3, 11):
        error.add_note(f"qsession gave up after {attempts} attempts")
