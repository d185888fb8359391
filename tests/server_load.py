"""Tasks that write to a server without a pause, while it goes away and comes back."""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy import Column, Integer, MetaData, Table, insert

from qsession.session.maker import SessionMaker

metadata = MetaData()
notes = Table("notes", metadata, Column("id", Integer, primary_key=True, autoincrement=False))


class Load:
    """Tasks that write without a pause, and what became of each transaction."""

    def __init__(self, maker: SessionMaker) -> None:
        self.maker = maker
        self.next = 0
        self.acknowledged: set[int] = set()
        self.errors: list[BaseException] = []
        self.changed = asyncio.Condition()
        self.over = False

    async def work(self) -> None:
        """Write one row after the other, whatever happens."""
        while not self.over:
            self.next += 1
            number = self.next
            try:
                async with self.maker.begin() as s:
                    await s.execute(insert(notes).values(id=number))
            except Exception as error:
                self.errors.append(error)
            else:
                self.acknowledged.add(number)
            async with self.changed:
                self.changed.notify_all()

    async def until(self, condition: Any) -> None:
        """Wait until ``condition()`` holds; it is looked at after each transaction."""

        async def wait() -> None:
            async with self.changed:
                await self.changed.wait_for(condition)

        await asyncio.wait_for(wait(), 60)


class Attempts:
    """The attempts to open connections that begin while a server is known to be away."""

    def __init__(self, pool: Any) -> None:
        self.at_once = 0
        self.most = 0
        self.made = 0
        self.opening = pool.opening
        self.attempt = pool.opening._attempt
        pool.opening._attempt = self

    def __call__(self, connect: Any, deadline: float) -> Any:
        if not self.opening.failures:
            return self.attempt(connect, deadline)
        self.made += 1
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            return self.attempt(connect, deadline)
        finally:
            self.at_once -= 1
