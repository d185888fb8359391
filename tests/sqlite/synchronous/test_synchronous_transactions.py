"""Transactions of threads, beside each other and beside tasks: no update is lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest
from sqlalchemy import Engine, event, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from threads import result, start, until

import qsession
from qsession import ConflictError, NestedWriteError, create_async_engine
from qsession.sqlite.pool import WriteQueuePool

Make = Callable[..., Engine]
READ = text("SELECT value FROM counters")
ADD = text("UPDATE counters SET value = value + 1")
SET = text("UPDATE counters SET value = :value")
TIMES = 20


class Base(DeclarativeBase):
    pass


class Counter(Base):
    __tablename__ = "counters"

    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]


def value(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(READ) or 0)


def add(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(ADD)


def raise_it(engine: Engine, **kw: Any) -> int:
    """Read, change, write, as the ORM does; again after a conflict, which is counted."""
    conflicts = 0
    while True:
        try:
            with Session(engine) as s, s.begin():
                s.get_one(Counter, 1, **kw).value += 1
        except ConflictError:
            conflicts += 1
        else:
            return conflicts


async def raise_it_in_a_task(engine: Any) -> None:
    while True:
        try:
            async with AsyncSession(engine) as s, s.begin():
                (await s.get_one(Counter, 1)).value += 1
        except ConflictError:
            continue
        return


def test_no_update_of_threads_is_lost(engine: Engine, made: Make) -> None:
    """On one engine and on another one, and in tasks on an asyncio engine, all on one file."""
    other = made()

    def raise_often(engine: Engine) -> None:
        for _ in range(TIMES):
            raise_it(engine)

    async def tasks() -> None:
        third = create_async_engine(engine.url)
        for _ in range(TIMES):
            await asyncio.gather(*(raise_it_in_a_task(third) for _ in range(3)))
        await third.dispose()

    running = [start(raise_often, each) for each in (engine, other) for _ in range(3)]
    running.append(start(asyncio.run, tasks()))
    for each in running:
        result(each)
    assert value(engine) == 9 * TIMES


def test_with_for_update_there_is_no_conflict(engine: Engine) -> None:
    """It locks with the first SELECT."""
    running = [start(lambda: raise_it(engine, with_for_update=True)) for _ in range(20)]
    assert sum(result(each) for each in running) == 0


def test_a_thread_that_idles_after_a_read_delays_nobody(engine: Engine) -> None:
    """Others commit meanwhile; when it writes what was read before, that is a conflict."""
    with engine.connect() as idle:
        before = idle.scalar(READ)
        result(start(add, engine))
        with pytest.raises(ConflictError, match="SELECT value FROM counters"):
            idle.execute(SET, {"value": before + 1})
        with pytest.raises(ConflictError):
            idle.execute(READ)
        idle.rollback()
        assert idle.scalar(READ) == 1
    with engine.connect() as idle:
        idle.execute(text("SELECT count(*) FROM notes"))
        result(start(add, engine))
        idle.execute(ADD)  # what it had read has not changed
        idle.commit()
    assert value(engine) == 3


def test_a_snapshot_is_kept_beside_writers(engine: Engine, made: Make) -> None:
    """With reads="snapshot", as for a session of the asyncio engine."""
    snapshots = made(reads="snapshot")
    with snapshots.connect() as connection:
        assert connection.scalar(READ) == 0
        result(start(add, engine))
        assert connection.scalar(READ) == 0


def test_a_thread_that_has_written_is_waited_for_in_order(engine: Engine) -> None:
    """First come, first served; one with a lower priority comes before the others."""
    order: list[int] = []

    def come(number: int) -> None:
        first = engine.execution_options(qsession_priority=-100 if number == 3 else 0)
        with first.begin() as connection:
            connection.execute(ADD)
            order.append(number)

    with engine.begin() as connection:
        connection.execute(ADD)
        running = []
        for number in range(4):
            running.append(start(come, number))
            until(lambda: qsession.stats(engine).waiting == len(running))
        assert value(engine) == 0
    for each in running:
        result(each)
    assert order == [3, 0, 1, 2]


def test_a_thread_waits_for_a_task_and_a_task_for_a_thread(engine: Engine) -> None:
    """Two engines of different kinds meet at the turn of the file."""

    async def main() -> None:
        other = create_async_engine(engine.url)
        async with other.begin() as connection:
            await connection.execute(ADD)
            waiting = start(add, engine)
            await asyncio.to_thread(until, lambda: engine.pool.write_queue.turn.waits)  # type: ignore[attr-defined]
        await asyncio.to_thread(result, waiting)
        held, ends = threading.Event(), threading.Event()

        def hold() -> None:
            with engine.begin() as connection:
                connection.execute(ADD)
                held.set()
                ends.wait()

        holder = start(hold)
        await asyncio.to_thread(held.wait)
        task = asyncio.create_task(raise_it_in_a_task(other))
        pool = other.pool
        assert isinstance(pool, WriteQueuePool)
        await asyncio.to_thread(until, lambda: pool.write_queue.turn.waits)
        ends.set()
        await asyncio.to_thread(result, holder)
        await task
        assert pool.running_syncer is engine.pool.running_syncer  # type: ignore[attr-defined]
        await other.dispose()

    result(start(asyncio.run, main()))
    assert value(engine) == 4


def test_call_sites_of_threads_are_told_apart(engine: Engine) -> None:
    """One that only reads takes no ticket, once that is known; one that reads and writes does."""

    def reads() -> None:
        with Session(engine) as s:
            s.scalar(select(Counter.value))

    acquired = [qsession.stats(engine).acquired]
    for _ in range(18):
        for function in (reads, lambda: raise_it(engine)):
            function()
            acquired.append(qsession.stats(engine).acquired)
    assert acquired[1] == acquired[0] + 1
    assert [each - acquired[-3] for each in acquired[-3:]] == [0, 0, 1]
    assert qsession.stats(engine).validations == 0


def test_a_line_where_threads_idle_is_remembered(made: Make) -> None:
    """Others wait for the first one that idles there, and the next one gives the ticket up."""
    engine = made(stall_after=0.05)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE counters (value)"))
        connection.execute(text("INSERT INTO counters VALUES (0)"))

    def read_and_idle() -> None:
        with engine.execution_options(qsession_access="write").begin() as connection:
            connection.execute(READ)
            reading = start(add, engine)
            result(reading)

    read_and_idle()
    places = engine.pool.write_queue.watch.places  # type: ignore[attr-defined]
    assert len(places) == 1
    read_and_idle()
    assert qsession.stats(engine).taken_away == 2


@pytest.mark.parametrize("same", [True, False])
def test_a_thread_does_not_wait_for_itself(engine: Engine, made: Make, same: bool) -> None:
    """In a second transaction a read goes on, a write is an error, on one engine and on two."""
    other = engine if same else made()
    with engine.begin() as outer:
        outer.execute(ADD)
        assert value(other) == 0
        with pytest.raises(NestedWriteError, match="This thread would wait for itself"):
            add(other)
    add(other)
    with engine.connect() as outer:
        outer.execute(READ)
        add(other)  # the ticket of one that has only read is taken away
    assert value(engine) == 3


@pytest.mark.parametrize("wrote", [False, True])
def test_a_thread_of_a_pool_does_parts_of_many_transactions(
    engine: Engine, made: Make, wrote: bool
) -> None:
    """One part has written, or read; the next job of the thread is another's, and has to wait."""
    writing = made(access="write", stall_after=60)
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        one, other = writing.connect(), writing.connect()
        first.submit(one.execute, ADD if wrote else READ).result()
        waiting = first.submit(other.execute, ADD)
        until(lambda: qsession.stats(writing).waiting == 1)
        assert qsession.stats(writing).taken_away == 0
        if not wrote:
            second.submit(one.execute, ADD).result()
        second.submit(one.commit).result()
        waiting.result()
        first.submit(other.commit).result()
        one.close()
        other.close()
    assert value(engine) == 2


