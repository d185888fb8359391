"""The tables of the contract, the database they are in, and what is open on it."""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy import String, event, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import NullPool

from qsession import QueuedAsyncEngine

PATIENCE = 30
"""Seconds after which something that should have happened is taken for stuck."""


class Base(DeclarativeBase):
    """The tables of the contract."""


class Counter(Base):
    """Something that is read and then written."""

    __tablename__ = "counters"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[int] = mapped_column(default=0)


class Note(Base):
    """Something that is added."""

    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str] = mapped_column(String(40))


class Database:
    """A database under test, and SQLAlchemy's own engine on it to look in from outside."""

    def __init__(self, url: str, driver: str, outside: str) -> None:
        self.url = url
        self.driver = driver
        self.is_sqlite = driver.startswith("sqlite")
        self.reading = {"read_urls": [url]} if driver.endswith("/read_urls") else {}
        self.outside = create_async_engine(outside, poolclass=NullPool)
        self.engines: list[QueuedAsyncEngine] = []

    async def values(self) -> list[int]:
        """The counters as somebody else sees them."""
        async with self.outside.connect() as connection:
            return list(await connection.scalars(select(Counter.value).order_by(Counter.id)))

    async def notes(self) -> list[str]:
        """The notes as somebody else sees them."""
        async with self.outside.connect() as connection:
            return list(await connection.scalars(select(Note.body).order_by(Note.id)))

    async def close(self) -> None:
        """Dispose of the engines. No connection of theirs is in use, none stays on the server."""
        for engine in self.engines:
            assert engine.stats().in_use == 0, engine.pool.status()
            await engine.dispose()
        if not self.is_sqlite:
            await self.until_alone(in_transaction=self.driver.endswith("/pooler"))

    async def until_alone(self, in_transaction: bool = False) -> None:
        """Wait until nobody else is connected, or has a transaction: a server lets go later."""
        until = asyncio.get_running_loop().time() + PATIENCE
        while left := await self.others(in_transaction):
            assert asyncio.get_running_loop().time() < until, f"{left} sessions are still there"
            await asyncio.sleep(0.15)  # InnoDB shows the same picture to who asks within 0.1 s

    async def others(self, in_transaction: bool = False) -> int:
        """How many sessions the server has on this database, besides the one that asks."""
        async with self.outside.connect() as connection:
            if "postgresql" in self.driver:
                wanted = " AND xact_start IS NOT NULL" if in_transaction else ""
                query = (
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                    f"AND pid <> pg_backend_pid() AND backend_type = 'client backend'{wanted}"
                )
            else:
                wanted = (
                    " AND id IN (SELECT trx_mysql_thread_id FROM information_schema.innodb_trx)"
                    if in_transaction
                    else ""
                )
                query = (
                    "SELECT count(*) FROM information_schema.processlist WHERE db = database() "
                    f"AND id <> connection_id(){wanted}"
                )
            return int(await connection.scalar(text(query)) or 0)


class Statements:
    """What an engine sends, as listeners see it."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.sent: list[str] = []
        event.listen(engine.sync_engine, "before_cursor_execute", self._note)

    def _note(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        self.sent.append(statement)


class Meeting:
    """A place where so many tasks wait for one another, once each."""

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.everybody = asyncio.Event()

    async def wait(self) -> None:
        """Arrive; returns when all have. Those who come again find it over."""
        self.expected -= 1
        if self.expected == 0:
            self.everybody.set()
        await asyncio.wait_for(self.everybody.wait(), 20)


async def told(s: AsyncSession, database: Database) -> tuple[str, bool]:
    """The isolation of the transaction that is open, as the server sees it."""
    if "postgresql" in database.driver:
        level = await s.scalar(text("SELECT current_setting('transaction_isolation')"))
        read_only = await s.scalar(text("SELECT current_setting('transaction_read_only')"))
        return level.upper(), read_only == "on"
    query = text(
        "SELECT trx_isolation_level, trx_is_read_only FROM information_schema.innodb_trx "
        f"WHERE trx_mysql_thread_id = {await s.scalar(text('SELECT connection_id()'))}"
    )
    async with database.outside.connect() as connection:
        while (row := (await connection.execute(query)).first()) is None:
            await asyncio.sleep(0.15)  # InnoDB shows the same picture to who asks within 0.1 s
    return row[0], bool(row[1])
