"""GeneralLink: a link through SQLAlchemy's own connection, for any engine and its listeners."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, RootTransaction, TextClause
from sqlalchemy import Transaction as SQLTransaction
from sqlalchemy.exc import DBAPIError

from qsession.engine import is_replicated
from qsession.pool.link import Take
from qsession.pool.parameters import Given, bind, bind_many
from qsession.waiting.greenlets import spawn

T = TypeVar("T")


class GeneralLink:
    """A connection of SQLAlchemy, in AUTOCOMMIT mode outside transactions."""

    def __init__(
        self, engine: Engine, options: Mapping[str, Any], to_read: bool | None = None
    ) -> None:
        self._engine = engine
        self._connect = engine.connect
        if to_read is not None and is_replicated(engine):
            access = {"qsession_access": "read" if to_read else "write"}
            self._connect = partial(engine.connect_for, access)
        self._outside = {**options, "isolation_level": "AUTOCOMMIT"}
        self._connection: Connection | None = None
        self.in_transaction = False
        self._failed = False
        """Whether a statement of the transaction has failed."""

    async def open(self) -> None:
        await spawn(self._open)

    async def run(
        self, take: Take[T], sql: str, args: Sequence[Any], named: Mapping[str, Any]
    ) -> T:
        clause, parameters = bind(self._engine.dialect.name, sql, args, named)
        return await spawn(self._execute, take, clause, parameters)

    def bind_many(
        self, sql: str, rows: Iterable[Given]
    ) -> tuple[TextClause, list[dict[str, Any]]] | None:
        clause, parameters = bind_many(self._engine.dialect.name, sql, rows)
        return (clause, parameters) if parameters else None

    async def run_many(self, bound: tuple[TextClause, list[dict[str, Any]]]) -> None:
        await spawn(self._execute, _close, *bound)

    async def begin(self, options: Mapping[str, Any]) -> SQLTransaction:
        begun = await spawn(self._begin, options)
        self.in_transaction = True
        return begun

    async def end(self, begun: SQLTransaction, commit: bool) -> None:
        await spawn(self._end, begun, commit)

    async def close(self) -> None:
        if self._connection is not None:
            await spawn(self._give_back, self._connection)

    async def invalidate(self) -> None:
        connection = self._connection
        if connection is None or connection.closed:
            return
        if self._engine.dialect.has_terminate:
            connection.invalidate()  # outside a greenlet it does not wait
        else:
            await spawn(connection.invalidate)

    # The methods below run in a greenlet.

    def _open(self) -> Connection:
        if self._connection is None:
            self._connection = self._connect()
            self._commit_each_statement(self._connection)
        return self._connection

    def _execute(self, take: Callable[..., T], clause: Any, parameters: Any) -> T:
        connection = self._open()
        try:
            return take(connection.execute(clause, parameters))
        except DBAPIError:
            self._failed = self.in_transaction
            raise
        finally:
            if not self.in_transaction:
                self._discard_if_lost()

    def _begin(self, options: Mapping[str, Any]) -> SQLTransaction:
        connection = self._open()
        if self.in_transaction:
            return connection.begin_nested()
        try:
            connection.rollback()  # SQLAlchemy's own state, around statements already committed
            connection.execution_options(**options)
            return connection.begin()
        except BaseException:
            connection.invalidate()  # its mode is unknown
            raise
        finally:
            self._discard_if_lost()

    def _end(self, transaction: SQLTransaction, commit: bool) -> None:
        connection = transaction.connection
        try:
            if commit:
                if self._failed:
                    # PostgreSQL would answer COMMIT with a rollback, but no error
                    connection.exec_driver_sql("SELECT 1").close()
                transaction.commit()
        finally:
            try:
                transaction.close()  # rolls back if not committed
            except BaseException:
                connection.invalidate()  # the savepoint and its transaction no longer exist
                raise
            finally:
                if isinstance(transaction, RootTransaction):
                    self.in_transaction = self._failed = False
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
            connection.invalidate()  # otherwise it would not return to its pool
            connection.close()
            raise

    def _discard_if_lost(self) -> None:
        """Drop a connection that is no longer valid; the next statement opens another one."""
        connection = self._connection
        if connection is not None and connection.invalidated:
            self._connection = None
            connection.close()


def _close(result: Any) -> None:
    result.close()
