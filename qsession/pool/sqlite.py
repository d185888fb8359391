"""SQLite without SQLAlchemy's own connection: statements go directly to the engine's transactions.

The pool of connections, the queue, the syncer and the log of reads are those of the engine. Rows
and errors are the same as from SQLAlchemy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, PendingRollbackError

from qsession.pool.link import Take
from qsession.pool.parameters import Given, bind_in_order, bind_many_in_order
from qsession.pool.rows import Found
from qsession.sqlite.connection import RoutedConnection
from qsession.sqlite.lone import Lane
from qsession.sqlite.pool import WriteQueuePool
from qsession.sqlite.transaction.sending import Outcome
from qsession.sqlite.transaction.statement import Statement, words_of
from qsession.waiting.greenlets import spawn

T = TypeVar("T")


class Direct:
    """The statements of one engine, from all loops."""

    def __init__(self, engine: Engine, options: Mapping[str, Any]) -> None:
        self._engine = engine
        self._given = options
        self._base: Any = None
        self._options: Mapping[str, Any] = options
        self._lane: Lane | None = None

    @property
    def is_observed(self) -> bool:
        """Whether there are listeners or logging, so that SQLAlchemy's connection must be used."""
        engine = self._engine
        return bool(
            engine._has_events
            or engine.dialect._has_events
            or Connection._has_events
            or engine._should_log_info()
        )

    @property
    def options(self) -> Mapping[str, Any]:
        """The execution options of the engine and of the pool."""
        base = self._engine._execution_options
        if base is not self._base:
            self._base, self._options = base, {**base, **self._given}
        return self._options

    @property
    def pool(self) -> WriteQueuePool:
        return cast("WriteQueuePool", self._engine.pool)

    async def run(
        self, take: Take[T], sql: str, args: Sequence[Any], named: Mapping[str, Any]
    ) -> T:
        """Run a statement and commit it. Errors and cancellation are as for `Link.run`."""
        statement = statement_of(*bind_in_order(sql, args, named))
        return take(await self.run_alone(statement, None))

    def link(self) -> SQLiteLink:
        """A new link."""
        return SQLiteLink(self)

    async def run_alone(self, statement: Statement, connection: RoutedConnection | None) -> Found:
        """Run a statement and commit it.

        ``connection``: for statements that must use the same connection each time.
        """
        lane, loop = self._lane, asyncio.get_running_loop()
        if lane is None or lane.loop is not loop or lane.pool is not self._engine.pool:
            lane = self._lane = Lane(self.pool, loop)
        try:
            return found(await lane.run(statement, self.options, connection))
        except Exception as error:
            told = self.explained(error, statement, connection)
            if told is error:
                raise
            raise told from error
        except BaseException as error:
            if connection is not None:
                connection.invalidate(error)  # as SQLAlchemy does it
            raise

    def explained(
        self, error: Exception, statement: Statement | None, connection: RoutedConnection | None
    ) -> Exception:
        """The error as SQLAlchemy raises it. A connection that is found closed is invalidated."""
        dialect = self._engine.dialect
        dbapi: Any = cast("Any", dialect).loaded_dbapi
        if not isinstance(error, dbapi.Error):
            return error
        lost = dialect.is_disconnect(error, cast("Any", connection), None)
        if lost and connection is not None:
            connection.invalidate(error)
        return DBAPIError.instance(  # type: ignore[no-any-return]
            None if statement is None else statement.sql,
            None if statement is None else statement.parameters,
            error,
            dbapi.Error,
            hide_parameters=self._engine.hide_parameters,
            connection_invalidated=lost,
            dialect=dialect,
            ismulti=statement is not None and statement.many,
        )


