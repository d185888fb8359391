"""`qsession doctor` for a server, which manages its own files."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, InvalidRequestError, NoSuchModuleError

from qsession.engine import create_async_engine
from qsession.errors import QSessionError
from qsession.tools.doctor import Finding, Level
from qsession.urls import place_of


async def examine_server(url: URL) -> list[Finding]:
    """Check whether it answers, its version, and its isolation level."""
    from qsession.transfer.wording import product_of  # only a server needs it

    shown = place_of(url)
    try:
        engine = create_async_engine(url, connect_args={})
    except (ArgumentError, ImportError, InvalidRequestError, NoSuchModuleError) as error:
        return [Finding("driver", Level.BLIND, f"{shown}: {error}", "Install the driver.")]
    try:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            version = ".".join(map(str, engine.dialect.server_version_info or ("unknown",)))
            isolation = await connection.get_isolation_level()
    except (DBAPIError, OSError, TypeError, ValueError) as error:  # perhaps a URL parameter
        ours = isinstance(error, QSessionError)  # their ``orig`` speaks of SQLite
        reason = str((not ours and getattr(error, "orig", None)) or error)
        return [
            Finding(
                "connection",
                Level.BLIND,
                reason,
                "Start the server, or check host, port, user and password.",
            )
        ]
    finally:
        await engine.dispose()
    return [
        Finding("connection", Level.OK, f"{shown} answers"),
        Finding("version", Level.OK, f"{product_of(engine.dialect)} {version}"),
        Finding("isolation", Level.NOTE, f"{isolation}, unless a session sets another level"),
        Finding("the rest", Level.NOTE, "the server manages its own files, log and integrity"),
    ]
