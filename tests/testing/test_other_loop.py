"""OtherLoop: what runs there, how it stands still, and its end."""

from __future__ import annotations

import asyncio
import threading

import pytest
from cancelling import Bench, Item, rows
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from qsession import QSession
from qsession.testing import OtherLoop, settled


async def ident(add: int = 0) -> int:
    return threading.get_ident() + add


def test_it_runs_in_another_thread() -> None:
    """Results and errors come back."""

    async def fail() -> None:
        raise KeyError("there")

    with OtherLoop() as other:
        there = other.run(ident)
        assert there != threading.get_ident()
        assert other.run(ident, add=1) == there + 1
        with pytest.raises(KeyError, match="there"):
            other.run(fail)


async def test_standing_still(tmp_path) -> None:
    """Nothing runs there until the end of the block; who holds the ticket there blocks nobody."""
    bench = await Bench.ready(tmp_path / "app.db")
    with OtherLoop() as other:
        session = QSession(bench.engine)
        await asyncio.wrap_future(other.submit(session.scalar, select(Item.value)))
        with other.standing_still():
            waiting = other.submit(ident)
            async with AsyncSession(bench.engine) as here:
                (await here.get_one(Item, 1)).value = 7
                await here.commit()
            assert not waiting.done()
        await asyncio.wrap_future(waiting)
        await asyncio.wrap_future(other.submit(session.close))
    await settled(bench.engine)
    assert rows(bench.path, "SELECT value FROM items WHERE id = 1") == [(7,)]
    await bench.engine.dispose()


def test_it_goes_on_behind_an_error() -> None:
    """An error in the block does not leave the loop standing."""
    with OtherLoop() as other:
        with pytest.raises(KeyError), other.standing_still():
            raise KeyError
        assert other.run(ident)


def test_tasks_are_cancelled_at_the_end() -> None:
    """What still runs there is cancelled, and has cleaned up before the block is left."""
    begun, cleaned = threading.Event(), []

    async def wait() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    with OtherLoop() as other:
        future = other.submit(wait)
        begun.wait()
    assert cleaned == [True]
    assert future.cancelled()


async def test_a_future_that_is_cancelled() -> None:
    """So is its task."""
    begun, ended = threading.Event(), threading.Event()

    async def wait() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with OtherLoop() as other:
        future = asyncio.wrap_future(other.submit(wait))
        await asyncio.to_thread(begun.wait)
        future.cancel()
        assert await asyncio.to_thread(ended.wait, 20)
