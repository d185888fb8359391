"""Lone statements: the ways that one takes without a greenlet, and how it leaves them."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cancelling import COUNT_ENDLESSLY, PATIENCE, assert_free, eventually, rows
from sqlalchemy import event, text
from sqlalchemy.exc import IntegrityError, OperationalError

from qsession import (
    AsyncConnectionPool,
    DurabilityError,
    EngineDraining,
    QueueFull,
    QueueTimeout,
    create_async_engine,
    create_pool,
)
from qsession.sqlite.driver.lease import Lease
from qsession.sqlite.durability import checkpoint
from qsession.sqlite.durability.wal_file import WalFile
from qsession.sqlite.lone import Lane
from qsession.sqlite.processes.turn import FileTurn
from qsession.sqlite.queue.owner import Owner
from qsession.sqlite.queue.stall import StallWatch
from qsession.testing import When, cancel_at, held_disk
from qsession.waiting.ticket import Ticket

ADD = "INSERT INTO notes (body) VALUES ($1)"
COUNT = "SELECT count(*) FROM notes"
BODIES = "SELECT body FROM notes ORDER BY id"
LONG = (
    "INSERT INTO notes (body) WITH RECURSIVE n(i) AS "
    "(SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1) SELECT max(i) FROM n"
)


async def ready(path: Path, **kw: Any) -> AsyncConnectionPool:
    """A pool whose statements are known to be short."""
    pool = create_pool(f"sqlite:///{path}", **kw)
    await pool.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT UNIQUE)")
    for n in range(3):
        await pool.execute(ADD, f"ready {n}")
        await pool.fetchval(COUNT)
        await pool.fetchval(LONG, n + 5)
    await pool.execute("DELETE FROM notes")
    return pool


@pytest.fixture
async def path(tmp_path: Path) -> AsyncIterator[Path]:
    """Where the file is, which is whole and free at the end."""
    path = tmp_path / "app.db"
    yield path
    assert_free(path)


@pytest.fixture
async def pool(path: Path) -> AsyncIterator[AsyncConnectionPool]:
    """A pool whose statements are known to be short."""
    pool = await ready(path)
    yield pool
    stats = pool.engine.stats()
    assert (stats.waiting, stats.holder, stats.in_use) == (0, None, 0)
    await asyncio.wait_for(pool.close(), PATIENCE)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements that were done in a greenlet."""
    seen = []
    in_transaction = Lane._in_transaction

    def noted(self: Lane, statement: Any, *args: Any) -> Any:
        seen.append(statement.sql)
        return in_transaction(self, statement, *args)

    monkeypatch.setattr(Lane, "_in_transaction", noted)
    return seen


def queue_of(pool: AsyncConnectionPool) -> Any:
    return pool.engine.pool.write_queue.queue


def held_elsewhere(pool: AsyncConnectionPool) -> Ticket:
    """The ticket, in the hands of somebody who is busy."""

    class Busy:
        last_statement = ""
        task = loop = ticket = site = None
        wrote = promised = insists = locked_by_driver = False
        running = True
        activity = 0

        def reads_for(self) -> tuple[float, float]:
            return 0.0, 0.0

    owner: Owner = Busy()  # type: ignore[assignment]
    ticket = Ticket(owner)
    queue_of(pool).take(ticket)
    assert ticket.held
    assert ticket.claim()
    return ticket


async def waiting(pool: AsyncConnectionPool, *numbers: int) -> list[asyncio.Task[int]]:
    """Writes that wait for the ticket, in this order."""
    tasks = []
    for number in numbers:
        tasks.append(asyncio.create_task(pool.execute(ADD, str(number))))
        await eventually(lambda: queue_of(pool).waiting == len(tasks))
    return tasks


def bodies(path: Path) -> list[str]:
    return [body for (body,) in rows(path, BODIES)]


@pytest.mark.usefixtures("short_ways")
async def test_writes_follow_one_another(
    pool: AsyncConnectionPool, path: Path, ways: list[str]
) -> None:
    """Those that wait are done in order, each with a commit of its own, and no greenlet."""
    before = pool.engine.stats()
    ticket = held_elsewhere(pool)
    tasks = await waiting(pool, *range(20))
    queue_of(pool).release(ticket)
    assert await asyncio.gather(*tasks) == [1] * 20
    after = pool.engine.stats()
    assert bodies(path) == [str(n) for n in range(20)]
    assert after.commits - before.commits == 20
    assert after.acquired - before.acquired == 21
    assert after.syncs - before.syncs < 20
    assert ways == []


