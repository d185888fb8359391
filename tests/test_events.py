"""Events: what a subscriber is told, and that it can do no harm."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cancelling import eventually
from sqlalchemy import text

from qsession import (
    ConflictError,
    QueuedAsyncEngine,
    QueueTimeout,
    create_async_engine,
    create_engine,
    create_pool,
    events,
)
from qsession.session import retry
from qsession.session.maker import SessionMaker

ADD = text("INSERT INTO t (v) VALUES (1)")
READ = text("SELECT count(*) FROM t")


async def add(engine: QueuedAsyncEngine) -> None:
    """A transaction that writes."""
    async with engine.begin() as connection:
        await connection.execute(ADD)


@pytest.fixture
def told() -> Iterator[list[events.Event]]:
    """The events of this test."""
    told: list[events.Event] = []
    unsubscribe = events.subscribe(told.append)
    yield told
    unsubscribe()
    assert not events.observers


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[QueuedAsyncEngine]:
    """An engine with one table."""
    engine = create_async_engine(f"sqlite:///{tmp_path / 'app.db'}", queue_timeout=60)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE t (v INTEGER)"))
    yield engine
    await engine.dispose()


def of(told: list[events.Event], kind: type[events.Event]) -> list[events.Event]:
    """The events of one kind."""
    return [each for each in told if type(each) is kind]


async def test_a_wait_for_the_ticket_is_told_in_the_task_that_waited(
    engine: QueuedAsyncEngine, told: list[events.Event], tmp_path: Path
) -> None:
    """The event names the file and the statement that had to wait."""
    where: list[tuple[events.Event, asyncio.Task[None] | None]] = []
    unsubscribe = events.subscribe(lambda event: where.append((event, asyncio.current_task())))

    async with engine.begin() as holder:
        await holder.execute(ADD)
        assert not of(told, events.TicketWait)
        task = asyncio.create_task(add(engine))
        await eventually(lambda: engine.stats().waiting == 1)
    await task
    unsubscribe()
    (wait,) = of(told, events.TicketWait)
    assert isinstance(wait, events.TicketWait)
    assert wait.outcome == "granted"
    assert wait.seconds > 0
    assert wait.statement == ADD.text
    assert wait.database == str(tmp_path / "app.db")
    assert [each for event, each in where if event is wait] == [task]


async def test_a_wait_that_fails_or_is_cancelled_is_told_as_well(
    engine: QueuedAsyncEngine, told: list[events.Event], tmp_path: Path
) -> None:
    """The outcome says how it ended."""
    impatient = create_async_engine(f"sqlite:///{tmp_path / 'app.db'}", queue_timeout=0.01)
    async with engine.begin() as holder:
        await holder.execute(ADD)
        with pytest.raises(QueueTimeout):
            await asyncio.create_task(add(impatient))
        task = asyncio.create_task(add(engine))
        await eventually(lambda: engine.stats().waiting == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await impatient.dispose()
    waits = of(told, events.TicketWait)
    assert [wait.outcome for wait in waits] == ["timeout", "cancelled"]  # type: ignore[attr-defined]


async def test_the_disk_and_the_ticket_of_each_commit_are_told(
    engine: QueuedAsyncEngine, told: list[events.Event]
) -> None:
    """A commit waits for an fsync, and its ticket is given back before."""
    async with engine.begin() as connection:
        await connection.execute(ADD)
    (held,) = of(told, events.TicketHeld)
    assert isinstance(held, events.TicketHeld)
    assert held.wrote
    assert held.statement == ADD.text
    (wait,) = of(told, events.DiskWait)
    assert isinstance(wait, events.DiskWait)
    assert wait.outcome == "confirmed"
    (sync,) = of(told, events.Synced)
    assert isinstance(sync, events.Synced)
    assert not sync.failed
    assert told.index(held) < told.index(sync) < told.index(wait)


async def test_a_ticket_held_for_long_says_where(
    engine: QueuedAsyncEngine, told: list[events.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line is the application's own, whether the transaction is committed or rolled back."""
    monkeypatch.setattr(events, "LONG", 0.0)
    async with engine.begin() as connection:
        await connection.execute(ADD)
    connection = await engine.connect()
    await connection.execute(ADD)
    await connection.rollback()
    await connection.close()
    places = [held.where for held in of(told, events.TicketHeld)]  # type: ignore[attr-defined]
    assert len(places) == 2
    for place in places:
        assert f"{os.path.basename(__file__)}:" in place
        assert place.endswith("test_a_ticket_held_for_long_says_where")


async def test_a_ticket_that_is_taken_away_is_told(
    engine: QueuedAsyncEngine, told: list[events.Event]
) -> None:
    """A session of access write that idles loses the ticket to a writer."""
    writing = engine.execution_options(qsession_access="write")
    async with writing.connect() as idle:
        await idle.execute(READ)
        await asyncio.create_task(add(engine))
        (taken,) = of(told, events.TicketTaken)
        assert isinstance(taken, events.TicketTaken)
        assert taken.statement == READ.text
        assert "in test_a_ticket_that_is_taken_away_is_told" in taken.where


