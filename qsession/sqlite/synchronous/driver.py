"""SynchronousDriver: the connection that listeners of a synchronous engine get."""

from __future__ import annotations

import sqlite3
from typing import Any

import aiosqlite
from sqlalchemy.exc import ArgumentError

from qsession.sqlite.driver.module import DriverModule
from qsession.sqlite.driver.physical import DriverConnection

CHUNK = 64
"""An argument of ``aiosqlite.Connection``: rows fetched at once in an iteration. Not used here."""


class SynchronousDriver(DriverConnection):
    """A physical connection with the interface of a ``sqlite3.Connection``.

    Some listeners check for that class before they send, for example, ``PRAGMA foreign_keys=ON``.
    So ``isinstance`` is true for it here. Listeners run on the loop in the background, while no
    other code uses the connection.
    """

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return sqlite3.Connection

    @property
    def isolation_level(self) -> str | None:
        return self.raw.isolation_level

    @isolation_level.setter
    def isolation_level(self, value: Any) -> None:
        self.raw.isolation_level = value

    @property
    def row_factory(self) -> Any:
        return self.raw.row_factory

    @row_factory.setter
    def row_factory(self, value: Any) -> None:
        self.raw.row_factory = value

    @property
    def text_factory(self) -> Any:
        return self.raw.text_factory

    @text_factory.setter
    def text_factory(self, value: Any) -> None:
        self.raw.text_factory = value

    def cursor(self, *args: Any, **kw: Any) -> Any:
        kw.pop("server_side", None)
        return self.raw.cursor(*args, **kw)

    def execute(self, *args: Any) -> Any:
        return self.raw.execute(*args)

    def create_function(self, *args: Any, **kw: Any) -> None:
        self.raw.create_function(*args, **kw)

    def commit(self) -> None:
        self.raw.commit()

    def rollback(self) -> None:
        self.raw.rollback()

    def __getattr__(self, name: str) -> Any:
        """Any other attribute of the connection."""
        if name == "raw":  # the connection is not open yet
            raise AttributeError(name)
        return getattr(self.raw, name)


class SynchronousModule(DriverModule):
    """The DBAPI module of a synchronous engine."""

    connection_class = SynchronousDriver

    def adopt(self, connection: Any) -> DriverConnection:
        """As in the asyncio engine, and for a ``sqlite3`` connection that any thread may use."""
        if isinstance(connection, DriverConnection) or not isinstance(
            connection, sqlite3.Connection
        ):
            return super().adopt(connection)
        driver = SynchronousDriver(self, aiosqlite.Connection(lambda: connection, CHUNK))
        driver.open()
        try:
            driver.run(lambda raw: raw.cursor().close())
        except sqlite3.ProgrammingError:
            driver.post(lambda _: setattr(driver._connection, "_connection", None))
            driver.terminate()
            connection.close()  # only this thread can close it
            raise ArgumentError(
                "creator= opened a connection for one thread only, but an engine uses it from "
                "several. Use sqlite3.connect(..., check_same_thread=False)"
            ) from None
        return driver

    def around(self, module: Any) -> DriverModule:
        return self if module is sqlite3 else super().around(module)
