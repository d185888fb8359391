"""FastAPI: sessions as dependencies, which commit before the answer is sent.

FastAPI runs what follows the ``yield`` of a dependency when the answer has been sent, unless the
dependency has ``scope="function"``, which FastAPI knows from 0.121 on
(https://fastapi.tiangolo.com/advanced/advanced-dependencies). All dependencies here have it. The
rest is that of `qsession.ext.starlette`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import Depends
from fastapi.requests import HTTPConnection
from sqlalchemy.ext.asyncio import async_sessionmaker

from qsession.ext.starlette import Lifespan, QSessionMiddleware, request_session
from qsession.session.maker import QSession, qsession

__all__ = [
    "Lifespan",
    "QSessionMiddleware",
    "ReaderDep",
    "SessionDep",
    "WriterDep",
    "request_session",
    "session_of",
]


def session_of(
    maker: async_sessionmaker[Any] = qsession, *, access: Literal["read", "write"] | None = None
) -> Any:
    """A ``Depends`` for sessions of `maker`: ``Annotated[AsyncSession, session_of(maker)]``.

    The session is that of `request_session`. All that a request needs it for get the same one. It
    is committed when the handler has returned, and before the answer is sent; a commit that fails
    is an error like any other. An exception rolls back, `HTTPException` too; an answer that is
    returned does not, whatever its status. A dependency with a ``yield`` that uses the session
    needs ``scope="function"`` as well.
    """

    async def session(connection: HTTPConnection) -> AsyncIterator[Any]:
        async with request_session(connection, maker, access=access) as session:
            yield session

    return Depends(session, scope="function")


SessionDep = Annotated[QSession, session_of()]
"""A session of `qsession`: a reader for GET and HEAD, and for other methods one that writes."""

ReaderDep = Annotated[QSession, session_of(access="read")]
"""A session of `qsession` that only reads, whatever the method."""

WriterDep = Annotated[QSession, session_of(access="write")]
"""A session of `qsession` that may write, also for GET."""
