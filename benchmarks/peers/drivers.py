"""The drivers without SQLAlchemy: sqlite3 as the limit, aiosqlite, and aiosqlitepool."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import aiosqlite

from .peer import NAME, PAGE, TaskPeer, ThreadPeer, Way, row, start_of_page

GET = "SELECT id, n, name FROM item WHERE id = ?"
LIST = f"SELECT id, n, name FROM item WHERE id > ? ORDER BY id LIMIT {PAGE}"
INSERT = "INSERT INTO item (n, name) VALUES (0, ?)"
CHANGE = "UPDATE item SET n = ? WHERE id = ?"


class Sqlite3(ThreadPeer):
    """The standard library's module, one connection, one thread: no async library is faster."""

    name = "sqlite3"
    way: ClassVar[Way] = "driver"

    def start(self) -> None:
        self.db = sqlite3.connect(self.file, isolation_level=None)
        self.db.execute("PRAGMA synchronous=FULL")

    def stop(self) -> None:
        self.db.close()

    def get(self, i: int) -> str:
        return str(self.db.execute(GET, (row(i),)).fetchone()[2])

    def list(self, i: int) -> int:
        return len(self.db.execute(LIST, (start_of_page(i),)).fetchall())

    def insert(self, i: int) -> None:
        self.db.execute("BEGIN IMMEDIATE")
        self.db.execute(INSERT, (NAME,))
        self.db.execute("COMMIT")

    def change(self, i: int) -> None:
        self.db.execute("BEGIN IMMEDIATE")
        (n,) = self.db.execute("SELECT n FROM item WHERE id = ?", (row(i),)).fetchone()
        self.db.execute(CHANGE, (n + 1, row(i)))
        self.db.execute("COMMIT")


class AiosqlitePeer(TaskPeer):
    """Operations on an aiosqlite connection; `connection` says where it comes from."""

    way: ClassVar[Way] = "driver"

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def connect(self) -> aiosqlite.Connection:
        db = await aiosqlite.connect(self.file, isolation_level=None)
        await db.execute("PRAGMA synchronous=FULL")
        return db

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        async with aiosqlite.connect(self.file, isolation_level=None) as db:
            await db.execute("PRAGMA synchronous=FULL")
            yield db

    async def get(self, i: int) -> str:
        async with self.connection() as db, db.execute(GET, (row(i),)) as cursor:
            return str((await cursor.fetchone())[2])

    async def list(self, i: int) -> int:
        async with self.connection() as db:
            return len(await db.execute_fetchall(LIST, (start_of_page(i),)))

    async def insert(self, i: int) -> None:
        async with self.connection() as db:
            await db.execute("BEGIN IMMEDIATE")
            await db.execute(INSERT, (NAME,))
            await db.commit()

    async def change(self, i: int) -> None:
        async with self.connection() as db:
            await db.execute("BEGIN IMMEDIATE")
            question = "SELECT n FROM item WHERE id = ?"
            async with db.execute(question, (row(i),)) as cursor:
                (n,) = await cursor.fetchone()
            await db.execute(CHANGE, (n + 1, row(i)))
            await db.commit()


class Aiosqlite(AiosqlitePeer):
    """As its documentation shows it: ``async with aiosqlite.connect(...)``."""

    name = "aiosqlite"


class AiosqliteLocked(AiosqlitePeer):
    """One connection for all tasks, and a lock that one transaction at a time may hold."""

    name = "aiosqlite, one connection and a lock"

    async def start(self) -> None:
        self.db = await self.connect()
        self.lock = asyncio.Lock()

    async def stop(self) -> None:
        await self.db.close()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        async with self.lock:
            yield self.db
