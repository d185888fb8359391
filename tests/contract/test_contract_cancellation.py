"""A task is cancelled wherever it waits, on every database, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from cancelling import COUNT_ENDLESSLY
from contract_tables import Counter, Database, Note
from sqlalchemy import insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.pool import base

from qsession import QueuedAsyncEngine
from qsession.session.maker import SessionMaker
from qsession.testing import When, cancel_at

KEEPS_PLACES = "_checkin_failed" in inspect.getsource(base._finalize_fairy)
Make = Callable[..., QueuedAsyncEngine]
Scenario = Callable[[SessionMaker, str], Coroutine[Any, Any, None]]


async def writes(maker: SessionMaker, mark: str) -> None:
    """Read, change, add, and commit in a block."""
    async with maker.begin() as s:
        counter = await s.get_one(Counter, 1)
        counter.value += 1
        s.add_all([Note(body=mark), Note(body=mark)])


async def saves(maker: SessionMaker, mark: str) -> None:
    """A savepoint that is released, in a session that is committed by hand."""
    async with maker() as s:
        async with s.begin_nested():
            s.add(Note(body=mark))
        await s.execute(insert(Note).values(body=mark))
        await s.commit()
        await s.execute(select(Note))


async def reads(maker: SessionMaker, mark: str) -> None:
    """Several tasks in one reader."""
    async with maker.reader() as s:
        await asyncio.gather(s.get(Counter, 1), s.scalars(select(Note)), s.get(Counter, 2))


async def plain(maker: SessionMaker, mark: str) -> None:
    """A session of SQLAlchemy's own."""
    async with AsyncSession(maker.engine) as s, s.begin():
        s.add_all([Note(body=mark), Note(body=mark)])


@pytest.mark.parametrize(
    ("scenario", "warm"),
    [(writes, False), (writes, True), (saves, True), (reads, True), (plain, True)],
    ids=["cold", "writes", "saves", "reads", "plain"],
)
@pytest.mark.parametrize("when", [When.ASKED, When.ANSWERED, When.TWICE])
async def test_cancelled_at_every_suspension(
    make: Make, database: Database, scenario: Scenario, when: When, warm: bool
) -> None:
    """Wherever it was cancelled, all of a transaction is there or nothing, and nothing is open."""
    if not database.is_sqlite and not KEEPS_PLACES:
        pytest.skip("SQLAlchemy before its #13699 loses the place of a task cancelled in ROLLBACK")
    engine = make(max_size=1, queue_timeout=20)  # one, which would be missed
    maker = SessionMaker(bind=engine)
    for n in range(1, 60):
        if not warm:
            await engine.dispose()  # so that a connection is opened in the middle of it
        mark = f"{n}"
        if await cancel_at(scenario(maker, mark), n, when):
            break
        gc.collect()
        async with maker.begin() as s:
            assert len((await s.scalars(select(Note).where(Note.body == mark))).all()) in (0, 2)
            await s.execute(update(Counter).where(Counter.id == 2).values(value=n))
        assert engine.stats().in_use == 0
        assert engine.stats().waiting == 0
    else:
        pytest.fail("the scenario never came to its end")
    assert n > 1
    if not database.is_sqlite:
        await database.until_alone(in_transaction=True)


LONG = {
    "sqlite": COUNT_ENDLESSLY.text,
    "postgresql": "SELECT pg_sleep(600)",
    "mysql": "SELECT SLEEP(600)",
}


async def test_a_statement_that_runs_is_not_waited_for(make: Make, database: Database) -> None:
    """Cancelled in the middle of a long statement, its connection is free or replaced at once."""
    engine = make(max_size=1)
    maker = SessionMaker(bind=engine)
    started = asyncio.Event()

    async def wait() -> None:
        async with maker.begin() as s:
            await s.execute(update(Counter).values(value=9))
            started.set()
            await s.execute(text(LONG[engine.dialect.name]))

    task = asyncio.create_task(wait())
    await started.wait()
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asyncio.shield(task), 20)
    async with maker.begin() as s:
        await s.execute(update(Counter).values(value=Counter.value + 1))
    assert await database.values() == [1, 1]


@pytest.mark.servers
@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")  # psycopg
async def test_a_session_that_is_forgotten_gives_its_connection_up(
    make: Make, database: Database
) -> None:
    """The garbage collector finds a connection: SQLAlchemy warns, and its place is free again."""
    engine = make(max_size=1)

    async def forget() -> None:
        s = AsyncSession(engine)
        await s.execute(update(Counter).values(value=9))

    await forget()
    with pytest.warns(Warning, match="garbage collector"):
        gc.collect()
    async with SessionMaker(bind=engine).begin() as s:
        await s.execute(update(Counter).values(value=Counter.value + 1))
    assert await database.values() == [1, 1]
