"""What becomes of a connection whose event loop is not the one that runs: it is thrown away.

A driver binds a connection to the loop it was opened in, so no other loop can close it properly.
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
        """Cut a connection of another loop off, without waiting for anything.

        The server notices and rolls back what was open. If that loop still runs, the driver does it
        there. A loop may be closed before it comes to that, and a closed one runs nothing any more:
        then the socket itself is shut, here or by the next :meth:`sweep`.
        """
        self.sweep()
        if not loop.is_closed():
            self._left[id(connection)] = connection, loop
            with suppress(RuntimeError):  # it has been closed in the meantime
                loop.call_soon_threadsafe(self._terminate, connection, loop)
                return
            self._left.pop(id(connection), None)
        _cut(connection)

    def sweep(self) -> None:
        """Cut off what loops have left that are closed by now."""
        for key, (connection, loop) in list(self._left.items()):
            if loop.is_closed() and self._left.pop(key, None) is not None:
                _cut(connection)

    def _terminate(self, connection: Any, loop: asyncio.AbstractEventLoop) -> None:
        """In its own loop. What terminating leaves for the loop to do comes before forgetting."""
        if hasattr(connection, "terminate"):
            connection.terminate()
        else:
            _cut(connection)
        loop.call_soon(self._left.pop, id(connection), None)


def _cut(connection: Any) -> None:
    """Close the socket beneath a connection whose loop runs nothing any more."""
    driver = connection.driver_connection
    if hasattr(driver, "pgconn"):  # psycopg: libpq knows no loops
        driver.pgconn.finish()
        return
    writer = getattr(driver, "_writer", None)  # aiomysql's; the others have a transport
    transport = getattr(driver, "_transport", None) if writer is None else writer.transport
    if transport is None:
        return
    socket = transport.get_extra_info("socket")
    if socket is not None:
        with suppress(OSError, TypeError):  # uvloop's is not one, and was closed with its loop
            socket.shutdown(2)
    with suppress(RuntimeError):
        transport.abort()  # says that it is closing, then fails to tell its loop
    # What the loop would have called. Without it the file, or the driver's connection, is closed
    # by the garbage collector, with a ResourceWarning.
    with suppress(Exception):
        lost = getattr(transport, "_call_connection_lost", None)
        (lost or transport.get_protocol().connection_lost)(None)
    if writer is not None:
        driver.close()
