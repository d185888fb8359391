"""`rolled_back`: a session whose commits are undone at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from typing import Any, TypeVar, overload

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

_A = TypeVar("_A", bound=AsyncSession)
_S = TypeVar("_S", bound=Session)


@overload
def rolled_back(engine: AsyncEngine) -> AbstractAsyncContextManager[AsyncSession]: ...
@overload
def rolled_back(engine: Engine) -> AbstractContextManager[Session]: ...
@overload
def rolled_back(
    engine: AsyncEngine, make: Callable[..., _A]
) -> AbstractAsyncContextManager[_A]: ...
@overload
def rolled_back(engine: Engine, make: Callable[..., _S]) -> AbstractContextManager[_S]: ...
def rolled_back(engine: AsyncEngine | Engine, make: Callable[..., Any] | None = None) -> Any:
    """A session for an ``async with`` block, or for ``with`` if the engine is synchronous.

    The code under test may commit and roll back. Its transactions are savepoints of one
    transaction of a connection, which is rolled back at the end of the block, also after an error
    or a cancellation. ``make`` makes the session: a class, or a maker such as `qsession`.

    The session is the only one that sees what was written, and on SQLite other writers wait for
    the end of the block. So this cannot show conflicts, waiting, a failed commit, or anything that
    a database checks or does at the real COMMIT, such as deferred foreign keys. Source: "Joining a
    Session into an External Transaction" in SQLAlchemy's documentation.
    """
    if isinstance(engine, AsyncEngine):
        return _async_session(engine, make or AsyncSession)
    return _session(engine, make or Session)


@asynccontextmanager
async def _async_session(engine: AsyncEngine, make: Callable[..., _A]) -> AsyncIterator[_A]:
    async with engine.connect() as connection:
        await connection.begin()
        async with make(bind=connection, join_transaction_mode="create_savepoint") as session:
            yield session


@contextmanager
def _session(engine: Engine, make: Callable[..., _S]) -> Iterator[_S]:
    with engine.connect() as connection:
        connection.begin()
        with make(bind=connection, join_transaction_mode="create_savepoint") as session:
            yield session