async def test_they_queue_up_with_transactions(pool: AsyncConnectionPool, path: Path) -> None:
    """First come, first served, whatever it is."""

    async def transaction(number: int) -> None:
        async with pool.transaction() as connection:
            await connection.execute(ADD, str(number))

    ticket = held_elsewhere(pool)
    tasks: list[Any] = []
    for number in range(9):
        work = transaction(number) if number % 3 == 1 else pool.execute(ADD, str(number))
        tasks.append(asyncio.create_task(work))
        await eventually(lambda: queue_of(pool).waiting == len(tasks))
    queue_of(pool).release(ticket)
    await asyncio.gather(*tasks)
    assert bodies(path) == [str(n) for n in range(9)]


@pytest.mark.parametrize("when", [When.ASKED, When.ANSWERED, When.TWICE, When.ALL])
@pytest.mark.parametrize("sql", [ADD, f"{ADD} RETURNING id", "SELECT $1"])
async def test_cancelled_anywhere(
    pool: AsyncConnectionPool, path: Path, sql: str, when: When
) -> None:
    """Alone, at any suspension: it is done wholly or not at all, and those behind it go on."""
    await pool.execute(sql, "first")
    await pool.execute(sql, "second")
    n, whole = 0, False
    while not whole:
        n += 1
        whole = await cancel_at(pool.execute(sql, f"{n}"), n, when)
        await asyncio.wait_for(pool.execute(ADD, f"behind {n}"), PATIENCE)
        assert bodies(path).count(f"behind {n}") == 1


@pytest.mark.parametrize("turns", range(4))
async def test_cancelled_while_it_waits(pool: AsyncConnectionPool, path: Path, turns: int) -> None:
    """In the line, at the hand-off and behind it: the others are done, in order."""
    ticket = held_elsewhere(pool)
    tasks = await waiting(pool, 0, 1, 2, 3)
    if turns == 0:
        tasks[0].cancel()
        tasks[2].cancel()
    queue_of(pool).release(ticket)
    for _ in range(turns):
        await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[2].cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert done[1::2] == [1, 1]
    assert [each for each in bodies(path) if each in "13"] == ["1", "3"]
    for number in (0, 2):
        if str(number) not in bodies(path):
            assert isinstance(done[number], asyncio.CancelledError)


@pytest.mark.usefixtures("short_ways")
async def test_cancelled_while_a_checkpoint_holds_the_ticket(
    pool: AsyncConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is committed, and nobody writes before the checkpoint has ended."""
    began, ends = threading.Event(), threading.Event()

    def run(self: checkpoint.Checkpointer, raw: sqlite3.Connection) -> None:
        began.set()
        assert ends.wait(PATIENCE)

    monkeypatch.setattr(checkpoint.Checkpointer, "due", lambda self: checkpoint.When.HOLDING)
    monkeypatch.setattr(checkpoint.Checkpointer, "run", run)
    task = asyncio.create_task(pool.execute(ADD, "0"))
    await eventually(began.is_set)
    monkeypatch.undo()
    holder = queue_of(pool).holder
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (following,) = await waiting(pool, 1)
    assert queue_of(pool).holder is holder
    ends.set()
    assert await asyncio.wait_for(following, PATIENCE) == 1


async def test_a_failure_before_it_runs(
    pool: AsyncConnectionPool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its task is told, and those behind it are done."""
    take_now, failed = FileTurn.take_now, []

    def failing(self: FileTurn) -> bool:
        if not failed:
            failed.append(True)
            raise MemoryError
        return take_now(self)

    monkeypatch.setattr(FileTurn, "take_now", failing)
    ticket = held_elsewhere(pool)
    tasks = await waiting(pool, 0, 1, 2)
    queue_of(pool).release(ticket)
    done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE)
    assert isinstance(done[0], MemoryError)
    assert done[1:] == [1, 1]
    assert bodies(path) == ["1", "2"]


