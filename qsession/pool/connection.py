"""PoolConnection: one connection of the pool, which several tasks may use at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import ArgumentError, InvalidRequestError

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

    Several tasks may use it at once: statements queue up behind one another in the order of asking,
    so ``asyncio.gather`` over one connection works. While one task has a `transaction` open, the
    others wait for its end, up to the pool's timeout, then raise `QueueTimeout`. Tasks that were
    started inside of the transaction belong to it.

    A statement that is cancelled outside of a transaction, or finds its server gone, leaves a
    connection that is replaced at the next statement. What had been set on it by SET, and
    temporary tables, are gone then.
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
        bound = self._link.bind_many(sql, rows)
        if bound is None:
            return
        # It reads nothing that it then writes, so there is nothing that could conflict.
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
        """Roll back what is open and return the connection; without effect when repeated.

        A statement that another task has sent is waited for, but not that task's transaction.
        """
        scope = await self._scope.turn(None, closing=True)
        self._shut()
        scope.give()
        await self._link.close()

    async def _terminate(self) -> None:
        """Break off the statement that is running, or close the connection where none is."""
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
        if backend == "sqlite":
            level = "SERIALIZABLE"
        elif not level:
            # InnoDB's SERIALIZABLE locks what it reads; a snapshot neither waits nor makes wait.
            on_mysql = backend in ("mysql", "mariadb")
            level = "REPEATABLE READ" if readonly and on_mysql else "SERIALIZABLE"
        access = "read" if readonly or self._access == "read" else "write"
        options = {"isolation_level": level, "qsession_access": access}
        return {**options, "qsession_locks": True} if self.locks_first else options

    def _refuse_if_released(self) -> None:
        if not self._scope.open:
            raise InvalidRequestError(
                "The connection was released to its pool, or the pool was terminated. A statement "
                "that was running then was interrupted. Acquire a new connection."
            )

    def _refuse_after_conflict(self) -> None:
        """The database has rolled all of it back, or would do so instead of the commit."""
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
        """End what `_begin` has begun. In the connection's turn."""
        lost = commit and self._conflict is not None
        try:
            await self._link.end(begun, commit and not lost)
            if lost:
                self._refuse_after_conflict()
        finally:
            if not self._link.in_transaction:
                self._conflict = None
