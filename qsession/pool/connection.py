"""PoolConnection: one connection of the pool, which several tasks may use at once."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, CursorResult, Engine, RootTransaction
from sqlalchemy import Transaction as SQLTransaction
from sqlalchemy.exc import ArgumentError, DBAPIError, InvalidRequestError
from sqlalchemy.util import greenlet_spawn

from qsession.errors import ConflictError
from qsession.pool.parameters import bind, bind_many
from qsession.pool.scope import Scope
from qsession.pool.statements import Statements, Take
from qsession.pool.transaction import Transaction

if TYPE_CHECKING:
    from qsession.config import Access

_T = TypeVar("_T")
_LEVELS = ("READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")


class PoolConnection(Statements):
    """A connection that was acquired from an `AsyncConnectionPool`.

    Several tasks may use it at once: statements queue up behind one another in the order of asking,
    so ``asyncio.gather`` over one connection works. While one task has a `transaction` open, the
    others wait for its end, up to the pool's timeout, then raise `QueueTimeout`. Tasks that were
    started inside of the transaction belong to it.

    A statement that is cancelled outside of a transaction, or finds its server gone, leaves a
    connection that is replaced at the next statement. What had been set on it by SET, and
    temporary tables, are gone then.
    """

    def __init__(self, engine: Engine, access: Access, timeout: float | None) -> None:
        self._engine = engine
        self._outside = {"isolation_level": "AUTOCOMMIT", "qsession_access": access}
        self._timeout = timeout
        self._connection: Connection | None = None
        self._scope = Scope()
        self._conflict: ConflictError | None = None
        self.locks_first = False
        """Whether its transactions take SQLite's write lock with their first statement."""
        self._failed = False
        self._running: asyncio.Task[Any] | None = None
        self._broken_off: asyncio.Task[Any] | None = None

    def __repr__(self) -> str:
        state = "released" if not self._scope.open else "in use"
        inside = " in a transaction" if self.in_transaction else ""
        return f"<PoolConnection of {self._engine.url!r} {state}{inside}>"

    @property
    def in_transaction(self) -> bool:
        """Whether a `transaction` is open on it, by whichever task."""
        return self._scope.block is not None

    @property
    def in_conflict(self) -> bool:
        """Whether its transaction has lost to another one, and can only be rolled back."""
        return self._conflict is not None

    @property
    def conflict(self) -> ConflictError | None:
        """The conflict that its transaction cannot go on after, whoever has hidden that error."""
        return self._conflict

    def transaction(
        self, *, isolation: str | None = None, readonly: bool = False
    ) -> Transaction[PoolConnection]:
        """A transaction, for ``async with``; inside of another one it is a savepoint.

        It commits on a clean exit and rolls back on an error. It is serializable: on SQLite it
        takes its turn among the writers at its first statement; on a server it can end in
        `ConflictError`, which the pool's ``run()`` answers by running it again. ``isolation``
        names a lower level, as ``"read committed"``, which servers go by; on SQLite all levels are
        serializable. With ``readonly`` it reads one snapshot, waits for no writer, and a write
        raises `ReadOnlyError`.
        """
        return Transaction(self, isolation, readonly)

    async def executemany(
        self, sql: str, rows: Iterable[Sequence[Any] | Mapping[str, Any]], /
    ) -> None:
        clause, parameters = bind_many(self._engine.dialect.name, sql, rows)
        if not parameters:
            return
        # It reads nothing that it then writes, so there is nothing that could conflict.
        level = None if self.in_transaction else "read committed"
        async with self.transaction(isolation=level):
            await self._in_turn(self._execute, CursorResult.close, clause, parameters)

    async def _run(
        self, take: Take[_T], sql: str, args: Sequence[Any], named: Mapping[str, Any]
    ) -> _T:
        clause, parameters = bind(self._engine.dialect.name, sql, args, named)
        return await self._in_turn(self._execute, take, clause, parameters)

    async def _in_turn(self, work: Callable[..., _T], *args: Any) -> _T:
        scope = await self._scope.turn(self._timeout)
        try:
            self._refuse_if_released()
            self._running = asyncio.current_task()
            return await greenlet_spawn(work, *args)
        except asyncio.CancelledError:
            if self._running is not None and self._running is self._broken_off:
                self._uncancel(self._running)
            raise
        finally:
            self._running = None
            scope.give()

    def _uncancel(self, task: asyncio.Task[Any]) -> None:
        """Tell the task of the end of the pool, unless it was cancelled by others as well."""
        if sys.version_info < (3, 11) or task.uncancel() == 0:
            self._refuse_if_released()

    async def _close(self) -> None:
        """Roll back what is open and return the connection; without effect when repeated.

        A statement that another task has sent is waited for, but not that task's transaction.
        """
        scope = await self._scope.turn(None, closing=True)
        self._shut()
        scope.give()
        if self._connection is not None:
            await greenlet_spawn(self._give_back, self._connection)

    async def _terminate(self) -> None:
        """Break off the statement that is running, or close the connection where none is."""
        self._shut()
        connection = self._connection
        if self._running is not None:
            self._broken_off = self._running
            self._running.get_loop().call_soon_threadsafe(self._break_off)
        elif connection is not None and not connection.closed:
            if self._engine.dialect.has_terminate:
                connection.invalidate()  # outside of a greenlet it waits for nothing
            else:
                await greenlet_spawn(connection.invalidate)

    def _break_off(self) -> None:
        if self._running is not None and self._running is self._broken_off:
            self._running.cancel()

    def _shut(self) -> None:
        self._scope.shut()
        self._scope.open = False

    def _transaction_options(self, isolation: str | None, readonly: bool) -> dict[str, Any]:
        level = (isolation or "").replace("_", " ").upper()
        if isolation is not None and level not in _LEVELS:
            raise ArgumentError(f"isolation={isolation!r} is none of {', '.join(_LEVELS)}")
        backend = self._engine.dialect.name
        if backend == "sqlite":
            level = "SERIALIZABLE"
        elif not level:
            # InnoDB's SERIALIZABLE locks what it reads; a snapshot neither waits nor makes wait.
            on_mysql = backend in ("mysql", "mariadb")
            level = "REPEATABLE READ" if readonly and on_mysql else "SERIALIZABLE"
        access = "read" if readonly or self._outside["qsession_access"] == "read" else "write"
        options = {"isolation_level": level, "qsession_access": access}
        return {**options, "qsession_locks": True} if self.locks_first else options

    def _refuse_if_released(self) -> None:
        if not self._scope.open:
            raise InvalidRequestError(
                "The connection was released to its pool, or the pool was terminated. A statement "
                "that was running then was broken off; none runs any more."
            )

    # What follows is run in a greenlet, in the connection's turn.

    def _open(self) -> Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
            self._commit_each_statement(self._connection)
        return self._connection

    def _execute(self, take: Take[_T], clause: Any, parameters: Any) -> _T:
        self._refuse_after_conflict()
        connection = self._open()
        try:
            return take(connection.execute(clause, parameters))
        except ConflictError as error:
            self._conflict = error if self.in_transaction else None
            raise
        except DBAPIError:
            self._failed = self.in_transaction
            raise
        finally:
            if not self.in_transaction:
                self._discard_if_lost()

    def _refuse_after_conflict(self) -> None:
        """The database has rolled all of it back, or would do so instead of the commit."""
        if self._conflict is not None:
            raise ConflictError(
                f"The transaction has ended in a conflict already: {self._conflict}",
                self._conflict.orig,
            ) from self._conflict

    def _begin(self, options: Mapping[str, Any]) -> SQLTransaction:
        """Begin the transaction, or a savepoint in it."""
        self._refuse_after_conflict()
        connection = self._open()
        if self.in_transaction:
            return connection.begin_nested()
        try:
            connection.rollback()  # SQLAlchemy's idea of one, around what was committed by itself
            connection.execution_options(**options)
            return connection.begin()
        except BaseException:
            connection.invalidate()  # in which mode it is, is not known
            raise
        finally:
            self._discard_if_lost()

    def _end(self, transaction: SQLTransaction, commit: bool) -> None:
        connection = transaction.connection
        try:
            if commit:
                self._refuse_after_conflict()
                if self._failed:
                    # PostgreSQL would answer COMMIT with a rollback, and no error
                    connection.exec_driver_sql("SELECT 1").close()
                transaction.commit()
        finally:
            try:
                transaction.close()  # rolls back what is not committed
            except BaseException:
                connection.invalidate()  # a savepoint that is gone took its transaction along
                raise
            finally:
                if isinstance(transaction, RootTransaction):
                    self._conflict, self._failed = None, False
                    self._commit_each_statement(connection)

    def _commit_each_statement(self, connection: Connection) -> None:
        try:
            if not connection.invalidated:
                connection.execution_options(**self._outside)
        except BaseException:
            connection.invalidate()
            raise
        finally:
            self._discard_if_lost()

    def _give_back(self, connection: Connection) -> None:
        self._connection = None
        try:
            connection.close()
        except BaseException:
            connection.invalidate()  # else it would not come back to its pool
            connection.close()
            raise

    def _discard_if_lost(self) -> None:
        """Let go of a connection that is no longer valid; the next statement opens another one."""
        connection = self._connection
        if connection is not None and connection.invalidated:
            self._connection = None
            connection.close()