async def test_a_failure_while_it_asks(
    pool: AsyncConnectionPool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not done later, when its task has been told that it failed."""
    ticket = held_elsewhere(pool)

    def fail(self: StallWatch, waits: bool = False) -> None:
        raise MemoryError

    monkeypatch.setattr(StallWatch, "start", fail)
    with pytest.raises(MemoryError):
        await pool.execute(ADD, "0")
    monkeypatch.undo()
    assert queue_of(pool).waiting == 0
    queue_of(pool).release(ticket)
    assert await pool.execute(ADD, "1") == 1
    assert bodies(path) == ["1"]


@pytest.mark.usefixtures("short_ways")
async def test_a_connection_that_cannot_be_given_back(
    pool: AsyncConnectionPool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ticket passes on all the same, and the task is answered: it is committed."""
    end, failed = Lease.end, []

    def failing(self: Lease) -> None:
        end(self)
        if not failed:
            failed.append(True)
            raise MemoryError

    monkeypatch.setattr(Lease, "end", failing)
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    ticket = held_elsewhere(pool)
    tasks = await waiting(pool, 0, 1)
    queue_of(pool).release(ticket)
    assert await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE) == [1, 1]
    assert bodies(path) == ["0", "1"]
    assert isinstance(told[0]["exception"], MemoryError)


@pytest.mark.parametrize("sql", [LONG, f"{LONG} RETURNING id", COUNT_ENDLESSLY.text])
async def test_a_connection_after_a_cancellation(
    pool: AsyncConnectionPool, path: Path, sql: str
) -> None:
    """Its statement was broken off outside of a transaction: it is used as before."""
    async with pool.acquire() as connection:
        arguments = [1_000_000_000] if "$1" in sql else []
        task = asyncio.create_task(connection.fetch(sql, *arguments))
        await eventually(lambda: pool.engine.stats().in_use == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await connection.fetchval("SELECT 1 + $1", 1) == 2
        assert await connection.fetchval(COUNT) == 0
        assert await connection.execute(ADD, "a") == 1
        await connection.execute("CREATE TABLE others (id INTEGER)")
        async with connection.transaction():
            await connection.execute(ADD, "b")
    assert bodies(path) == ["a", "b"]


async def test_its_ticket_is_taken_away(pool: AsyncConnectionPool, path: Path) -> None:
    """Its loop has stood still with a ticket from another thread: it asks again, and is done."""
    queue, ticket = queue_of(pool), held_elsewhere(pool)
    tasks = await waiting(pool, 0, 1, 2)
    thread = threading.Thread(target=queue.release, args=(ticket,))
    thread.start()
    thread.join()
    for _ in range(2):
        assert queue.take_away(queue.holder)
    assert await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE) == [1, 1, 1]
    assert sorted(bodies(path)) == ["0", "1", "2"]


async def test_another_engine_has_the_turn(
    pool: AsyncConnectionPool, path: Path, ways: list[str]
) -> None:
    """The write waits for it, and is done then."""
    other = create_async_engine(f"sqlite+aiosqlite:///{path}")
    async with other.begin() as connection:
        await connection.execute(text("INSERT INTO notes (body) VALUES ('other')"))
        task = asyncio.create_task(pool.execute(ADD, "mine"))
        await eventually(lambda: pool.engine.pool.write_queue.turn.waits)
        assert not task.done()
    await asyncio.wait_for(task, PATIENCE)
    await other.dispose()
    assert bodies(path) == ["other", "mine"]
    assert len(ways) == 1


async def test_the_turn_does_not_come(path: Path) -> None:
    """Past queue_timeout that is an error, and the ticket is free again."""
    pool = await ready(path, queue_timeout=0.2, stall_after=30)
    other = create_async_engine(f"sqlite+aiosqlite:///{path}")
    async with other.begin() as connection:
        await connection.execute(text("INSERT INTO notes (body) VALUES ('other')"))
        with pytest.raises(QueueTimeout, match="turn to write"):
            await asyncio.create_task(pool.execute(ADD, "mine"))
    await pool.execute(ADD, "mine")
    await other.dispose()
    await pool.close()


async def test_another_engine_gets_the_turn(pool: AsyncConnectionPool, path: Path) -> None:
    """It is given back when the writes have ended."""
    await asyncio.gather(*(pool.execute(ADD, str(n)) for n in range(10)))
    turn = pool.engine.pool.write_queue.turn
    await eventually(lambda: not turn.held)


async def test_another_program_has_the_lock(pool: AsyncConnectionPool, path: Path) -> None:
    """SQLite refuses the lock: the write waits, and those behind it with it, in order."""
    outside = sqlite3.connect(path, isolation_level=None)
    outside.execute("BEGIN IMMEDIATE")
    first = asyncio.create_task(pool.execute(ADD, "0"))
    await eventually(lambda: queue_of(pool).holder is not None)
    others = await waiting(pool, 1, 2)
    assert await pool.fetchval(COUNT) == 0
    outside.execute("ROLLBACK")
    outside.close()
    assert await asyncio.gather(first, *others) == [1, 1, 1]
    assert bodies(path) == ["0", "1", "2"]


