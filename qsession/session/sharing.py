"""`QSession`: a session that several tasks may use, and that warns of lost changes."""

from __future__ import annotations

import asyncio
import functools
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

from sqlalchemy import exc
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    AsyncSessionTransaction,
)
from sqlalchemy.ext.asyncio.result import _ensure_sync_result
from sqlalchemy.ext.asyncio.session import _AsyncSessionContextManager
from sqlalchemy.util import EMPTY_DICT

from qsession.config import ISOLATIONS, Access, Isolation, check_access, check_priority
from qsession.engine import QueuedAsyncConnection, database_of
from qsession.errors import UncommittedChangesWarning
from qsession.session.inner import InnerSession, inner_maker
from qsession.session.line import Line, SharedResult, in_turn
from qsession.session.retry import is_conflict
from qsession.waiting.greenlets import spawn
from qsession.waiting.handoff import to_end

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.orm import Session, SessionTransaction

Bind = AsyncEngine | AsyncConnection


_F = TypeVar("_F", bound=Callable[..., Any])
_P = ParamSpec("_P")
_T = TypeVar("_T")


def _of_inner(operation: _F) -> _F:
    """As in `AsyncSession`: call the same method of the inner session in a greenlet."""
    name = operation.__name__

    @functools.wraps(operation)
    def run(self: AsyncSession, *args: Any, **kw: Any) -> Any:
        return spawn(getattr(self.sync_session, name), *args, **kw)

    return cast("_F", run)


def _buffered(operation: _F) -> _F:
    """As in `AsyncSession`: fetch all rows inside the greenlet, where it is possible to wait."""
    name = operation.__name__

    @functools.wraps(operation)
    async def run(
        self: AsyncSession,
        statement: Any,
        params: Any = None,
        *,
        execution_options: Any = EMPTY_DICT,
        **kw: Any,
    ) -> Any:
        options = {**(execution_options or EMPTY_DICT), "prebuffer_rows": True}
        execute = getattr(self.sync_session, name)
        result = await spawn(execute, statement, params, execution_options=options, **kw)
        if name == "scalar":
            return result  # any value, whose attributes mean nothing
        return await _ensure_sync_result(result, getattr(self, name))

    return cast("_F", run)


class QSessionTransaction(AsyncSessionTransaction):
    """The result of `QSession.begin` and `begin_nested`. It begins and ends in its turn."""

    __slots__ = ()
    session: QSession

    @property
    def line(self) -> Line:
        """The line of the session."""
        return self.session.line

    start = in_turn(AsyncSessionTransaction.start)
    commit = in_turn(AsyncSessionTransaction.commit)
    rollback = in_turn(AsyncSessionTransaction.rollback)
    __aexit__ = in_turn(AsyncSessionTransaction.__aexit__)


