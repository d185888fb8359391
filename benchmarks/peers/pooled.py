"""aiosqlitepool, with the set-up of its README but synchronous=FULL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiosqlite
from aiosqlitepool import SQLiteConnectionPool

from .drivers import AiosqlitePeer


class AiosqlitePool(AiosqlitePeer):
    name = "aiosqlitepool"

    async def connect(self) -> aiosqlite.Connection:
        db = await super().connect()
        await db.execute("PRAGMA cache_size = 10000")
        await db.execute("PRAGMA temp_store = MEMORY")
        await db.execute("PRAGMA foreign_keys = ON")
        await db.execute("PRAGMA mmap_size = 268435456")
        return db

    async def start(self) -> None:
        self.pool = SQLiteConnectionPool(self.connect)

    async def stop(self) -> None:
        await self.pool.close()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        async with self.pool.connection() as db:
            yield db
