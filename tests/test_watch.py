"""What is said of a transaction that holds the ticket and idles while others wait."""

from __future__ import annotations

import asyncio
import logging

import pytest
from cancelling import PATIENCE, Bench, assert_free, eventually
from sqlalchemy import text

from qsession import HoldTimeout

RAISE = text("UPDATE items SET value = value + 1")


async def outer(bench, gate):
    """A task that waits for something else in the middle of a transaction."""
    async with bench.engine.begin() as connection:
        await connection.execute(RAISE)
        await inner(gate)
        return await connection.scalar(text("SELECT sum(value) FROM items"))


async def inner(gate):
    await gate.wait()


async def test_warning_shows_where_the_holder_stands(tmp_path, caplog):
    """Once for a holder that has written: its task, its statement, and the calls to its line."""
    bench = await Bench.ready(tmp_path / "app.db", warn_after=0.001, stall_after=0.001)
    gate = asyncio.Event()
    with caplog.at_level(logging.WARNING, "qsession"):
        holder = asyncio.create_task(outer(bench, gate), name="payments")
        await eventually(lambda: bench.engine.stats().holder)
        waiter = asyncio.create_task(outer(bench, gate))
        await eventually(lambda: caplog.records)
        seen = bench.engine.pool.writer.watch._idle_ticks
        await eventually(lambda: bench.engine.pool.writer.watch._idle_ticks > seen + 3)
        gate.set()
        assert await asyncio.wait_for(asyncio.gather(holder, waiter), PATIENCE) == [5, 10]
    (message,) = [each.getMessage() for each in caplog.records]
    first, *stack = message.splitlines()
    assert "1 writers wait" in first
    assert "task 'payments'" in first
    assert RAISE.text in first
    assert [each.rpartition(" in ")[2] for each in stack] == ["outer", "inner"]
    assert all(f"{__file__}:" in each for each in stack)
    assert stack[-1].strip() in first
    await bench.engine.dispose()
    assert_free(bench.path)


async def test_hold_timeout_shows_where_the_holder_stood(tmp_path):
    """The error tells its own task where it had been when its time was over."""
    bench = await Bench.ready(tmp_path / "app.db", max_hold=0.001)
    gate = asyncio.Event()
    before = bench.engine.stats().acquired
    holder = asyncio.create_task(outer(bench, gate), name="payments")
    await eventually(lambda: bench.engine.stats().acquired > before)  # it may be over by now
    await eventually(lambda: not bench.engine.stats().holder)
    gate.set()
    with pytest.raises(HoldTimeout) as error:
        await asyncio.wait_for(holder, PATIENCE)
    said, *stack = str(error.value.orig or error.value).splitlines()
    assert "task 'payments' stood at" in said
    assert [each.strip().rpartition(" in ")[2] for each in stack[:2]] == ["outer", "inner"]
    await bench.check()
    await bench.engine.dispose()
    assert_free(bench.path)
