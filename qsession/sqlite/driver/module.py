"""DriverModule: the DBAPI module for SQLAlchemy, and how it opens connections."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any

import aiosqlite
from sqlalchemy.dialects.sqlite.aiosqlite import AsyncAdapt_aiosqlite_dbapi
from sqlalchemy.exc import ArgumentError
from sqlalchemy.util import await_only

from qsession.sqlite.driver.physical import DriverConnection
from qsession.waiting.handoff import to_end


class DriverModule(AsyncAdapt_aiosqlite_dbapi):
    """The DBAPI module: its connections are :class:`DriverConnection`."""

    connection_class = DriverConnection

    def connect(self, *args: Any, **kw: Any) -> Any:
        creator = kw.pop("async_creator_fn", None)
        kw.pop("async_fallback", None)
        if creator is None:
            driver = self.connection_class(self, self.aiosqlite.connect(*args, **kw))
            driver.open()
            return driver
        future = asyncio.ensure_future(creator(*args, **kw))
        try:
            connection = await_only(to_end(future))
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._opened(future.result()).terminate()
            raise
        return self._opened(connection)

    def adopt(self, connection: Any) -> DriverConnection:
        """Wrap the result of ``creator=``. Raises :class:`ArgumentError` if it is unsuitable."""
        if isinstance(connection, DriverConnection):
            return connection
        for each in (connection, getattr(connection, "_connection", None)):  # of an adapter
            if isinstance(each, aiosqlite.Connection):
                return self._opened(each)
        raise ArgumentError(
            f"creator= returned {connection!r}, which is not an aiosqlite connection. Use "
            "async_creator= with a coroutine function that opens one"
        )

    def _opened(self, connection: Any) -> DriverConnection:
        """Wrap a connection that the application made, and open it if it was not awaited."""
        driver = self.connection_class(self, connection)
        if connection._connection is None:
            driver.open()
        driver.raw = connection._conn
        try:
            driver.raw.cursor().close()
        except Exception:  # of any SQLite library
            driver.thread_only = True  # check_same_thread=True
        return driver

    def around(self, module: Any) -> DriverModule:
        """The module for ``module=`` of create_engine: aiosqlite, or an adapter for it."""
        if isinstance(module, DriverModule):
            return module
        inner = getattr(module, "aiosqlite", module)
        if not hasattr(getattr(inner, "Connection", None), "__aenter__"):
            raise ArgumentError(
                f"module={module!r} does not have the interface of aiosqlite. For another SQLite "
                "library, use async_creator= with a coroutine function that opens a connection"
            )
        return type(self)(inner, getattr(module, "sqlite", sqlite3))
