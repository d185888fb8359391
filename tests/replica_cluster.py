"""A primary and its standbys, engines that read from them, and which server has served."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any

from own_postgresql import OwnPostgresql
from sqlalchemy import text

from qsession import QueuedAsyncEngine, create_async_engine
from qsession.session.maker import SessionMaker

PORT = text("SELECT current_setting('port')::int")
ROWS = text("SELECT count(*) FROM notes")
ADD = text("INSERT INTO notes VALUES (1)")


class Cluster:
    """A primary and its standbys, and engines on them."""

    def __init__(self, primary: OwnPostgresql, standbys: list[OwnPostgresql]) -> None:
        self.primary = primary
        self.standbys = standbys
        self.ports = [each.port for each in standbys]
        self.made: list[QueuedAsyncEngine] = []

    def engine(self, driver: str = "asyncpg", **kw: Any) -> QueuedAsyncEngine:
        """One that reads from both."""
        kw = {"read_urls": [each.url(driver) for each in self.standbys], **kw}
        self.made.append(create_async_engine(self.primary.url(driver), **kw))
        return self.made[-1]

    def pause(self) -> None:
        """From now on the standbys receive, and replay nothing."""
        for each in self.standbys:
            each.tell("SELECT pg_wal_replay_pause()")
            while each.tell("SELECT pg_get_wal_replay_pause_state()") != "paused":
                pass

    def resume(self) -> None:
        """They go on."""
        for each in self.standbys:
            each.tell("SELECT pg_wal_replay_resume()")

    def catch_up(self) -> None:
        """Wait until they have replayed all there is."""
        log = self.primary.tell("SELECT pg_current_wal_lsn()")
        for each in self.standbys:
            while each.tell(f"SELECT pg_last_wal_replay_lsn() >= '{log}'") != "t":
                pass


async def port(maker: SessionMaker) -> int:
    """Of the server that serves a reader."""
    async with maker.reader() as s:
        return int(await s.scalar(PORT) or 0)


async def elsewhere(coroutine: Any) -> Any:
    """In a task that has committed nothing."""
    return await Context().run(asyncio.ensure_future, coroutine)


async def until(condition: Callable[[], Any]) -> None:
    """Ask again and again."""

    async def ask() -> None:
        while not await condition():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(ask(), 30)
