"""What applications run beside asyncio's own loop and tasks: uvloop, eager tasks, AnyIO."""

from __future__ import annotations

import asyncio
import gc
import random
import sys

import pytest
from cancelling import READ, Bench, Item, assert_free, connection_threads, eventually, rows
from eager import start_tasks_eagerly
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from qsession.session.maker import QSession

TASKS = 20
TIMES = 10
KINDS = [QSession, AsyncSession]


async def change(bench, kind=QSession):
    async with kind(bench.engine) as session:
        item = await session.get(Item, 1)
        item.value += 1
        await session.commit()


async def storm(bench):
    async def work(kind):
        for _ in range(TIMES):
            await change(bench, kind)
            async with kind(bench.engine) as session:
                await session.execute(READ)

    await asyncio.gather(*(work(KINDS[i % 2]) for i in range(TASKS)))


def value(bench):
    return rows(bench.path, "SELECT value FROM items WHERE id = 1")[0][0]


def test_uvloop(tmp_path):
    """Nothing is lost, and an engine goes on in the next loop."""
    uvloop = pytest.importorskip("uvloop")
    path = tmp_path / "app.db"

    def run(work):
        loop = uvloop.new_event_loop()
        try:
            return loop.run_until_complete(work)
        finally:
            loop.close()

    bench = run(Bench.ready(path))
    for _ in range(2):
        run(storm(bench))
    run(bench.check())
    run(bench.engine.dispose())
    gc.collect()
    assert value(bench) == 2 * TASKS * TIMES
    assert_free(path)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="there are no eager tasks before 3.12")
async def test_eager_tasks(tmp_path):
    """AsyncSession closes in a task, which then begins, and often ends, where it is made."""
    start_tasks_eagerly()
    bench = await Bench.ready(tmp_path / "app.db")
    await storm(bench)
    await bench.check()
    await bench.engine.dispose()
    gc.collect()  # it would find what nobody awaited
    assert not connection_threads()
    assert value(bench) == TASKS * TIMES
    assert_free(bench.path)


@pytest.mark.parametrize("inline", [False, True], ids=["threads", "inline"])
async def test_cancel_scopes(tmp_path, inline):
    """AnyIO cancels again in each turn of the loop, until the task has left the scope."""
    anyio = pytest.importorskip("anyio")
    bench = await Bench.ready(tmp_path / "app.db", inline=inline)
    chance = random.Random(7)
    done = cancelled = 0

    async def work(kind):
        nonlocal done, cancelled
        for _ in range(TIMES):
            with anyio.move_on_after(chance.choice([0, 0.001, 0.003, 0.01, 0.1, 10])) as scope:
                await change(bench, kind)
                done += 1
            cancelled += scope.cancelled_caught

    async with anyio.create_task_group() as group:
        for i in range(TASKS):
            group.start_soon(work, KINDS[i % 2])
    assert done + cancelled == TASKS * TIMES
    await eventually(lambda: bench.engine.stats().holder is None)
    assert bench.engine.stats().waiting == 0
    async with (
        bench.engine.begin() as connection
    ):  # nothing that was left to the background is late
        await connection.execute(update(Item).where(Item.id == 2).values(value=1))
    assert done <= value(bench) <= done + cancelled
    await bench.check()
    await bench.engine.dispose()
    assert_free(bench.path)