async def test_one_that_turns_out_to_be_long(
    pool: AsyncConnectionPool, path: Path, ways: list[str]
) -> None:
    """It is broken off on the loop, and done by a thread, once."""
    await pool.execute(LONG, 3_000_000)
    assert bodies(path) == ["3000000"]
    assert len(ways) == 1


async def test_an_error_is_told_and_passes_on(pool: AsyncConnectionPool, path: Path) -> None:
    """As SQLAlchemy tells it, with statement and parameters; the ticket goes on."""
    await pool.execute(ADD, "a")
    results = await asyncio.gather(
        *(pool.execute(ADD, each) for each in "bac"), return_exceptions=True
    )
    assert results[::2] == [1, 1]
    error = results[1]
    assert isinstance(error, IntegrityError)
    assert isinstance(error.orig, sqlite3.IntegrityError)
    assert error.statement == "INSERT INTO notes (body) VALUES (?)"
    assert error.params == ("a",)
    assert error.__cause__ is error.orig
    assert bodies(path) == ["a", "b", "c"]


async def test_rows_before_an_error_stay(pool: AsyncConnectionPool, path: Path) -> None:
    """OR FAIL keeps them: they are a commit, which is counted."""
    sql = "INSERT OR FAIL INTO notes (body) VALUES ($1), ('twice')"
    await pool.execute(sql, "one")
    before = pool.engine.stats().commits
    with pytest.raises(IntegrityError):
        await pool.execute(sql, "two")
    assert bodies(path) == ["one", "twice", "two"]
    assert pool.engine.stats().commits == before + 1


async def test_acknowledged_behind_a_sync_that_began_after_the_commit(path: Path) -> None:
    """Whoever commits while a sync runs waits for the next one; others see it before."""
    pool = await ready(path)
    with held_disk() as disk:
        first = asyncio.create_task(pool.execute(ADD, "1"))
        sync = await disk.begun()
        second = asyncio.create_task(pool.execute(ADD, "2"))
        await eventually(lambda: bodies(path) == ["1", "2"])
        assert not first.done()
        sync.end()
        assert await first == 1
        following = await disk.begun()
        assert not second.done()
        following.end()
        assert await second == 1
    await pool.close()


