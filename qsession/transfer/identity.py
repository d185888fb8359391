"""Whether two connections lead to the same database, which may have several names in URLs."""

from __future__ import annotations

import secrets
from typing import Any

from sqlalchemy import BigInteger, exc, func, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection


async def refuse_the_same(source: AsyncConnection, target: AsyncConnection) -> None:
    """Raise :class:`sqlalchemy.exc.ArgumentError` if both are connections to one database.

    A lock with a name that nobody else has is taken on one of them, and looked for on the other.
    It needs no rights, and servers with the same settings are not taken for one. Files of SQLite
    are compared before they are opened.
    """
    same = False
    if source.dialect.name == target.dialect.name == "postgresql":
        same = await _same_on_postgresql(source, target)
    elif {source.dialect.name, target.dialect.name} <= {"mysql", "mariadb"}:
        same = await _same_on_mysql(source, target)
    if same:
        raise exc.ArgumentError("source and target are the same database")


async def _same_on_postgresql(source: AsyncConnection, target: AsyncConnection) -> bool:
    """Advisory locks belong to a database. These end with the transactions."""
    key = literal(secrets.randbits(63), BigInteger)
    await source.execute(select(func.pg_advisory_xact_lock(key)))
    return not await target.scalar(select(func.pg_try_advisory_xact_lock(key)))


async def _same_on_mysql(source: AsyncConnection, target: AsyncConnection) -> bool:
    """Named locks belong to a server."""
    name = literal(f"qsession_copy_{secrets.token_hex(8)}")
    database: Any = select(func.database())
    if await source.scalar(database) != await target.scalar(database):
        return False
    await source.execute(select(func.get_lock(name, 0)))
    taken = await target.scalar(select(func.is_used_lock(name))) is not None
    await source.execute(select(func.release_lock(name)))
    return taken