class QSession(AsyncSession):
    """An `AsyncSession` with an access mode, which several tasks may use at once.

    **Sharing.** Operations run one at a time, in the order in which they were called:
    ``asyncio.gather(s.execute(a), s.get(User, 1), s.scalars(b))`` works. All tasks share one
    transaction. A commit or rollback by any task applies to all of them, even inside a ``begin()``
    block of another task. So let only one task commit, and open savepoints from one task at a time.
    ORM objects are plain Python objects. Any task may add objects, but must not change one while
    another task flushes: SQLAlchemy drops the change and warns. A commit expires objects that other
    tasks hold, unless ``expire_on_commit=False``.
    A stream takes its turn for each fetch, and other operations run between fetches. On MySQL and
    MariaDB, any other statement loses the rest of the stream. Operations on the result of
    `connection` do not wait for their turn. A function in `run_sync` has the session until it
    returns; it must not wait for another task that uses the session.

    **Access.** `access` is ``"write"`` (the default: waits for its turn to write before the first
    statement), ``"read"`` (reads a snapshot; a write raises `ReadOnlyError`) or ``"auto"``.
    `priority`: among waiting writers, lower numbers go first; no effect on a server.
    `isolation`, for servers: ``"SERIALIZABLE"`` (the default), ``"REPEATABLE READ"`` or ``"READ
    COMMITTED"``; SQLite is always serializable. These three have no effect if the session is bound
    to a connection, or to an engine that `qsession.create_async_engine` did not make.

    **Leaving the block.** ``async with`` closes the session after the operations that other tasks
    have already called. If the block ends without an error but with uncommitted changes,
    `UncommittedChangesWarning` is emitted. It covers changes of the ORM and its bulk methods,
    executed INSERT, UPDATE and DELETE constructs, and textual SQL that changed rows and returned
    none. It does not cover statements on `connection`.

    Cancellation: an operation that is cancelled while it waits for its turn has no effect. A
    cancellation while the block ends is raised after the session is closed.
    """

    def __init__(
        self,
        bind: Bind | None = None,
        *,
        binds: dict[Any, Bind] | None = None,
        sync_session_class: type[Session] | None = None,
        access: Access = "write",
        priority: int = 0,
        isolation: Isolation | None = None,
        **kw: Any,
    ) -> None:
        if isolation is not None and isolation not in ISOLATIONS:
            raise exc.ArgumentError(
                f"isolation={isolation!r} is not allowed: use one of "
                f"{', '.join(map(repr, ISOLATIONS))}"
            )
        self.access: Access = check_access("access", access)
        self.priority = check_priority("priority", priority)
        self.isolation: Isolation | None = isolation
        self.line = Line()
        super().__init__(
            bind=bind,
            binds=binds,
            sync_session_class=inner_maker(sync_session_class or self.sync_session_class),
            **kw,
        )
        assert isinstance(self.sync_session, InnerSession)
        self.sync_session.line = self.line
        self.sync_session.mode = {
            "qsession_access": access,
            "qsession_priority": priority,
            "qsession_isolation": isolation,
        }

    # AsyncSession implements `scalars`, `stream_scalars` and `aclose` by these methods.
    refresh = in_turn(_of_inner(AsyncSession.refresh))
    if not TYPE_CHECKING:  # mypy cannot pass its overloads through a TypeVar; they stay the same
        execute = in_turn(_buffered(AsyncSession.execute))
        scalar = in_turn(_buffered(AsyncSession.scalar))
    get = in_turn(_of_inner(AsyncSession.get))
    get_one = in_turn(_of_inner(AsyncSession.get_one))
    delete = in_turn(_of_inner(AsyncSession.delete))
    merge = in_turn(_of_inner(AsyncSession.merge))
    flush = in_turn(_of_inner(AsyncSession.flush))
    commit = in_turn(_of_inner(AsyncSession.commit))
    reset = in_turn(_of_inner(AsyncSession.reset))
    invalidate = in_turn(_of_inner(AsyncSession.invalidate))

    @in_turn
    async def run_sync(
        self, fn: Callable[Concatenate[Session, _P], _T], *arg: _P.args, **kw: _P.kwargs
    ) -> _T:
        """As `AsyncSession.run_sync`."""
        return await spawn(fn, self.sync_session, *arg, **kw)

    @property
    def locks_first(self) -> bool:
        """Whether a transaction takes SQLite's write lock with its first statement.

        Its reads then cannot change, so it cannot end in a conflict. `run` sets this for every
        attempt after the first. No effect on a server, or in access ``read``.
        """
        inner = self.sync_session
        assert isinstance(inner, InnerSession)
        return bool(inner.mode.get("qsession_locks"))

    @locks_first.setter
    def locks_first(self, locks: bool) -> None:
        inner = self.sync_session
        assert isinstance(inner, InnerSession)
        inner.mode = {**inner.mode, "qsession_locks": locks}

    @property
    def _database(self) -> str:
        """The database, in events; of several, none."""
        bind = self.sync_session.bind
        return "" if bind is None else database_of(bind.engine)

    @property
    def in_conflict(self) -> bool:
        """Whether the transaction is in a conflict, and can only be rolled back."""
        return self.line.conflict or self.conflict is not None

    @property
    def conflict(self) -> BaseException | None:
        """The conflict of the transaction, even if other code has caught the error; else None."""
        inner = self.sync_session
        assert isinstance(inner, InnerSession)
        refused = inner.refusal
        return refused if refused is not None and is_conflict(refused) else None

    @in_turn
    async def rollback(self) -> None:
        """As `AsyncSession.rollback`."""
        await spawn(self.sync_session.rollback)
        self.line.conflict = False

    @in_turn
    async def close(self) -> None:
        """As `AsyncSession.close`."""
        await spawn(self.sync_session.close)
        self.line.conflict = False

    @in_turn
    async def connection(
        self, bind_arguments: Any = None, execution_options: Any = None, **kw: Any
    ) -> AsyncConnection:
        """As `AsyncSession.connection`; its `get_raw_connection` waits for the write ticket."""
        sync_connection = await spawn(
            self.sync_session.connection,
            bind_arguments=bind_arguments,
            execution_options=execution_options,
            **kw,
        )
        return QueuedAsyncConnection._retrieve_proxy_for_target(sync_connection)

    if not TYPE_CHECKING:  # its overloads stay the same

        async def stream(self, statement: Any, params: Any = None, **kw: Any) -> SharedResult:
            """As `AsyncSession.stream`; each fetch waits for its turn in the session."""
            options = {**(kw.pop("execution_options", None) or {}), "stream_results": True}
            result = SharedResult(
                await self.run_sync(
                    lambda inner: inner.execute(statement, params, execution_options=options, **kw)
                )
            )
            result.line = self.line
            return result

    def add(self, instance: object, _warn: bool = True) -> None:
        """As `AsyncSession.add`. Objects added while another task flushes are in the next flush."""
        owner = self.line.owner
        if owner is not None and owner is not asyncio.current_task():
            _warn = False  # SQLAlchemy's warning is for hooks of the flush itself
        super().add(instance, _warn=_warn)

    def add_all(self, instances: Iterable[object]) -> None:
        """`add` each of `instances`."""
        for each in instances:
            self.add(each)

    def begin(self) -> QSessionTransaction:
        """As `AsyncSession.begin`. Operations of other tasks join the transaction."""
        return QSessionTransaction(self)

    def begin_nested(self) -> QSessionTransaction:
        """As `AsyncSession.begin_nested`. Operations of other tasks join the savepoint."""
        return QSessionTransaction(self, nested=True)

    async def __aexit__(self, type_: object, value: object, traceback: object) -> None:
        clean = type_ is None and self.access != "read"
        closing: list[SessionTransaction] = []
        try:
            lost = await self._end(closing, clean)
        except asyncio.CancelledError:
            await to_end(self._end(closing, clean))
            raise
        if clean and lost:
            warnings.warn(
                f"A session block ended without a commit; these changes are lost: "
                f"{'; '.join(lost)}. Call commit() before the end of the block, use "
                "qsession.begin(), or call rollback() to discard them",
                UncommittedChangesWarning,
                stacklevel=2,
            )

    @in_turn
    async def _end(self, closing: list[SessionTransaction], clean: bool) -> list[str]:
        """Close the session. Return the changes that are lost, if the block ended without an error.

        `closing` keeps the transaction. A close that is cancelled forgets the transaction while its
        connections are still in use; the second call closes them.
        """
        inner = self.sync_session
        assert isinstance(inner, InnerSession)
        lost = inner.unsaved() if clean else []
        interrupted = list(closing)
        transaction = inner.get_transaction()
        if transaction is not None:
            closing.append(transaction)
        await self.close()
        for each in interrupted:
            await spawn(each.close)
        return lost

    def _maker_context_manager(self) -> SessionBlock:
        return SessionBlock(self)


for _name in ("delete_all", "merge_all"):  # SQLAlchemy 2.1
    if hasattr(AsyncSession, _name):
        setattr(QSession, _name, in_turn(_of_inner(getattr(AsyncSession, _name))))


class SessionBlock(_AsyncSessionContextManager[QSession]):
    """A block that commits its transaction on success, and closes its session in any case.

    A cancellation before COMMIT starts rolls back. A later one is raised when COMMIT has ended. The
    session is closed in both cases.
    """

    __slots__ = ()

    async def __aexit__(self, type_: object, value: object, traceback: object) -> None:
        try:
            await self.trans.__aexit__(type_, value, traceback)
        except BaseException as error:
            await self.async_session.__aexit__(type(error), error, error.__traceback__)
            raise
        await self.async_session.__aexit__(type_, value, traceback)