def test_a_task_does_not_wait_for_itself_in_a_call_that_stops_its_loop(engine: Engine) -> None:
    """It has written on an asyncio engine and calls the synchronous one, and vice versa."""

    async def main() -> None:
        other = create_async_engine(engine.url)
        async with other.begin() as outer:
            await outer.execute(ADD)
            assert value(engine) == 0
            with pytest.raises(NestedWriteError, match="This task would wait for itself"):
                add(engine)
        add(engine)
        with engine.begin() as inner:
            inner.execute(ADD)
            with pytest.raises(NestedWriteError, match="This task would wait for itself"):
                await raise_it_in_a_task(other)
        async with other.connect() as outer:
            await outer.execute(READ)
            add(engine)
        await other.dispose()

    asyncio.run(main())
    assert value(engine) == 4


@pytest.mark.parametrize("synchronous", [False, True])
def test_a_call_does_not_wait_for_a_task_whose_loop_it_stops(
    engine: Engine, synchronous: bool
) -> None:
    """Another task of the loop has written, on either engine: it could never go on."""

    async def main() -> None:
        other = create_async_engine(engine.url)
        wrote, ends = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            if synchronous:
                with engine.begin() as connection:
                    connection.execute(ADD)
                    wrote.set()
                    await ends.wait()
            else:
                async with other.begin() as connection:
                    await connection.execute(ADD)
                    wrote.set()
                    await ends.wait()

        holder = asyncio.create_task(hold(), name="holder")
        await wrote.wait()
        with pytest.raises(NestedWriteError, match=r"task 'holder' .* blocks the event loop"):
            add(engine)
        assert value(engine) == 0
        writing = asyncio.create_task(asyncio.to_thread(add, engine))
        ends.set()
        await asyncio.gather(holder, writing)
        await other.dispose()

    asyncio.run(main())
    assert value(engine) == 2


def test_listeners_of_the_pool_may_use_the_context_of_the_caller(made: Make) -> None:
    """They run in another thread, in the context of the one that has asked."""
    request: ContextVar[str] = ContextVar("request")
    engine, seen = made(), []
    event.listen(engine, "checkout", lambda *_: seen.append(request.get()))
    token = request.set("a")
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    request.reset(token)
    assert set(seen) == {"a"}
