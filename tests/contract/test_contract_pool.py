"""Who waits, for how long, and who is turned away: the same keywords on every database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from contract_tables import PATIENCE, Counter, Database, Note
from sqlalchemy import exc, insert, select, text

from qsession import QueuedAsyncEngine, QueueFull, QueueTimeout
from qsession.session.maker import SessionMaker

Make = Callable[..., QueuedAsyncEngine]
WRITE = insert(Note).values(body="x")


async def until(condition: Callable[[], bool]) -> None:
    """Give the loop turns until ``condition`` holds."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0)


async def test_one_more_waiter_is_turned_away(make: Make, database: Database) -> None:
    """With max_waiting reached the next writer gets QueueFull at once; the others are served."""
    engine = make(max_size=1, max_waiting=1)
    maker = SessionMaker(bind=engine)

    async def write() -> None:
        async with maker.begin() as s:
            await s.execute(WRITE)

    async with maker.begin() as holder:
        await holder.execute(WRITE)
        waiter = asyncio.create_task(write())
        await until(lambda: engine.stats().waiting == 1)
        with pytest.raises(QueueFull, match="max_waiting") as caught:
            await asyncio.create_task(write())
        assert isinstance(caught.value, exc.TimeoutError)
        assert engine.stats().waiting == 1
    await waiter
    assert (engine.stats().waiting, engine.stats().timeouts) == (0, 0)
    assert await database.notes() == ["x", "x"]


async def test_who_is_not_served_in_time_gets_queue_timeout(make: Make) -> None:
    """Past queue_timeout a writer gets QueueTimeout, which names the task it waited for."""
    engine = make(max_size=1, queue_timeout=0.1)
    maker = SessionMaker(bind=engine)

    async def write() -> None:
        async with maker.begin() as s:
            await s.execute(WRITE)

    async with maker.begin() as holder:
        await holder.execute(WRITE)
        me = asyncio.current_task()
        assert me is not None
        with pytest.raises(QueueTimeout, match=me.get_name()) as caught:
            await asyncio.create_task(write())
        assert isinstance(caught.value, exc.TimeoutError)
    assert engine.stats().timeouts == 1
    await write()


async def test_those_who_wait_are_served_in_order(make: Make, database: Database) -> None:
    """First come, first served, whoever was cancelled in between left out."""
    engine = make(max_size=1)
    maker = SessionMaker(bind=engine)

    async def write(number: int) -> None:
        async with maker.begin() as s:
            await s.execute(insert(Note).values(body=str(number)))

    async with maker.begin() as holder:
        await holder.execute(WRITE)
        waiters = []
        for number in range(6):
            waiters.append(asyncio.create_task(write(number)))
            await until(lambda number=number: engine.stats().waiting == number + 1)
        waiters[0].cancel()
        waiters[3].cancel()
        await until(lambda: engine.stats().waiting == 4)
    await asyncio.gather(*waiters, return_exceptions=True)
    assert await database.notes() == ["x", "1", "2", "4", "5"]


async def test_stats_count(make: Make) -> None:
    """Commits, waits and connections in use are counted, also across dispose()."""
    engine = make(max_size=2)
    maker = SessionMaker(bind=engine)
    async with maker.begin() as s:
        await s.execute(WRITE)
    await engine.dispose()
    async with maker.begin() as s:
        await s.execute(WRITE)
    after = engine.stats()
    assert after.commits == 2
    assert after.acquired == after.waits.count >= 2
    assert after.holds.count >= 2
    assert (after.waiting, after.timeouts, after.conflicts, after.in_use) == (0, 0, 0, 0)
    assert engine.execution_options(mark=1).stats() == after


async def test_fill_opens_ahead(make: Make) -> None:
    """fill() works on every database; on a server min_size connections are open afterwards."""
    engine = make(min_size=3, max_size=4)
    await engine.fill()
    assert engine.stats().in_use == 0
    expected = 1 if engine.dialect.name == "sqlite" else 3  # SQLite's others open when needed
    assert engine.stats().size == expected
    async with SessionMaker(bind=engine).begin() as s:
        await s.execute(WRITE)


@pytest.mark.direct
@pytest.mark.servers
async def test_min_size_is_opened_with_the_first_use(make: Make, database: Database) -> None:
    """The first checkout has the rest of min_size opened behind it, and no more than that."""
    engine = make(min_size=3, max_size=5)
    async with engine.connect() as connection:
        await connection.execute(select(1))
        await until(lambda: engine.stats().size == 3)
    await engine.fill()
    assert engine.stats().size == 3
    assert await database.others() == (6 if database.reading else 3)


@pytest.mark.direct
@pytest.mark.servers
async def test_dispose_in_the_middle_of_filling(make: Make, database: Database) -> None:
    """An engine that is disposed of while connections are opened ahead leaves none behind."""
    engine = make(min_size=5)
    async with engine.connect() as connection:
        await connection.execute(select(1))
    await engine.dispose()
    assert engine.stats().size == 0
    await database.until_alone()


@pytest.mark.direct
@pytest.mark.servers
async def test_what_was_out_at_dispose_is_closed_when_it_comes_back(
    make: Make, database: Database
) -> None:
    """A connection in use during dispose() goes on, and is closed at its end."""
    engine = make()
    async with engine.connect() as connection:
        await connection.execute(select(1))
        await engine.dispose()
        assert await connection.scalar(select(Counter.value).where(Counter.id == 1)) == 0
    await database.until_alone()


@pytest.mark.servers
async def test_a_place_whose_connection_cannot_be_opened_goes_on(make: Make) -> None:
    """When opening fails, the error goes to who asked, and the next waiter gets the place."""
    engine = make(max_size=1, queue_timeout=10)
    fails = [True]
    pool = engine.sync_engine.pool
    connect = pool._connect

    def sometimes(record: object) -> object:
        if fails:
            fails.pop()
            raise ConnectionRefusedError("not now")
        return connect(record)

    pool._connect = sometimes

    async def read() -> object:
        async with engine.connect() as connection:
            return await connection.scalar(text("SELECT 7"))

    results = await asyncio.gather(*(read() for _ in range(3)), return_exceptions=True)
    assert isinstance(results[0], exc.OperationalError)
    assert "not now" in str(results[0])
    assert results[1:] == [7, 7]


@pytest.mark.servers
async def test_pre_ping_and_recycle_keep_their_meaning(make: Make) -> None:
    """The arguments of SQLAlchemy's pool work beside ours."""
    engine = make(pool_pre_ping=True, pool_recycle=0, pool_use_lifo=True, min_size=1)
    for _ in range(3):
        async with engine.connect() as connection:
            assert await connection.scalar(select(1)) == 1
    assert engine.stats().size == 1


@pytest.mark.servers
async def test_a_full_line_lets_a_connection_that_is_free_be_taken(make: Make) -> None:
    """max_waiting=0 refuses waiting only: whoever need not wait is served."""
    engine = make(max_size=1, max_waiting=0)
    for _ in range(2):
        async with engine.connect() as connection:
            await connection.execute(select(1))
            with pytest.raises(QueueFull):
                await engine.connect().start()