@pytest.mark.parametrize("behind", [False, True])
async def test_cancelled_while_the_disk_is_waited_for(path: Path, behind: bool) -> None:
    """It is committed, and whoever waits for the same sync is answered."""
    pool = await ready(path)
    with held_disk() as disk:
        tasks = [asyncio.create_task(pool.execute(ADD, str(n))) for n in range(3)]
        sync = await disk.begun()
        await eventually(lambda: len(bodies(path)) == 3)
        if behind:
            sync.end()
        tasks[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        sync.end()
        assert await tasks[0] == 1
        disk.open()
        assert await tasks[2] == 1
    assert bodies(path) == ["0", "1", "2"]
    await pool.close()


@pytest.mark.usefixtures("short_ways")
async def test_the_disk_fails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All whom the fsync would have covered are told; the next commit makes up for it."""
    pool = await ready(path)
    sync, fails = WalFile.sync, [True]

    def failing(self: WalFile) -> bool:
        if fails:
            raise OSError(5, "Input/output error")
        return sync(self)

    monkeypatch.setattr(WalFile, "sync", failing)
    results = await asyncio.gather(
        *(pool.execute(ADD, str(n)) for n in range(5)), return_exceptions=True
    )
    assert all(isinstance(each, DurabilityError) for each in results), results
    fails.clear()
    assert await pool.execute(ADD, "5") == 1
    assert bodies(path) == [str(n) for n in range(6)]
    await pool.close()


@pytest.mark.parametrize("due", [checkpoint.When.AFTER, checkpoint.When.HOLDING])
async def test_checkpoints(
    path: Path, monkeypatch: pytest.MonkeyPatch, due: checkpoint.When
) -> None:
    """One that is due is run by the connection, with the ticket or behind it."""
    pool = await ready(path)
    ran = []
    run = checkpoint.Checkpointer.run

    def noted(self: checkpoint.Checkpointer, raw: sqlite3.Connection) -> None:
        ran.append(queue_of(pool).holder is not None)
        run(self, raw)

    monkeypatch.setattr(checkpoint.Checkpointer, "due", lambda self: due)
    monkeypatch.setattr(checkpoint.Checkpointer, "run", noted)
    await asyncio.wait_for(pool.execute(ADD, "a"), PATIENCE)
    await eventually(lambda: pool.engine.stats().in_use == 0 and bool(ran))
    await eventually(lambda: queue_of(pool).holder is None)
    assert ran == [due is checkpoint.When.HOLDING]
    assert await asyncio.wait_for(pool.execute(ADD, "b"), PATIENCE) == 1
    await pool.close()


async def test_the_file_was_deleted(path: Path) -> None:
    """The statement says so, and the next one finds the new file."""
    pool = await ready(path)
    for each in path.parent.iterdir():
        each.unlink()
    pool.engine.pool._looked = (0.0, None)
    for sql in (ADD, "SELECT body FROM notes WHERE body = $1"):
        with pytest.raises(OperationalError):
            await pool.execute(sql, "a")
    await pool.close()


async def test_no_place_in_the_line(path: Path) -> None:
    """max_waiting and queue_timeout mean what they mean for a transaction."""
    pool = await ready(path, max_waiting=1, queue_timeout=0.1)
    ticket = held_elsewhere(pool)
    (task,) = await waiting(pool, 1)
    with pytest.raises(QueueFull, match="max_waiting=1"):
        await pool.execute(ADD, "2")
    with pytest.raises(QueueTimeout, match=r"0\.1 s"):
        await task
    queue_of(pool).release(ticket)
    assert pool.engine.stats().timeouts == 1  # QueueFull is none
    await pool.close()


async def test_draining(path: Path) -> None:
    """Those that wait are done, and nothing new is begun."""
    pool = await ready(path)
    ticket = held_elsewhere(pool)
    tasks = await waiting(pool, 1, 2)
    draining = asyncio.create_task(pool.engine.drain(PATIENCE))
    await eventually(lambda: pool.engine.pool.admission.is_shut)
    for sql in (ADD, "SELECT $1"):
        with pytest.raises(EngineDraining):
            await pool.execute(sql, "new")
    assert not draining.done()
    queue_of(pool).release(ticket)
    assert await asyncio.gather(*tasks) == [1, 1]
    await draining
    assert bodies(path) == ["1", "2"]
    await pool.close()


async def test_one_that_is_drained_in_a_greenlet(path: Path) -> None:
    """One that waited goes on in a transaction where it has to: it was let in before."""
    pool = await ready(path)
    outside = sqlite3.connect(path, isolation_level=None)
    outside.execute("BEGIN IMMEDIATE")
    ticket = held_elsewhere(pool)
    tasks = await waiting(pool, 1)
    draining = asyncio.create_task(pool.engine.drain(PATIENCE))
    await eventually(lambda: pool.engine.pool.admission.is_shut)
    queue_of(pool).release(ticket)
    for _ in range(10):
        await asyncio.sleep(0)
    outside.execute("ROLLBACK")
    outside.close()
    assert await asyncio.gather(*tasks) == [1]
    await draining
    await pool.close()


async def test_the_pool_is_terminated(path: Path) -> None:
    """A write in the line is broken off, and is not done later."""
    pool = await ready(path)
    ticket = held_elsewhere(pool)
    tasks = await waiting(pool, 1, 2)
    await pool.terminate()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert ["closed" in str(each) for each in results] == [True, True]
    queue_of(pool).release(ticket)
    assert bodies(path) == []


async def test_many_loops(path: Path) -> None:
    """Each has its own lane; they pass the ticket on to one another."""
    pool = await ready(path)

    async def write(first: int) -> None:
        await asyncio.gather(*(pool.execute(ADD, str(n)) for n in range(first, first + 50)))
        assert await pool.fetchval(COUNT) >= 50

    others = [
        asyncio.to_thread(lambda first=first: asyncio.run(write(first))) for first in (100, 200)
    ]
    await asyncio.wait_for(asyncio.gather(write(0), *others), PATIENCE)
    assert len(bodies(path)) == 150
    await pool.close()


@pytest.mark.usefixtures("short_ways")
async def test_a_loop_that_ends_leaves_the_line(pool: AsyncConnectionPool, path: Path) -> None:
    """Writes of a loop that was closed in the middle keep nobody from writing."""
    ticket = held_elsewhere(pool)
    left: list[Any] = []

    def elsewhere() -> None:
        loop = asyncio.new_event_loop()
        left.append(loop.create_task(pool.execute(ADD, "left")))
        loop.call_soon(loop.stop)
        loop.run_forever()
        loop.close()

    await asyncio.to_thread(elsewhere)
    assert queue_of(pool).waiting == 1
    (task,) = [asyncio.create_task(pool.execute(ADD, "mine"))]
    await eventually(lambda: queue_of(pool).waiting == 2)
    queue_of(pool).release(ticket)
    assert await asyncio.wait_for(task, PATIENCE) == 1
    assert bodies(path) == ["mine"]
    left[0]._log_destroy_pending = False
    left.clear()
    gc.collect()
    assert repr(pool).endswith("0 acquired>")


@pytest.mark.usefixtures("short_ways")
def test_a_loop_that_ended_in_the_same_thread(path: Path) -> None:
    """As above, where the next loop runs in the thread of the one that was closed."""
    loop = asyncio.new_event_loop()
    pool = loop.run_until_complete(ready(path))
    ticket = held_elsewhere(pool)
    left = loop.run_until_complete(waiting(pool, 0))
    loop.close()

    async def go_on() -> None:
        task = asyncio.create_task(pool.execute(ADD, "mine"))
        await eventually(lambda: queue_of(pool).waiting == 2)
        queue_of(pool).release(ticket)
        assert await asyncio.wait_for(task, PATIENCE) == 1
        left.pop()._log_destroy_pending = False  # type: ignore[attr-defined]
        gc.collect()
        await asyncio.wait_for(pool.close(), PATIENCE)

    asyncio.run(go_on())
    assert bodies(path) == ["mine"]


async def test_settings_that_are_not_simple(path: Path, ways: list[str]) -> None:
    """durability="strict" and max_hold are for a transaction to keep."""
    pool = await ready(path, durability="strict")
    ways.clear()
    await pool.execute(ADD, "a")
    assert await pool.fetchval(COUNT) == 1
    assert len(ways) == 2
    await pool.close()


@pytest.mark.usefixtures("short_ways")
async def test_durability_normal(path: Path, ways: list[str]) -> None:
    """Nobody waits for the disk, and the loop turns all the same."""
    pool = await ready(path, durability="normal")
    ways.clear()
    turned = []
    asyncio.get_running_loop().call_soon(turned.append, None)
    n = 0
    while not turned:
        n += 1
        await pool.execute(ADD, str(n))
    assert len(bodies(path)) == n
    assert ways == []
    await pool.close()


async def test_who_listens_is_told(path: Path, ways: list[str]) -> None:
    """Listeners of the engine hear of every statement, of those on a connection as well."""
    pool = await ready(path)
    heard: list[str] = []

    def listen(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        heard.append(statement)

    event.listen(pool.engine.sync_engine, "before_cursor_execute", listen)
    await pool.execute(ADD, "a")
    assert await pool.fetchval(COUNT) == 1
    async with pool.acquire() as connection:
        assert await connection.fetchval(COUNT) == 1
    event.remove(pool.engine.sync_engine, "before_cursor_execute", listen)
    assert heard == ["INSERT INTO notes (body) VALUES (?)", COUNT, COUNT]
    await pool.close()


@pytest.mark.parametrize("listens", [False, True])
async def test_executemany_of_one_set(pool: AsyncConnectionPool, path: Path, listens: bool) -> None:
    """It may be a SELECT as well, whether it goes through SQLAlchemy's connection or not."""
    if listens:
        event.listen(pool.engine.sync_engine, "before_cursor_execute", lambda *_: None)
    await pool.executemany(ADD, [])
    await pool.executemany("SELECT $1", [("a",)])
    await pool.executemany(ADD, [("a",)])
    with pytest.raises(IntegrityError) as caught:
        await pool.executemany(ADD, [("a",)])
    assert caught.value.params == ("a",)
    assert bodies(path) == ["a"]


async def test_who_listens_to_the_pool_is_told(path: Path) -> None:
    """Of each connection that is taken and given back."""
    pool = await ready(path)
    heard: list[str] = []
    event.listen(pool.engine.sync_engine.pool, "checkout", lambda *_: heard.append("out"))
    event.listen(pool.engine.sync_engine.pool, "checkin", lambda *_: heard.append("in"))
    await pool.execute(ADD, "a")
    assert await pool.fetchval(COUNT) == 1
    assert heard == ["out", "in", "out", "in"]
    await pool.close()
