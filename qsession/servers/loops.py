"""Connections that belong to another event loop: they are discarded.

A driver binds a connection to the loop in which it was opened, so no other loop can close it
properly.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any


class Abandoned:
    """Connections that belong to other loops, until they are closed."""

    def __init__(self) -> None:
        self._left: dict[int, tuple[Any, asyncio.AbstractEventLoop]] = {}

    def add(self, connection: Any, loop: asyncio.AbstractEventLoop) -> None:
        """Disconnect a connection of another loop, without waiting.

        The server notices, and rolls back its open transaction. If that loop still runs, the driver
        disconnects there. If the loop is closed before that, the socket itself is shut, here or by
        the next :meth:`sweep`.
        """
        self.sweep()
        if not loop.is_closed():
            self._left[id(connection)] = connection, loop
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(self._terminate, connection, loop)
                return
            self._left.pop(id(connection), None)
        _cut(connection)

    def sweep(self) -> None:
        """Disconnect the connections whose loops have been closed."""
        for key, (connection, loop) in list(self._left.items()):
            if loop.is_closed() and self._left.pop(key, None) is not None:
                _cut(connection)

    def _terminate(self, connection: Any, loop: asyncio.AbstractEventLoop) -> None:
        """Terminate it in its own loop. Callbacks of the driver run before it is forgotten."""
        if hasattr(connection, "terminate"):
            connection.terminate()
        else:
            _cut(connection)
        loop.call_soon(self._left.pop, id(connection), None)


def _cut(connection: Any) -> None:
    """Close the socket of a connection whose loop is closed."""
    driver = connection.driver_connection
    if hasattr(driver, "pgconn"):  # psycopg: libpq does not use the loop
        driver.pgconn.finish()
        return
    writer = getattr(driver, "_writer", None)  # aiomysql's; the others have a transport
    transport = getattr(driver, "_transport", None) if writer is None else writer.transport
    if transport is None:
        return
    socket = transport.get_extra_info("socket")
    if socket is not None:
        with suppress(OSError, TypeError):  # uvloop's is not a real one, and closed with its loop
            socket.shutdown(2)
    with suppress(RuntimeError):
        transport.abort()  # marks it as closing, then fails to call its loop
    # The loop would have called this. Without it the garbage collector closes the file, or the
    # driver's connection, with a ResourceWarning.
    with suppress(Exception):
        lost = getattr(transport, "_call_connection_lost", None)
        (lost or transport.get_protocol().connection_lost)(None)
    if writer is not None:
        driver.close()
