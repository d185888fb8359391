"""SynchronousConnection: the connection that SQLAlchemy gets from a synchronous engine's pool."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, TypeVar

from qsession.errors import QSessionError
from qsession.sqlite.connection import Home, RoutedConnection
from qsession.sqlite.driver.physical import DriverConnection
from qsession.sqlite.synchronous.cursor import SynchronousCursor, SynchronousStream
from qsession.sqlite.transaction.decide import State
from qsession.waiting.background import background
from qsession.waiting.callers import application_frames

T = TypeVar("T")


class SynchronousConnection(RoutedConnection):
    """A connection whose methods run on the loop in the background, while their thread waits.

    Methods that do not wait run in the thread itself.
    """

    __slots__ = ("stack",)
    block = "with"

    def __init__(self, pool: Home) -> None:
        super().__init__(pool)
        self.stack: tuple[FrameType, ...] = ()
        """Where its thread stood when its transaction took the ticket."""

    def wait_for(self, function: Callable[[], T]) -> T:
        """Run a function on that loop and wait for it. Raises its errors.

        If the thread is interrupted, the function is cancelled, and the transaction is rolled back.
        """
        transaction = self.transaction
        transaction.in_call = True
        try:
            return background.run(function, self._lose)
        finally:
            transaction.in_call = False
            if transaction.ticket is None:
                self.stack = ()
            elif not self.stack:
                self.stack = application_frames(sys._getframe())

    def _lose(self) -> None:
        """Roll back after an interrupted call that succeeded, since its caller cannot know that."""
        if self.transaction.work.state not in (State.IDLE, State.FAILED):
            self.transaction.abandon(
                QSessionError("The transaction was rolled back because its thread was interrupted.")
            )

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        return SynchronousStream(self) if kwargs.get("server_side") else SynchronousCursor(self)

    def execute(self, operation: str, parameters: Any = None) -> Any:
        return self.cursor().execute(operation, parameters)

    def commit(self) -> None:
        if self.transaction.ends_at_once:
            super().commit()
        else:
            self.wait_for(super().commit)

    def rollback(self) -> None:
        if self.transaction.ends_at_once:
            super().rollback()
        elif background.is_over():
            self.transaction.abandon()
        else:
            self.wait_for(super().rollback)

    def close(self) -> None:
        self._close_special()

    def _close_special(self, transaction_reset: bool = False) -> None:
        if self.transaction.ends_at_once and not self.streams:
            super()._close_special(transaction_reset)
        elif background.is_over():
            self.invalidate()
        else:
            self.wait_for(partial(super()._close_special, transaction_reset))

    _checkin = _close_special

    @property
    def driver_connection(self) -> Any:  # type: ignore[override]
        """The ``sqlite3.Connection`` of this connection, which stays with it until it is closed.

        This waits for the write ticket, because the application may write on it. The ticket is
        given back when this connection ends its transaction, or when it idles without having
        written while others wait. Raises :class:`QueueTimeout`.
        """
        return self.wait_for(self._lend).raw

    def _lend(self) -> DriverConnection:
        driver = self.transaction.pin()
        driver.run(lambda raw: None)  # wait until its thread is idle
        return driver

    def run_async(self, function: Callable[[Any], Any]) -> Any:
        """Not supported, since there is no asyncio driver."""
        raise NotImplementedError("run_async() is for asyncio engines; use driver_connection here")

    def __getattr__(self, name: str) -> Any:
        """An attribute of the driver's connection, which then stays with this connection."""
        if name.startswith("__") or not hasattr(sqlite3.Connection, name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.driver_connection, name)
