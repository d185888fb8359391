"""Retries of a transaction after a conflict: how many, how soon, and the last error."""

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
"""The longest pause in seconds before the second attempt. It doubles for each further attempt."""
LONGEST_PAUSE = 1.0
"""The limit of this doubling, in seconds."""


class _MayConflict(Protocol):
    """What `run` passes to the function: a session, or a connection of a pool."""

    locks_first: bool

    @property
    def in_conflict(self) -> bool:
        """Whether the transaction is in a conflict, and can only be rolled back."""
        ...

    @property
    def conflict(self) -> BaseException | None:
        """The conflict of the transaction, even if other code has caught the error; else None."""
        ...

    @property
    def _database(self) -> str:
        """The database, in events."""
        ...


_S = TypeVar("_S", bound=_MayConflict)
_T = TypeVar("_T")
_jitter = random.SystemRandom().uniform


def longest_pause(attempt: int) -> float:
    """Seconds to wait at the most after attempt number `attempt`, counted from 1."""
    return float(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(attempt - 1, 30)))


def pause(attempt: int) -> float:
    """Seconds to wait after attempt number `attempt`: a random time, so that rivals part."""
    return _jitter(0, longest_pause(attempt))


def is_conflict(error: BaseException, _above: frozenset[int] = frozenset()) -> bool:
    """Whether an error is a conflict, after which the transaction can be run again.

    Libraries wrap SQLAlchemy's errors in their own, so the causes of an error count as well, even
    behind ``from None``. A group counts if each error in it is a conflict. An error may come of a
    group that it is in: Starlette raises the only error of a group by itself.
    """
    seen = _above
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        if isinstance(each, ConflictError):
            return True
        seen |= {id(each)}
        if isinstance(each, group_class()):
            return all(is_conflict(member, seen) for member in each.exceptions)
        each = each.__cause__ or each.__context__
    return False


def group_class() -> Any:
    """The class of groups. On Python 3.10 it comes with a package, if anybody has imported it."""
    backport = sys.modules.get("exceptiongroup")
    return getattr(builtins, "BaseExceptionGroup", getattr(backport, "BaseExceptionGroup", ()))


def check_attempts(attempts: Any) -> int:
    """Return `attempts` if it is a whole number above 0; else raise `ArgumentError`."""
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
    """Run ``fn(session, *args, **kw)`` in a transaction of `begin`, and again after each conflict.

    The transaction ends before the pause, so that no other task waits for it. It ended in a
    conflict if the error comes from one, or if the session says so: a library may have caught the
    error.
    """
    for attempt in range(1, check_attempts(attempts) + 1):
        lost = False
        try:
            async with begin() as session:
                session.locks_first = attempt > 1
                try:
                    result: _T = await _awaitable(fn, fn(session, *args, **kw))
                    if session.conflict is not None:  # caught: SQLAlchemy would not commit
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
        seconds = pause(attempt)
        from qsession import events  # here: the engine has imported them, a session alone need not

        if events.observers:
            events.emit(events.Retry(session._database, attempt, seconds))
        await asyncio.sleep(seconds)
    raise AssertionError


def _awaitable(fn: Any, result: Any) -> Any:
    if not inspect.isawaitable(result):
        raise TypeError(f"{fn!r} is not an async function: it returned {result!r}")
    return result


def _tell(error: Exception, attempts: int) -> None:
    vars(error)["attempts"] = attempts
    if sys.version_info >= (3, 11):
        error.add_note(f"qsession gave up after {attempts} attempts")
