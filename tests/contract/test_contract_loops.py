"""One engine in several event loops, one after the other and at once."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from typing import Any

import pytest
from contract_tables import Counter, Database
from eager import start_tasks_eagerly
from sqlalchemy import event, select
from sqlalchemy.util import await_only

from qsession import QueuedAsyncEngine, create_async_engine
from qsession.servers.pool import ServerPool
from qsession.session.maker import SessionMaker


@pytest.fixture
def engine(url: str) -> QueuedAsyncEngine:
    """An engine that no loop disposes of."""
    return create_async_engine(url, max_size=2, min_size=2)


async def use(maker: SessionMaker, tasks: int = 6) -> None:
    """More tasks than connections."""

    async def one() -> None:
        async with maker() as s:
            assert await s.scalar(select(1)) == 1

    await asyncio.gather(*(one() for _ in range(tasks)))


def test_one_run_after_the_other(engine: QueuedAsyncEngine) -> None:
    """Connections of a loop that is closed are thrown away, without a warning, and not reused."""
    maker = SessionMaker(bind=engine)
    for _ in range(3):
        asyncio.run(use(maker))
        gc.collect()

    async def last() -> None:
        await use(maker)
        assert engine.stats().in_use == 0
        await engine.dispose()

    asyncio.run(last())
    gc.collect()


def test_disposed_of_by_another_loop(engine: QueuedAsyncEngine) -> None:
    """dispose() closes what a closed loop has left."""
    maker = SessionMaker(bind=engine)
    asyncio.run(use(maker))
    asyncio.run(engine.dispose())
    gc.collect()
    assert engine.stats().size == 0


# A loop that ends in the same moment as another one drops a connection of its own may leave that to
# the garbage collector: asyncmy then says that a transport was not closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_two_loops_at_once(engine: QueuedAsyncEngine) -> None:
    """Two threads with a loop each share the pool; each has connections of its own loop only."""
    maker = SessionMaker(bind=engine)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            for _ in range(5):
                asyncio.run(use(maker))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
        assert not each.is_alive()
    assert failures == []
    asyncio.run(engine.dispose())
    gc.collect()


@pytest.mark.servers
def test_first_connections_in_two_loops_at_once(url: str) -> None:
    """The "connect" listeners run for one of them first; the task of the other loop waits."""
    engine = create_async_engine(url, max_size=2)
    loops: list[asyncio.AbstractEventLoop] = []
    opened = threading.Barrier(2, timeout=60)
    listened = []

    @event.listens_for(engine.sync_engine, "do_connect")
    def opens(*_: object) -> None:
        loops.append(asyncio.get_running_loop())

    @event.listens_for(engine.sync_engine, "connect")
    def connects(*_: object) -> None:
        listened.append(asyncio.get_running_loop())
        if len(listened) == 1:
            await_only(the_other_waits(listened[0]))

    async def the_other_waits(mine: asyncio.AbstractEventLoop) -> None:
        """It has its connection, and has then gone on to where it waits."""
        pool = engine.pool
        assert isinstance(pool, ServerPool)
        while len(set(pool._loops.values())) < 2:
            await asyncio.sleep(0.001)
        other = next(each for each in loops if each is not mine)
        seen = asyncio.Event()
        other.call_soon_threadsafe(mine.call_soon_threadsafe, seen.set)
        await seen.wait()

    async def select_one() -> None:
        opened.wait()
        async with engine.connect() as connection:
            assert await connection.scalar(select(1)) == 1

    threads = [
        threading.Thread(target=lambda: asyncio.run(select_one(), debug=True)) for _ in range(2)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
        assert not each.is_alive()
    assert len(set(listened)) == 2
    asyncio.run(engine.dispose())
    gc.collect()


# uvloop says that the connections of the first loop are open when it ends, which is the point.
@pytest.mark.filterwarnings("ignore:unclosed resource:ResourceWarning")
def test_loops_of_uvloop(engine: QueuedAsyncEngine) -> None:
    """Its sockets are not those of the standard library, and end with their loop."""
    uvloop = pytest.importorskip("uvloop")
    maker = SessionMaker(bind=engine)

    def run(work: Any) -> None:
        loop = uvloop.new_event_loop()
        try:
            loop.run_until_complete(work)
        finally:
            loop.close()

    for _ in range(3):
        run(use(maker))
    run(engine.dispose())
    gc.collect()
    assert engine.stats().size == 0


@pytest.mark.skipif(sys.version_info < (3, 12), reason="there are no eager tasks before 3.12")
async def test_eager_tasks(engine: QueuedAsyncEngine) -> None:
    """A task that begins where it is made, inside of a greenlet, is not lost there."""
    start_tasks_eagerly()
    maker = SessionMaker(bind=engine)
    async with maker() as s:
        assert await s.scalar(select(1)) == 1  # on a server, another connection is opened for later
    await use(maker)
    async with maker() as s:
        both = await asyncio.gather(s.scalar(select(1)), s.scalar(select(2)))
        assert both == [1, 2]
    await engine.dispose()
    gc.collect()  # it would find what nobody awaited
    assert engine.stats().size == 0


@pytest.mark.skipif(
    os.environ.get("QSESSION_TEST_LOOP") == "uvloop",
    reason="a loop of uvloop closes its connections itself when it ends",
)
@pytest.mark.direct
@pytest.mark.servers
async def test_the_server_lets_go_of_a_closed_loop(make: Any, database: Database) -> None:
    """What a closed loop had open is gone on the server when the engine is used again."""
    engine = make(max_size=3)

    async def leave_open() -> None:
        async with SessionMaker(bind=engine)() as s:
            await s.get(Counter, 1)

    await asyncio.to_thread(lambda: asyncio.run(leave_open()))
    assert await database.others() == 1
    async with SessionMaker(bind=engine)() as s:
        await s.get(Counter, 1)
    await engine.dispose()
    await database.until_alone()