class SQLiteLink:
    """A connection of SQLite's dialect, used in the same way as SQLAlchemy does."""

    def __init__(self, direct: Direct) -> None:
        self._direct = direct
        self._connection: RoutedConnection | None = None
        self._options: Mapping[str, Any] = {}
        self.in_transaction = False
        self._savepoints = 0
        """The number of savepoints so far; each has a different name."""

    async def open(self) -> None:
        if self._connection is None:
            connection = await self._in_greenlet(self._direct.pool.connect)
            assert isinstance(connection, RoutedConnection)
            connection.isolation_level = "AUTOCOMMIT"
            self._connection = connection

    async def run(
        self, take: Take[T], sql: str, args: Sequence[Any], named: Mapping[str, Any]
    ) -> T:
        return take(await self._run(statement_of(*bind_in_order(sql, args, named))))

    def bind_many(self, sql: str, rows: Iterable[Given]) -> Statement | None:
        sql, found = bind_many_in_order(sql, rows)
        if len(found) < 2:  # one set of parameters is no executemany, as in SQLAlchemy
            return statement_of(sql, found[0]) if found else None
        statement = statement_of(sql, found)
        statement.many = True
        return statement

    async def run_many(self, bound: Statement) -> None:
        await self._run(bound)

    async def _run(self, statement: Statement) -> Found:
        await self.open()
        connection = self._connection
        assert connection is not None
        if self.in_transaction:
            return await self._in_transaction(statement)
        try:
            if connection.transaction.is_untouched:
                return await self._direct.run_alone(statement, connection)
            return await self._send(connection, statement, self._direct.options)
        finally:
            if not connection.is_valid:
                self._connection = None

    async def _in_transaction(self, statement: Statement) -> Found:
        return await self._send(self._valid(), statement, self._options)

    async def _send(
        self, connection: RoutedConnection, statement: Statement, options: Mapping[str, Any]
    ) -> Found:
        execute = connection.transaction.execute
        return found(await self._in_greenlet(execute, statement, options, statement=statement))

    async def _in_greenlet(
        self, function: Callable[..., T], *args: Any, statement: Statement | None = None
    ) -> T:
        """Run it. If cancelled, the connection is invalidated, as in SQLAlchemy."""
        connection = self._connection
        try:
            return await spawn(function, *args)
        except Exception as error:
            told = self._direct.explained(error, statement, connection)
            if told is error:
                raise
            raise told from error
        except BaseException as error:
            if connection is not None:
                connection.invalidate(error)
            raise

    def _valid(self) -> RoutedConnection:
        """The connection. Raises if its transaction was lost."""
        connection = self._connection
        if connection is None or not connection.is_valid:
            raise PendingRollbackError(
                "The transaction was lost when a statement was cancelled or the connection failed. "
                "Roll it back, and begin again.",
                code="8s2b",
            )
        return connection

    async def begin(self, options: Mapping[str, Any]) -> str | None:
        """Begin. Returns the name of a savepoint; None for a transaction, which is sent later."""
        await self.open()
        name = None
        if self.in_transaction:
            self._savepoints += 1
            name = f"qsession_savepoint_{self._savepoints}"
            await self._in_transaction(statement_of(f"SAVEPOINT {name}"))
        else:
            connection = self._valid()
            if not connection.transaction.is_untouched:
                await self._in_greenlet(connection.rollback)
            connection.isolation_level = "SERIALIZABLE"
            self._options = {**self._direct.options, **options}
        self.in_transaction = True
        return name

    async def end(self, name: str | None, commit: bool) -> None:
        try:
            if commit:
                await self._commit(name)
        except BaseException:
            await self._roll_back(name)
            raise
        else:
            if not commit:
                await self._roll_back(name)
        finally:
            if name is None:
                self.in_transaction = False
                self._commit_each_statement()

    async def _commit(self, name: str | None) -> None:
        if name is None:
            await self._in_greenlet(self._valid().commit)
        else:
            await self._in_transaction(statement_of(f"RELEASE SAVEPOINT {name}"))

    async def _roll_back(self, name: str | None) -> None:
        connection = self._connection
        if connection is None or not connection.is_valid:
            return
        if name is None:
            await self._in_greenlet(connection.rollback)
            return
        try:
            await self._in_transaction(statement_of(f"ROLLBACK TO SAVEPOINT {name}"))
        except BaseException:
            connection.invalidate()  # the savepoint and its transaction no longer exist
            raise

    def _commit_each_statement(self) -> None:
        connection = self._connection
        if connection is not None and connection.is_valid:
            connection.isolation_level = "AUTOCOMMIT"
        else:
            self._connection = None

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            # As in SQLAlchemy: pool_reset_on_return is for a transaction that was not ended.
            await self._in_greenlet(connection._close_special, self.in_transaction)

    async def invalidate(self) -> None:
        if self._connection is not None:
            self._connection.invalidate()


def statement_of(sql: str, parameters: Any = ()) -> Statement:
    """A statement for a text."""
    words = words_of(sql)
    return Statement(sql, parameters, words.kind, words)


def found(outcome: Outcome) -> Found:
    """The result with SQLAlchemy's rows."""
    return Found(outcome.rows, outcome.description, outcome.rowcount)
