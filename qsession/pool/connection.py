"""PoolConnection: one connection of the pool, which several tasks may use at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import ArgumentError, InvalidRequestError

from qsession.engine import database_of, is_replicated
from qsession.errors import ConflictError
from qsession.pool.link import Link, Take
from qsession.pool.running import Running
from qsession.pool.scope import Scope
from qsession.pool.statements import Statements
from qsession.pool.transaction import Transaction

if TYPE_CHECKING:
    from qsession.config import Access

_T = TypeVar("_T")
_LEVELS = ("READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")


class PoolConnection(Statements):
    """A connection that was acquired from an `AsyncConnectionPool`.

    Several tasks may use it at once: statements run one at a time, in the order in which they were
    called, so ``asyncio.gather`` over one connection works. While one task has a `transaction`
    open, other tasks wait until it ends, and after the pool's timeout get `QueueTimeout`. Tasks
    started inside the transaction belong to it.

    If a statement is cancelled outside a transaction, or the server is lost, the connection is
    replaced at the next statement. Settings made by SET and temporary tables are then gone.
    """

    def __init__(self, engine: Engine, link: Link, access: Access, timeout: float | None) -> None:
        self._engine = engine
        self._link = link
        self._access = access
        self._timeout = timeout
        self._scope = Scope()
        self._conflict: ConflictError | None = None
        self.locks_first = False
        """Whether its transactions take SQLite's write lock with their first statement."""
        self._running: Running | None = None

    def __repr__(self) -> str:
        state = "released" if not self._scope.open else "in use"
        inside = " in a transaction" if self.in_transaction else ""
        return f"<PoolConnection of {self._engine.url!r} {state}{inside}>"

    @property
    def in_transaction(self) -> bool:
        """Whether any task has a `transaction` open on it."""
        return self._scope.block is not None

    @property
    def _database(self) -> str:
        """The database, in events."""
        return database_of(self._engine)

    @property
    def in_conflict(self) -> bool:
        """Whether the transaction is in a conflict, and can only be rolled back."""
        return self._conflict is not None

    @property
    def conflict(self) -> ConflictError | None:
        """The conflict of the transaction, even if other code has caught the error; else None."""
        return self._conflict

    def transaction(
        self, *, isolation: str | None = None, readonly: bool = False
    ) -> Transaction[PoolConnection]:
        """A transaction, for ``async with``; inside another transaction it is a savepoint.

        It commits on success and rolls back on an error. It is serializable: on SQLite it waits for
        its turn to write before its first statement; on a server it can end in `ConflictError`,
        after which the pool's ``run()`` runs it again. ``isolation`` sets a lower level on servers,
        such as ``"read committed"``; SQLite is always serializable. With ``readonly`` it reads a
        snapshot without waiting, and a write raises `ReadOnlyError`.
        """
        return Transaction(self, isolation, readonly)

    async def executemany(
        self, sql: str, rows: Iterable[Sequence[Any] | Mapping[str, Any]], /
    ) -> None:
        bound = self._link.bind_many(sql, rows)
        if bound is None:
            return
        # It does not write what it has read, so it cannot conflict.
        level = None if self.in_transaction else "read committed"
        async with self.transaction(isolation=level):
            await self._in_turn(self._link.run_many, bound)

    async def _run(
        self, take: Take[_T], sql: str, args: Sequence[Any], named: Mapping[str, Any]
    ) -> _T:
        return await self._in_turn(self._link.run, take, sql, args, named)

    async def _open(self) -> None:
        await self._in_turn(self._link.open)

    async def _in_turn(self, work: Callable[..., Awaitable[_T]], *args: Any) -> _T:
        scope = await self._scope.turn(self._timeout)
        try:
            self._refuse_if_released()
            self._refuse_after_conflict()
            running = self._running = Running()
            return await work(*args)
        except ConflictError as error:
            if self._conflict is None and self.in_transaction:
                self._conflict = error
            raise
        except asyncio.CancelledError:
            if running.was_broken_off():
                self._refuse_if_released()
            raise
        finally:
            if self._running is not None:
                self._running.end()
            self._running = None
            scope.give()

    async def _close(self) -> None:
        """Roll back an open transaction and return the connection. No effect the second time.

        It waits for a statement of another task, but not for that task's transaction.
        """
        scope = await self._scope.turn(None, closing=True)
        self._shut()
        scope.give()
        await self._link.close()

    async def _terminate(self) -> None:
        """Interrupt the running statement, or close the connection if none runs."""
        self._shut()
        if self._running is not None:
            await self._running._terminate()
        else:
            await self._link.invalidate()

    def _shut(self) -> None:
        self._scope.shut()
        self._scope.open = False

    def _transaction_options(self, isolation: str | None, readonly: bool) -> dict[str, Any]:
        level = (isolation or "").replace("_", " ").upper()
        if isolation is not None and level not in _LEVELS:
            raise ArgumentError(
                f"isolation={isolation!r} is not allowed: use one of {', '.join(_LEVELS)}"
            )
        backend = self._engine.dialect.name
        access = "read" if readonly or self._access == "read" else "write"
        if backend == "sqlite":
            level = "SERIALIZABLE"
        elif not level:
            # InnoDB's SERIALIZABLE locks what it reads, and no replica of PostgreSQL offers it.
            snapshot = readonly and backend in ("mysql", "mariadb")
            if access == "read" and is_replicated(self._engine):
                snapshot = True
            level = "REPEATABLE READ" if snapshot else "SERIALIZABLE"
        options = {"isolation_level": level, "qsession_access": access}
        return {**options, "qsession_locks": True} if self.locks_first else options

    def _refuse_if_released(self) -> None:
        if not self._scope.open:
            raise InvalidRequestError(
                "The connection was released to its pool, or the pool was terminated. A statement "
                "that was running then was interrupted. Acquire a new connection."
            )

    def _refuse_after_conflict(self) -> None:
        """Raise after a conflict: the database has rolled back, or would do so at COMMIT."""
        if self._conflict is not None:
            raise ConflictError(
                f"The transaction has already ended in a conflict: {self._conflict}",
                self._conflict.orig,
            ) from self._conflict

    async def _begin(self, options: Mapping[str, Any]) -> Any:
        """Begin the transaction, or a savepoint in it. In the connection's turn."""
        self._refuse_after_conflict()
        return await self._link.begin(options)

    async def _end(self, begun: Any, commit: bool) -> None:
        """End the transaction or savepoint from `_begin`. In the connection's turn."""
        lost = commit and self._conflict is not None
        try:
            await self._link.end(begun, commit and not lost)
            if lost:
                self._refuse_after_conflict()
        finally:
            if not self._link.in_transaction:
                self._conflict = None
