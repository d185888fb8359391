"""A second session inside a task that has one open: a task never waits for itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from tables import NEVER, Counter, Storm, add, read

from qsession import ConflictError, NestedWriteError

pytestmark = pytest.mark.storm


async def write_inside(on: Storm, id_: int) -> None:
    """Add 1 to a counter through a session of its own."""
    async with on.session() as inner:
        await add(inner, id_)
        await inner.commit()


@pytest.mark.parametrize("by", ["the task", "a child task"])
async def test_outer_has_only_read(storm: Callable[..., Storm], by: str) -> None:
    """The outer one gives way to the inner one, and goes on as if nothing had happened.

    To a child task only once it idles: it might not be waited for.
    """
    on = storm(stall_after=NEVER if by == "the task" else 0.01)
    async with on.session() as outer:
        counter = await outer.get_one(Counter, 1)
        writing = write_inside(on, 2)
        await (writing if by == "the task" else asyncio.gather(writing))
        assert on.values() == [0, 1]
        counter.value += 1
        await outer.commit()
    assert on.values() == [1, 1]
    assert on.engine.stats().conflicts == 0


async def test_outer_has_read_what_inner_writes(storm: Callable[..., Storm]) -> None:
    """If the outer one then writes, it is told: what it computed from is no longer there."""
    on = storm(stall_after=NEVER)
    async with on.session() as outer:
        counter = await outer.get_one(Counter, 1)
        await write_inside(on, 1)
        counter.value += 1
        with pytest.raises(ConflictError):
            await outer.commit()
        await outer.rollback()
        await add(outer, 1)
        await outer.commit()
    assert on.values() == [2, 0]
    assert on.engine.stats().conflicts == 1


async def test_outer_has_written(storm: Callable[..., Storm]) -> None:
    """The inner one may read, from before; a write in it is refused at once; the outer goes on."""
    on = storm(stall_after=NEVER)
    async with on.session() as outer:
        await add(outer, 1)
        assert await read(on.session) == 0
        with pytest.raises(NestedWriteError):
            await write_inside(on, 2)
        await add(outer, 2)
        await outer.commit()
    assert on.values() == [1, 1]


async def test_many_tasks_nest(storm: Callable[..., Storm]) -> None:
    """32 tasks keep an outer session open, that has read, around an inner one that writes."""
    on = storm()

    async def handle() -> None:
        async with on.session() as outer:
            await outer.get_one(Counter, 1)
            await write_inside(on, 2)
            await outer.commit()

    await asyncio.gather(*(handle() for _ in range(32)))
    assert on.values() == [0, 32]
    assert on.engine.stats().conflicts == 0
