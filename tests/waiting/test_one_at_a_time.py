"""The statements of one connection that several tasks use: one after the other, in their order."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy.exc import MissingGreenlet

from qsession.waiting.greenlets import spawn
from qsession.waiting.one_at_a_time import OneAtATime


class Connection:
    """A connection that is in use, and the tasks that had their turn."""

    def __init__(self) -> None:
        self.statements = OneAtATime()
        self.statements.begin()
        self.done: list[str] = []

    def use(self, name: str) -> None:
        self.statements.wait()
        self.statements.begin()
        self.done.append(name)
        self.statements.end()

    async def waiting(self, *names: str) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(spawn(self.use, name)) for name in names]
        await asyncio.sleep(0)
        return tasks


async def test_in_the_order_of_coming() -> None:
    """Nobody is let in while a statement runs."""
    connection = Connection()
    tasks = await connection.waiting("a", "b", "c")
    assert connection.done == []
    connection.statements.end()
    await asyncio.gather(*tasks)
    assert connection.done == ["a", "b", "c"]
    assert connection.statements.running == 0


async def test_cancelled_while_it_waits() -> None:
    """Also at the moment in which it is let in: the next one is let in instead."""
    connection = Connection()
    first, second, *others = await connection.waiting("a", "b", "c")
    second.cancel()
    connection.statements.end()
    first.cancel()
    await asyncio.gather(first, second, *others, return_exceptions=True)
    assert connection.done == ["c"]
    assert connection.statements.running == 0


async def test_where_nothing_can_wait() -> None:
    """An error, and nobody waits for the turn of the code that got it."""
    connection = Connection()
    with pytest.raises(MissingGreenlet):
        connection.use("a")
    tasks = await connection.waiting("b")
    connection.statements.end()
    await asyncio.gather(*tasks)
    assert connection.done == ["b"]
