"""A task with transactions of two engines on one file: it never waits for itself."""

from __future__ import annotations

import asyncio

import pytest
from cancelling import PATIENCE, Bench, Item, rows
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from qsession import ConflictError, NestedWriteError

NEVER = 3600.0
ADD = update(Item).values(value=Item.value + 1)


@pytest.fixture
async def benches(tmp_path):
    """Two engines on one file; the second one knows it by a link."""
    (tmp_path / "link.db").symlink_to("app.db")
    settings = {"stall_after": NEVER, "queue_timeout": PATIENCE}
    made = [
        await Bench.ready(tmp_path / "app.db", **settings),
        Bench(tmp_path / "link.db", **settings),
    ]
    yield made
    for each in made:
        await each.check()
        await each.engine.dispose()


async def add(bench, id_):
    async with AsyncSession(bench.engine) as session:
        await session.execute(ADD.where(Item.id == id_))
        await session.commit()


async def test_outer_has_written(benches):
    """A write in the inner one is refused at once, a read sees what was before; then both work."""
    one, other = benches
    async with AsyncSession(one.engine) as outer:
        await outer.execute(ADD.where(Item.id == 1))
        with pytest.raises(NestedWriteError, match="has uncommitted writes"):
            await add(other, 2)
        async with AsyncSession(other.engine) as inner:
            assert await inner.scalar(select(Item.value).where(Item.id == 1)) == 0
        await outer.commit()
    await add(other, 2)
    assert rows(one.path, "SELECT value FROM items WHERE id < 3") == [(1,), (1,)]


async def test_outer_has_only_read(benches):
    """The outer one gives way, and goes on as if nothing had happened."""
    one, other = benches
    async with AsyncSession(one.engine) as outer:
        item = await outer.get_one(Item, 1)
        assert one.engine.stats().holder is not None
        await add(other, 2)
        item.value += 1
        await outer.commit()
    assert rows(one.path, "SELECT value FROM items WHERE id < 3") == [(1,), (1,)]
    assert one.engine.stats().taken_away == 1


@pytest.mark.parametrize("id_", [1, 2])
@pytest.mark.parametrize("engines", ["one engine", "two engines"])
async def test_a_child_that_its_parent_waits_for(benches, engines, id_):
    """The parent gives way at once, however long it may idle; it is told if its row was changed."""
    one, other = benches if engines == "two engines" else [benches[0]] * 2
    async with AsyncSession(one.engine) as outer:
        item = await outer.get_one(Item, 1)
        assert one.engine.stats().holder is not None
        await asyncio.gather(add(other, id_))
        assert one.engine.stats().taken_away == 1
        item.value += 1
        if id_ == 1:
            with pytest.raises(ConflictError):
                await outer.commit()
        else:
            await outer.commit()
    assert rows(one.path, "SELECT sum(value) FROM items") == [(id_,)]


async def test_outer_has_read_what_the_inner_one_writes(benches):
    """The outer one is told: what it computed from is no longer there."""
    one, other = benches
    async with AsyncSession(one.engine) as outer:
        item = await outer.get_one(Item, 1)
        await add(other, 1)
        item.value += 1
        with pytest.raises(ConflictError):
            await outer.commit()
    assert rows(one.path, "SELECT value FROM items WHERE id = 1") == [(1,)]


async def test_outer_only_reads_what_the_inner_one_writes(benches):
    """A page that logs its own visit, as existing code does, sees what it has written."""
    one, other = benches
    for visits in range(3):
        async with AsyncSession(one.engine) as outer:
            assert await outer.scalar(select(Item.value).where(Item.id == 1)) == visits
            await add(other, 1)
            assert await outer.scalar(select(Item.value).where(Item.id == 1)) == visits + 1
    assert one.engine.stats().conflicts == 0


async def test_a_child_waits_for_a_parent_that_has_written(benches):
    """A task that was started by the holder waits its turn: the holder can still commit."""
    one, other = benches
    async with AsyncSession(one.engine) as outer:
        await outer.execute(ADD.where(Item.id == 1))
        child = asyncio.create_task(add(other, 1))
        while other.engine.stats().holder is None:
            await asyncio.sleep(0)
        await outer.commit()
    await child
    assert rows(one.path, "SELECT value FROM items WHERE id = 1") == [(2,)]


async def test_engines_on_two_files(benches, tmp_path):
    """Another file has a turn of its own: nothing is nested."""
    one, _ = benches
    apart = await Bench.ready(tmp_path / "apart.db")
    async with AsyncSession(one.engine) as outer:
        await outer.execute(ADD.where(Item.id == 1))
        await add(apart, 1)
        await outer.commit()
    assert rows(apart.path, "SELECT value FROM items WHERE id = 1") == [(1,)]
    await apart.check()
    await apart.engine.dispose()
