"""SynchronousDriver: what listeners of a synchronous engine get for a connection of ``sqlite3``."""

from __future__ import annotations

import sqlite3
from typing import Any

import aiosqlite
from sqlalchemy.exc import ArgumentError

from qsession.sqlite.driver.module import DriverModule
from qsession.sqlite.driver.physical import DriverConnection

CHUNK = 64
"""Rows that an ``aiosqlite.Connection`` fetches at once when it is iterated; ours never are."""


class SynchronousDriver(DriverConnection):
    """A physical connection that does what a ``sqlite3.Connection`` does.

    Listeners were written for one, and some ask whether it is: without the answer they would leave
    out what they are for, as ``PRAGMA foreign_keys=ON``. They run on the loop in the background,
    while nothing else uses the connection.
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
        """Whatever else a connection has."""
        if name == "raw":  # it is not open yet
            raise AttributeError(name)
        return getattr(self.raw, name)


class SynchronousModule(DriverModule):
    """The DBAPI module of a synchronous engine."""

    connection_class = SynchronousDriver

    def adopt(self, connection: Any) -> DriverConnection:
        """Also what opens a connection of ``sqlite3``, for any thread."""
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
            connection.close()  # which only this thread can
            raise ArgumentError(
                "creator= opened a connection that is for one thread only, and an engine uses it "
                "from several. Use sqlite3.connect(..., check_same_thread=False)"
            ) from None
        return driver

    def around(self, module: Any) -> DriverModule:
        return self if module is sqlite3 else super().around(module)
