"""What becomes of a connection whose event loop is not the one that runs: it is thrown away.

A driver binds a connection to the loop it was opened in, so no other loop can close it properly.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any


def abandon(connection: Any, loop: asyncio.AbstractEventLoop) -> None:
    """Cut a connection of another loop off, without waiting for anything.

    The server notices and rolls back what was open. If that loop still runs, the driver does it
    there; a loop that is closed runs nothing any more, so the socket itself is shut.
    """
    driver = connection.driver_connection
    if hasattr(driver, "pgconn"):  # psycopg: libpq knows no loops
        driver.pgconn.finish()
        return
    terminate = getattr(connection, "terminate", None)
    if terminate is not None and not loop.is_closed():
        with suppress(RuntimeError):  # it has been closed in the meantime
            loop.call_soon_threadsafe(terminate)
            return
    writer = getattr(driver, "_writer", None)  # aiomysql's; the others have a transport
    transport = getattr(driver, "_transport", None) if writer is None else writer.transport
    if transport is None:
        return
    socket = transport.get_extra_info("socket")
    if socket is not None:
        with suppress(OSError):
            socket.shutdown(2)
    with suppress(RuntimeError):
        transport.abort()  # says that it is closing, then fails to tell its loop
    # What the loop would have called. Without it the file is closed by the garbage collector,
    # with a ResourceWarning.
    lost = getattr(transport, "_call_connection_lost", None)
    if lost is not None:
        with suppress(Exception):
            lost(None)
    if writer is not None:
        driver.close()
