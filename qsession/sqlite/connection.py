"""RoutedConnection: what SQLAlchemy sees as a connection of its pool.

It owns one transaction, over and over, and no physical connection: that comes with the first
statement of a transaction, and goes with its end.
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
    """What a connection needs of its pool."""

    isolation_level: str | None
    noted: tuple[dict[Any, Any], dict[Any, Any]]

    def reset(self, connection: RoutedConnection) -> None: ...


class RoutedConnection(PoolProxiedConnection):
    """A connection whose transactions each take a physical one of the pool."""

    __slots__ = (  # with a __dict__ that is made when somebody sets something of his own
        "__dict__", "__weakref__", "_detached", "_isolation_level", "_open", "_pool", "_record",
        "streams", "transaction",
    )  # fmt: skip

    def __init__(self, pool: Home) -> None:
        self._open = True
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
        """The entry of a pool that SQLAlchemy expects behind a connection. It holds none."""
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
        return self if self._open else None

    @property
    def is_valid(self) -> bool:
        return self._open

    @property
    def is_detached(self) -> bool:
        return self._detached

    @property
    def info(self) -> dict[Any, Any]:
        """What "connect" listeners have noted of the physical connections, as a copy."""
        return self._connection_record.info

    @property
    def record_info(self) -> dict[Any, Any] | None:
        return self._connection_record.record_info

    @property
    def driver_connection(self) -> Any:  # type: ignore[override]
        """The ``aiosqlite.Connection`` of this connection, which stays with it until it is closed.

        In a greenlet, as within ``run_sync`` or ``get_raw_connection()`` of qsession's engine, the
        write ticket is taken with it, until the transaction ends or idles in the way of others.
        """
        return self.transaction.pin()._connection

    def __getattr__(self, name: str) -> Any:
        """Only called for what is missing: what a connection to the file has, and this has not."""
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
        """``AUTOCOMMIT`` or a transactional level; every one of those is SERIALIZABLE here."""
        return self._isolation_level or "SERIALIZABLE"

    @isolation_level.setter
    def isolation_level(self, level: str | None) -> None:
        self._isolation_level = level
        self.transaction.autocommit = level == "AUTOCOMMIT"

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """A cursor; with ``server_side=True`` one that streams."""
        return StreamCursor(self) if kwargs.get("server_side") else RoutedCursor(self)

    def execute(self, operation: str, parameters: Any = None) -> RoutedCursor:
        return RoutedCursor(self).execute(operation, parameters)

    def commit(self) -> None:
        """Commit; if that fails, roll back: SQLAlchemy takes it for ended, and sends nothing."""
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
        """End the transaction as ``pool_reset_on_return`` says, and let go of everything."""
        self._close_special()

    def _close_special(self, transaction_reset: bool = False) -> None:
        """Close; ``transaction_reset`` when SQLAlchemy has ended the transaction before."""
        if not self._open:
            return
        try:
            if not (in_greenlet() or self.transaction.ends_at_once):
                self.transaction.abandon()  # as from engine.raw_connection(): nothing can wait
            elif not transaction_reset:
                self._pool.reset(self)
        finally:
            self._open = False
            self._close_streams()
            try:
                if self.transaction.work.state is not State.IDLE:
                    self.transaction.rollback()
                while self._record is not None and self._record.finalize_callback:
                    self._record.finalize_callback.pop()(self)
            finally:
                self.transaction.let_go()

    _checkin = _close_special

    def _close_streams(self) -> None:
        for stream in list(self.streams or ()):
            stream.close()

    def invalidate(self, e: BaseException | None = None, soft: bool = False) -> None:
        """Give up the transaction without waiting; the physical connection with it, if asked for
        by hand. A cancelled statement leaves a connection that can be used again.
        """
        if not self._open or soft:
            return
        self._open = False
        lease = self.transaction.work.lease
        if lease is not None and (e is None or isinstance(e, Exception)):
            lease.driver.suspect = True
        self._leave()

    def _leave(self) -> None:
        self._close_streams()
        self.transaction.abandon()
        self.transaction.let_go()

    def terminate(self) -> None:
        """As SQLAlchemy's adapted connections: give it up at once, and the physical one with it."""
        self.invalidate()

    def detach(self) -> None:
        """Mark it as detached: it has no physical connection of its own that could leave."""
        self._detached = True

    def __del__(self) -> None:
        work = self.transaction.work
        lease, told = work.lease, work.is_open or bool(self.streams)
        if told or lease is not None or work.ticket is not None or self._open:
            self._leave()
        if not told or (lease is not None and lease.driver.inherited):
            return  # there was nothing to undo, or it is the parent's, in a forked child
        util.warn(
            "The garbage collector is cleaning up a qsession connection that was not closed; its "
            "transaction is rolled back. Close sessions and connections, or use them in "
            "'async with' blocks."
        )
