"""RoutedConnection: the connection that SQLAlchemy gets from the pool.

It runs one transaction after another. It has a physical connection only from the first statement of
a transaction to its end.
"""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Callable
from typing import Any, Protocol, cast

from sqlalchemy import util
from sqlalchemy.pool.base import PoolProxiedConnection, _ConnectionRecord
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from qsession.sqlite.cursor import RoutedCursor, StreamCursor
from qsession.sqlite.transaction.decide import State
from qsession.sqlite.transaction.transaction import Connections, Transaction


class Home(Connections, Protocol):
    """What a connection needs from its pool."""

    isolation_level: str | None
    noted: tuple[dict[Any, Any], dict[Any, Any]]

    def reset(self, connection: RoutedConnection) -> None: ...


class RoutedConnection(PoolProxiedConnection):
    """A connection whose transactions each take a physical connection from the pool."""

    __slots__ = (  # with a __dict__, which is created when other code sets an attribute
        "__dict__", "__weakref__", "_detached", "_isolation_level", "_pool", "_record", "streams",
        "transaction",
    )  # fmt: skip
    block = "async with"
    """How the application writes a block that closes it."""

    def __init__(self, pool: Home) -> None:
        self._detached = False
        self._pool = pool
        self.transaction = Transaction(pool, weakref.ref(self))
        self.streams: set[StreamCursor] | None = None
        self._record: _ConnectionRecord | None = None
        self._isolation_level: str | None = None
        if pool.isolation_level is not None:
            self.isolation_level = pool.isolation_level

    @property
    def _connection_record(self) -> _ConnectionRecord:
        """The pool record that SQLAlchemy expects. It has no physical connection."""
        if self._record is None:
            lease = self.transaction.work.lease
            self._record = _ConnectionRecord(cast("Any", self._pool), connect=False)
            record = None if lease is None else lease.record
            noted = (record.info, record.record_info) if record else self._pool.noted
            self._record.info.update(noted[0])
            cast("dict[Any, Any]", self._record.record_info).update(noted[1])
        return self._record

    @property
    def dbapi_connection(self) -> Any:  # type: ignore[override]
        return None if self.transaction.closed else self

    @property
    def is_valid(self) -> bool:
        return not self.transaction.closed

    @property
    def is_detached(self) -> bool:
        return self._detached

    @property
    def info(self) -> dict[Any, Any]:
        """A copy of what "connect" listeners have stored for the physical connections."""
        return self._connection_record.info

    @property
    def record_info(self) -> dict[Any, Any] | None:
        return self._connection_record.record_info

    @property
    def driver_connection(self) -> Any:  # type: ignore[override]
        """The ``aiosqlite.Connection`` of this connection, which stays with it until it is closed.

        In a greenlet, as within ``run_sync`` or ``get_raw_connection()`` of qsession's engine, this
        also takes the write ticket, until the transaction ends, or idles while others wait.
        """
        return self.transaction.pin()._connection

    def __getattr__(self, name: str) -> Any:
        """Called only for a missing attribute, such as one of a physical connection."""
        if hasattr(sqlite3.Connection, name):
            raise AttributeError(
                f"{name!r} is a method of one physical connection, but this connection may use a "
                "different one for each transaction. Set functions and settings for all of them in "
                "a 'connect' listener of engine.sync_engine, or use driver_connection, which stays "
                "the same."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def run_async(self, function: Callable[[Any], Any]) -> Any:
        """Await ``function(driver_connection)``, as SQLAlchemy's adapted connections do."""
        return await_only(function(self.driver_connection))

    @property
    def isolation_level(self) -> str:
        """``AUTOCOMMIT`` or a transactional level, which is always SERIALIZABLE here."""
        return self._isolation_level or "SERIALIZABLE"

    @isolation_level.setter
    def isolation_level(self, level: str | None) -> None:
        self._isolation_level = level
        self.transaction.autocommit = level == "AUTOCOMMIT"

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """A cursor; with ``server_side=True`` a streaming one."""
        return StreamCursor(self) if kwargs.get("server_side") else RoutedCursor(self)

    def execute(self, operation: str, parameters: Any = None) -> RoutedCursor:
        return RoutedCursor(self).execute(operation, parameters)

    def commit(self) -> None:
        """Commit. If that fails, roll back, because SQLAlchemy then sends no ROLLBACK."""
        try:
            self.transaction.statements.wait()
            self.transaction.commit()
        except BaseException:
            if self.transaction.work.state is not State.IDLE:
                self.transaction.abandon()
            raise

    def rollback(self) -> None:
        self.transaction.rollback()

    def close(self) -> None:
        """End the transaction according to ``pool_reset_on_return``, and give everything back."""
        self._close_special()

    def _close_special(self, transaction_reset: bool = False) -> None:
        """Close. ``transaction_reset``: SQLAlchemy has already ended the transaction."""
        transaction = self.transaction
        if transaction.closed:
            return
        try:
            if not (transaction.ends_at_once or in_greenlet()):
                transaction.abandon()  # as from engine.raw_connection(): nothing can wait
            elif not transaction_reset:
                self._pool.reset(self)
        finally:
            transaction.closed = True
            if self.streams:
                self._close_streams()
            try:
                if transaction.work.state is not State.IDLE:
                    transaction.rollback()
                while self._record is not None and self._record.finalize_callback:
                    self._record.finalize_callback.pop()(self)
            finally:
                transaction.let_go()

    _checkin = _close_special

    def _close_streams(self) -> None:
        for stream in list(self.streams or ()):
            stream.close()

    def invalidate(self, e: BaseException | None = None, soft: bool = False) -> None:
        """Roll back without waiting. If the application calls this, the physical connection is
        closed. After a cancelled statement it can be used again.
        """
        if self.transaction.closed or soft:
            return
        self.transaction.closed = True
        lease = self.transaction.work.lease
        if lease is not None and (e is None or isinstance(e, Exception)):
            lease.driver.suspect = True
        self._leave()

    def _leave(self) -> None:
        self._close_streams()
        self.transaction.abandon()
        self.transaction.let_go()

    def terminate(self) -> None:
        """As SQLAlchemy's adapted connections: close it at once, with the physical connection."""
        self.invalidate()

    def detach(self) -> None:
        """Mark it as detached. It has no physical connection that could leave the pool."""
        self._detached = True

    def __del__(self) -> None:
        if not hasattr(self, "transaction"):
            return  # interrupted while it was made
        work, streams, told = self.transaction.work, self.streams, False
        lease, closed = work.lease, self.transaction.closed
        if work.state is not State.IDLE or lease or work.ticket or streams or not closed:
            told = work.is_open or bool(streams)
            self._leave()
        if not told or (lease is not None and lease.driver.inherited):
            return  # there is nothing to undo, or in a forked child it belongs to the parent
        util.warn(
            "The garbage collector is cleaning up a qsession connection that was not closed; its "
            "transaction is rolled back. Close sessions and connections, or use them in "
            f"'{self.block}' blocks."
        )
