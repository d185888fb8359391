"""Members that come to their group, or lose their place in it, by replay or by a limit."""

from __future__ import annotations

import asyncio

import pytest
from cancelling import READ, eventually
from grouping import (
    ADD,
    COUNT,
    ITEMS,
    RAISE,
    marks,
    patient,
    ready,
    together,
    waiters,
    whole,
    write,
)
from sqlalchemy.ext.asyncio import AsyncSession

from qsession import ConflictError, HoldTimeout
from qsession.sqlite import log


@pytest.fixture
async def bench(tmp_path, monkeypatch):
    """An engine that is found whole and free after the test."""
    async with whole(tmp_path / "app.db", monkeypatch) as made:
        yield made


@pytest.mark.parametrize("changed", [True, False])
async def test_reader_upgrades_while_a_group_is_open(bench, changed):
    """What the members wrote counts: it goes on if it had read something else, or conflicts."""
    bench.learn()

    async def upgrade():
        async with bench.engine.connect() as connection:
            await connection.execute(READ)
            await connection.execute(ADD, {"run": 2})
            await connection.commit()

    async def change():
        async with bench.engine.begin() as connection:
            await connection.execute(RAISE if changed else ADD, {"run": 1})

    _, outcome = await together(bench, change(), upgrade())
    assert isinstance(outcome, ConflictError) if changed else outcome is None
    assert marks(bench) == ([0] if changed else [0, 1, 2])


@pytest.mark.parametrize("changed", [True, False])
async def test_reader_without_a_log_upgrades_while_a_group_is_open(bench, monkeypatch, changed):
    """It cannot be replayed, so any member of the group before it is a conflict."""
    bench.learn()
    monkeypatch.setattr(log, "MAX_STATEMENTS", 2)

    async def upgrade():
        async with bench.engine.connect() as connection:
            for _ in range(4):
                await connection.execute(READ)
            await connection.execute(ADD, {"run": 2})
            await connection.commit()

    if changed:
        _, outcome = await together(bench, write(bench, 1), upgrade())
        assert isinstance(outcome, ConflictError)
    else:
        await upgrade()
    assert marks(bench) == ([0, 1] if changed else [2])


@pytest.mark.parametrize("writes", [True, False])
async def test_nested_session_in_a_member(bench, writes):
    """The outer one has only read and joined: it is suspended, and goes on by replay."""

    async def nested():
        async with AsyncSession(bench.engine) as outer:
            await outer.execute(COUNT)
            await write(bench, 2)
            if writes:
                await outer.execute(RAISE)
            await outer.commit()

    _, outcome, _ = await together(bench, write(bench, 1), nested(), write(bench, 3))
    assert isinstance(outcome, ConflictError) if writes else outcome is None
    assert marks(bench) == [0, 1, 2, 3] or marks(bench) == [0, 1, 3, 2]


async def test_stalled_member_that_has_read_is_suspended(tmp_path, monkeypatch):
    """It gives up the ticket and its savepoint; the members behind it go on without it."""
    patient(monkeypatch)
    bench = await ready(tmp_path / "app.db", stall_after=0.01)
    over = asyncio.Event()

    async def stalled():
        async with bench.engine.begin() as connection:
            await connection.execute(ITEMS)
            await over.wait()
            await connection.execute(ADD, {"run": 9})

    made = await waiters(bench, write(bench, 1), stalled(), write(bench, 2))
    await asyncio.wait_for(made.first.commit(), 20)
    await made.tasks[2]
    assert bench.engine.stats().suspensions == 1
    over.set()
    assert await made.outcomes() == [None] * 3
    assert marks(bench) == [0, 1, 2, 9]
    await made.first.close()
    await bench.check()
    await bench.engine.dispose()


async def test_member_past_max_hold(tmp_path, monkeypatch):
    """It is rolled back to where it joined; the group is committed without it."""
    patient(monkeypatch)
    bench = await ready(tmp_path / "app.db", max_hold=0.05)

    async def idle():
        async with bench.engine.begin() as connection:
            await connection.execute(ADD, {"run": 9})
            await eventually(lambda: bench.engine.stats().holder is None)
            await connection.execute(ADD, {"run": 9})

    outcomes = await together(bench, write(bench, 1), idle(), write(bench, 2))
    assert isinstance(outcomes[1], HoldTimeout)
    assert marks(bench) == [0, 1, 2]
    await bench.check()
    await bench.engine.dispose()