async def test_a_conflict_is_told(engine: QueuedAsyncEngine, told: list[events.Event]) -> None:
    """The event has the statement that was refused."""
    reader = engine.execution_options(qsession_reads="snapshot")
    async with reader.connect() as connection:
        await connection.execute(READ)
        await asyncio.create_task(add(engine))
        with pytest.raises(ConflictError):
            await connection.execute(ADD)
        await connection.rollback()
    (conflict,) = of(told, events.Conflict)
    assert isinstance(conflict, events.Conflict)
    assert conflict.statement == ADD.text


async def test_a_retry_is_told_before_its_pause(
    told: list[events.Event], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By sessions and by a pool; not after the last attempt, whose error is raised."""
    monkeypatch.setattr(retry, "_jitter", lambda low, high: 0.0)

    async def conflicts(_: object) -> None:
        raise ConflictError("as if another transaction had written")

    maker = SessionMaker(f"sqlite:///{tmp_path / 'app.db'}")
    with pytest.raises(ConflictError):
        await maker.run(conflicts, attempts=3)
    async with create_pool(f"sqlite:///{tmp_path / 'app.db'}") as pool:
        with pytest.raises(ConflictError):
            await pool.run(conflicts, attempts=2)
    retries = of(told, events.Retry)
    assert [(each.attempt, each.pause) for each in retries] == [(1, 0), (2, 0), (1, 0)]  # type: ignore[attr-defined]
    assert {Path(each.database).name for each in retries} == {"app.db"}
    await maker.dispose()


async def test_lone_writes_of_a_pool_are_told(told: list[events.Event], tmp_path: Path) -> None:
    """Each of several writes at once tells of its commit; those that had to wait, of that."""
    async with create_pool(f"sqlite:///{tmp_path / 'pool.db'}") as pool:
        await pool.execute("CREATE TABLE t (v INTEGER)")
        for _ in range(3):
            await pool.execute("INSERT INTO t VALUES (1)")
        told.clear()
        await asyncio.gather(*(pool.execute("INSERT INTO t VALUES (1)") for _ in range(5)))
    waits = of(told, events.DiskWait)
    assert [wait.outcome for wait in waits] == ["confirmed"] * 5  # type: ignore[attr-defined]
    assert len(of(told, events.TicketHeld)) == 5


def test_a_synchronous_engine_tells_as_well(told: list[events.Event], tmp_path: Path) -> None:
    """Its place is a line of the thread that calls."""
    engine = create_engine(f"sqlite:///{tmp_path / 'app.db'}")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (v INTEGER)"))
    engine.dispose()
    (held,) = of(told, events.TicketHeld)
    assert isinstance(held, events.TicketHeld)
    assert held.task == "thread 'MainThread'"
    assert of(told, events.DiskWait)


async def test_a_subscriber_that_fails_is_logged_and_changes_nothing(
    engine: QueuedAsyncEngine, told: list[events.Event], caplog: pytest.LogCaptureFixture
) -> None:
    """The other subscribers are told, and the commit succeeds."""

    def fails(event: events.Event) -> None:
        raise RuntimeError("no room")

    unsubscribe = events.subscribe(fails)
    try:
        with caplog.at_level(logging.ERROR, "qsession"):
            await add(engine)
    finally:
        unsubscribe()
    assert of(told, events.DiskWait)
    assert "A subscriber of qsession.events failed" in caplog.text
    async with engine.connect() as connection:
        assert await connection.scalar(READ) == 1


def test_nothing_is_told_from_within_the_garbage_collector(told: list[events.Event]) -> None:
    """The collector may have interrupted code that has the observer's lock."""

    class Abandoned:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            events.emit(events.Conflict("collected", ""))

    gc.collect()
    Abandoned()
    gc.collect()
    events.emit(events.Conflict("later", ""))
    assert [each.database for each in told] == ["later"]


def test_a_function_that_is_subscribed_twice() -> None:
    """It is told twice; each subscription ends by itself, and ending it again has no effect."""
    told: list[events.Event] = []
    observer = told.append
    first, second = events.subscribe(observer), events.subscribe(observer)
    events.emit(events.Conflict("two", ""))
    first()
    first()
    events.emit(events.Conflict("one", ""))
    second()
    events.emit(events.Conflict("none", ""))
    assert [each.database for each in told] == ["two", "two", "one"]


def test_many_threads_subscribe_at_once() -> None:
    """No subscription is lost, and each of them ends."""
    before, told = sys.getswitchinterval(), []
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            ends = list(threads.map(lambda _: events.subscribe(told.append), range(2000)))
            assert len(events.observers) == 2000
            list(threads.map(lambda end: end(), ends))
    finally:
        sys.setswitchinterval(before)
    assert not events.observers
