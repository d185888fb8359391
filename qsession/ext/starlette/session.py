"""`request_session`: one transaction for one request, committed before there is an answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal, TypeVar, overload

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request

from qsession.engine import database_of
from qsession.ext.starlette.client import has_gone
from qsession.session.inner import refusal_of
from qsession.session.maker import QSession, qsession
from qsession.session.retry import is_conflict

_S = TypeVar("_S", bound=AsyncSession)
ATTEMPT = "qsession.attempt"
"""Where the scope of a request has its `Attempt`."""


class Attempt:
    """One run of an application for a request, and what became of its transactions."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.conflict = False
        """Whether a transaction ended in a conflict."""
        self.database = ""
        """The database of that transaction, in events."""
        self.committed = False
        """Whether a transaction was committed: a second run would do its work twice."""

    def note_commit(self, session: Session) -> None:
        """An event of SQLAlchemy, which also tells of savepoints."""
        self.committed = self.committed or not session.in_nested_transaction()


@overload
def request_session(
    request: HTTPConnection, *, access: Literal["read", "write"] | None = None
) -> AbstractAsyncContextManager[QSession]: ...
@overload
def request_session(
    request: HTTPConnection,
    maker: async_sessionmaker[_S],
    *,
    access: Literal["read", "write"] | None = None,
) -> AbstractAsyncContextManager[_S]: ...
@asynccontextmanager
async def request_session(
    request: HTTPConnection,
    maker: async_sessionmaker[Any] = qsession,
    *,
    access: Literal["read", "write"] | None = None,
) -> AsyncIterator[Any]:
    """``async with``: the session of a request, which is committed at the end of the block.

    For GET and HEAD it is a reader: one snapshot, no waiting, and `ReadOnlyError` at a write. For
    any other method it waits for its turn, as the sessions of `maker` do. `access` says it instead
    of the method. Nothing is opened before the first statement.

    An exception rolls back, and so does a cancellation. If the client has gone before the commit,
    the transaction is rolled back with ``HTTPException(499)``, which nobody receives. (Behind a
    ``BaseHTTPMiddleware``, Starlette does not know that a client has gone.) Answer after the block:
    a commit that fails is then no success.

    After the block the session is closed for good, so a stream or a background task that still uses
    it gets `sqlalchemy.exc.InvalidRequestError`. Raises `RuntimeError` for a WebSocket, which may
    be open for hours: open a session for each message.
    """
    if not isinstance(request, Request):
        raise RuntimeError(  # noqa: TRY004
            "A WebSocket may be open for hours, so it has no session of its own: open one for each "
            "message, with 'async with qsession.begin() as s:' or 'qsession.reader()'"
        )
    reads = access == "read" or (access is None and request.method in ("GET", "HEAD"))
    attempt: Attempt = request.scope.get(ATTEMPT) or Attempt(1)
    session = _session(maker, reads, attempt.number > 1)
    event.listen(session.sync_session, "after_commit", attempt.note_commit)
    async with session:
        returned = False
        try:
            yield session
            returned = True
            if reads:
                await session.flush()  # a change that was not sent yet is an error, not lost
            else:
                await _commit(session, request)
        except Exception as error:
            # Until the block ends, the conflict may be that of another session.
            if (returned and is_conflict(error)) or _in_conflict(session):
                bind = session.sync_session.bind
                attempt.conflict = True
                attempt.database = "" if bind is None else database_of(bind.engine)
            raise


def _session(maker: async_sessionmaker[Any], reads: bool, again: bool) -> AsyncSession:
    """A new session, which takes the write lock with its first statement if it runs `again`."""
    if issubclass(maker.class_, QSession):
        access = {"access": "read"} if reads else {}
        session: QSession = maker(close_resets_only=False, **access)
        session.locks_first = again
        return session
    options: dict[str, Any] = {"qsession_access": "read"} if reads else {"qsession_locks": again}
    bind = maker.kw["bind"]
    if isinstance(bind, AsyncEngine):
        bind = bind.execution_options(**options)
    plain: AsyncSession = maker(bind=bind, close_resets_only=False)
    return plain


def _in_conflict(session: AsyncSession) -> bool:
    if isinstance(session, QSession):
        return session.in_conflict
    return _conflict_of(session) is not None


def _conflict_of(session: AsyncSession) -> BaseException | None:
    refused = refusal_of(session.sync_session)
    return refused if refused is not None and is_conflict(refused) else None


async def _commit(session: AsyncSession, request: Request) -> None:
    conflict = _conflict_of(session)
    if conflict is not None:  # the handler has caught it
        raise conflict
    if await has_gone(request):
        raise HTTPException(499, "The client disconnected before the commit.")
    await session.commit()
