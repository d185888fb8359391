"""Transactions that wait for one another: their order, and what each of them sees and leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cancelling import PATIENCE, Bench, Item, assert_free, rows
from queueing import ADD, COUNT, RAISE, marks, together, waiters, write
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """An engine that is found whole and free after the test."""
    made = await Bench.ready(tmp_path / "app.db", stall_after=PATIENCE)
    yield made
    await made.check()
    await made.engine.dispose()
    assert_free(made.path)


@pytest.mark.parametrize("access", ["auto", "write"])
async def test_order_is_that_of_asking(bench: Bench, access: str) -> None:
    """They run, and see one another, in the order in which they asked for the ticket."""
    engine = bench.engine.execution_options(qsession_access=access)

    async def count(run: int) -> int:
        async with engine.begin() as connection:
            seen: int = (await connection.execute(COUNT)).scalar_one()
            await connection.execute(ADD, {"run": run})
            return seen

    assert await together(bench, *(count(run) for run in range(1, 6))) == [3, 6, 9, 12, 15]
    assert marks(bench) == list(range(6))
    assert bench.engine.stats().conflicts == 0


@pytest.mark.parametrize("how", ["auto", "write", "for update"])
async def test_read_modify_write_loses_nothing(bench: Bench, how: str) -> None:
    """Those that read, compute and write see each other's work."""
    query = select(Item).where(Item.id == 1)
    if how == "for update":
        query = query.with_for_update()
    options = {"qsession_access": "write" if how == "write" else "auto"}

    async def add() -> None:
        async with AsyncSession(bench.engine.execution_options(**options)) as session:
            item = (await session.scalars(query)).one()
            item.value += 1
            await session.commit()

    for run in range(3):  # from the second round on its texts are known for short ones
        assert await together(bench, *(add() for _ in range(8)), run=run) == [None] * 8
    assert rows(bench.path, "SELECT value FROM items WHERE id = 1") == [(24,)]


async def test_a_rollback_undoes_that_transaction_only(bench: Bench) -> None:
    """What was written before it and after it stays."""

    async def undo(run: int) -> None:
        async with bench.engine.connect() as connection:
            await connection.execute(ADD, {"run": run})
            await connection.execute(RAISE)
            await connection.rollback()

    assert await together(bench, write(bench, 1), undo(2), write(bench, 3)) == [None] * 3
    assert marks(bench) == [0, 1, 3]
    assert rows(bench.path, "SELECT sum(value) FROM items") == [(0,)]


async def test_savepoints_inside(bench: Bench) -> None:
    """One is rolled back, one released, where the transaction commits and where it rolls back."""

    async def member(run: int, keep: bool) -> None:
        async with bench.engine.connect() as connection:
            await connection.execute(ADD, {"run": run})
            async with connection.begin_nested() as lost:
                await connection.execute(ADD, {"run": run})
                await lost.rollback()
            async with connection.begin_nested():
                await connection.execute(RAISE)
            await (connection.commit() if keep else connection.rollback())

    await together(bench, member(1, True), member(2, False), member(3, True))
    assert marks(bench) == [0, 1, 3]
    assert rows(bench.path, "SELECT DISTINCT value FROM items") == [(2,)]


@pytest.mark.parametrize("cancelled", [0, 1])
async def test_one_that_waits_is_cancelled(bench: Bench, cancelled: int) -> None:
    """In the queue, or as the ticket comes: the others go on."""
    made = await waiters(bench, write(bench, 1), write(bench, 2), write(bench, 3))
    going = asyncio.create_task(made.go())
    await asyncio.sleep(0)
    made.tasks[cancelled].cancel()
    outcomes = await asyncio.wait_for(going, PATIENCE)
    await made.holder.close()
    expected = [0, 1, 2, 3]
    if isinstance(outcomes[cancelled], asyncio.CancelledError):
        expected.remove(cancelled + 1)
    assert marks(bench) in ([0, 1, 2, 3], expected)


async def test_all_is_there_when_commit_returns(bench: Bench) -> None:
    """At each acknowledgement another connection sees that transaction, and all before it."""
    seen = []

    async def look(run: int) -> None:
        await write(bench, run)
        seen.append((run, marks(bench)))

    await together(bench, *(look(run) for run in range(1, 4)))
    assert len(seen) == 3
    assert all(found[: run + 1] == list(range(run + 1)) for run, found in seen)
