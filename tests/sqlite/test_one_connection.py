"""Several tasks on one connection: what one of them is told is so, whatever another one ends."""

from __future__ import annotations

import asyncio
import threading

import pytest
from cancelling import ENDLESS, PATIENCE, READ, Bench, eventually, rows, until_it_paces
from sqlalchemy import event, text

from qsession import QSessionError
from qsession.sqlite import cursor as cursors
from qsession.sqlite.durability.checkpoint import Checkpointer, When
from qsession.sqlite.transaction import sending
from qsession.sqlite.transaction.runner import Runner

INSERT = text("INSERT INTO items (value) VALUES (77)")
INSERTED = "SELECT count(*) FROM items WHERE value = 77"


class Held:
    """Stands in for a function, which goes on at its end only when it is let go. In a thread."""

    def __init__(self, function):
        self.function = function
        self.done, self.let_go = threading.Event(), threading.Event()

    def __call__(self, *args):
        found = self.function(*args)
        self.done.set()
        assert self.let_go.wait(PATIENCE)
        return found


async def cancelled_behind(connection):
    """Cancel a statement that waits behind another one: SQLAlchemy gives the connection up."""
    behind = asyncio.create_task(connection.execute(READ))
    await asyncio.sleep(0)
    behind.cancel()
    await asyncio.wait([behind])


async def ended_when_run(connection, statement, ending, monkeypatch):
    """The task of a statement that SQLite has run, and whose transaction another task has ended.

    It waits for a later turn of the loop meanwhile.
    """
    task, later = await until_it_paces(connection.execute(statement), monkeypatch)
    if ending == "cancelled":
        await cancelled_behind(connection)
    else:
        await connection.rollback()
    later.set_result(None)
    return task


@pytest.mark.parametrize("ending", ["rolled back", "cancelled"])
async def test_a_statement_that_is_its_own_transaction(tmp_path, monkeypatch, ending):
    """SQLite has committed it: it is told that it was run."""
    bench = await Bench.ready(tmp_path / "app.db", inline=False)
    async with bench.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        task = await ended_when_run(connection, INSERT, ending, monkeypatch)
        assert (await task).rowcount == 1
    assert rows(bench.path, INSERTED) == [(1,)]
    await bench.check()
    await bench.engine.dispose()


@pytest.mark.parametrize("ending", ["rolled back", "cancelled"])
@pytest.mark.parametrize("earlier", ["", "PRAGMA cache_size=-500"], ids=["first", "second"])
async def test_a_setting_that_is_told_as_not_run(tmp_path, monkeypatch, ending, earlier):
    """The next user of the pool does not have it."""
    bench = await Bench.ready(tmp_path / "app.db", inline=False)
    async with bench.engine.connect() as connection:
        if earlier:
            await connection.execute(text(earlier))
        sets = text("PRAGMA recursive_triggers=ON")
        task = await ended_when_run(connection, sets, ending, monkeypatch)
        with pytest.raises(QSessionError, match="another task ended"):
            await task
    async with bench.engine.connect() as connection:
        assert (await connection.execute(text("PRAGMA recursive_triggers"))).scalar() == 0
    await bench.check()
    await bench.engine.dispose()


async def test_a_statement_behind_a_commit(tmp_path, monkeypatch):
    """It waits for the checkpoint of that commit, and is not committed by itself."""
    bench = await Bench.ready(tmp_path / "app.db")
    held = Held(lambda raw: None)
    async with bench.engine.connect() as connection:
        await connection.execute(text("UPDATE items SET value = 1"))
        with monkeypatch.context() as patch:
            patch.setattr(Checkpointer, "due", lambda checkpointer: When.HOLDING)
            patch.setattr(Checkpointer, "run", lambda checkpointer, raw: held(raw))
            commit = asyncio.create_task(connection.commit())
            await eventually(held.done.is_set)
            behind = asyncio.create_task(connection.execute(INSERT))
            await asyncio.sleep(0)
            held.let_go.set()
            await commit
        await behind
        await connection.close()
    assert rows(bench.path, INSERTED) == [(0,)]
    await bench.check()
    await bench.engine.dispose()


async def test_a_wait_for_the_ticket_after_its_transaction_has_ended(tmp_path, monkeypatch):
    """It has read its stream to the end, and ends no snapshot: another one has its connection."""
    bench = await Bench.ready(tmp_path / "app.db")
    bench.learn()
    pool, held = bench.engine.pool, Held(cursors.fetch)
    snapshots = bench.engine.execution_options(qsession_reads="snapshot")
    async with (
        bench.engine.connect() as writer,
        snapshots.connect() as connection,
        snapshots.connect() as other,
    ):
        await other.execute(READ)  # from now on it is known to be short
        await other.rollback()
        await writer.execute(INSERT)
        stream = await connection.stream(READ, execution_options={"yield_per": 1})
        await stream.fetchone()
        monkeypatch.setattr(cursors, "fetch", held)
        late = asyncio.create_task(connection.execute(INSERT))
        await eventually(held.done.is_set)
        await cancelled_behind(connection)
        monkeypatch.setattr(Runner, "pace", lambda runner, holder: False)
        held.let_go.set()
        while not pool._pool.qsize():
            pass  # the loop does not turn, so the task is not told before
        seen = (await other.execute(READ)).all()
        assert not late.done()
        await writer.commit()
        with pytest.raises(QSessionError, match="another task ended"):
            await late
        again = (await other.execute(READ)).all()
        assert again == seen
    await bench.check()
    await bench.engine.dispose()


async def test_a_stream_of_a_transaction_that_is_being_rolled_back(tmp_path, monkeypatch):
    """It is refused, rather than handed out with a cursor that is about to be closed."""
    bench = await Bench.ready(tmp_path / "app.db")
    held = Held(sending.execute)
    monkeypatch.setattr(sending, "execute", held)

    async def read(connection):
        await connection.stream(READ)

    async with bench.engine.connect() as connection:
        reading = asyncio.create_task(read(connection))
        await eventually(held.done.is_set)
        rollback = asyncio.create_task(connection.rollback())
        await asyncio.sleep(0)
        held.let_go.set()
        await rollback
        with pytest.raises(QSessionError, match="another task ended"):
            await reading
    await bench.check()
    await bench.engine.dispose()


async def test_a_statement_that_is_its_own_transaction_and_is_broken_off(tmp_path):
    """Another task's cancellation gives the connection up: it is told as one that was not run."""
    bench, began = Bench(tmp_path / "app.db", inline=False), threading.Event()

    @event.listens_for(bench.engine.sync_engine, "connect")
    def connect(connection, _record):
        connection.create_function("began", 0, began.set)

    async with bench.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("CREATE TABLE numbers (i)"))
        endless = text(f"INSERT INTO numbers SELECT began() FROM ({ENDLESS.text})")
        task = asyncio.create_task(connection.execute(endless))
        await eventually(began.is_set)
        await cancelled_behind(connection)
        with pytest.raises(QSessionError, match="another task ended"):
            await task
    await bench.check()
    assert rows(bench.path, "SELECT count(*) FROM numbers") == [(0,)]
    await bench.engine.dispose()


async def test_a_cleanup_that_fails_before_a_setting(tmp_path):
    """Its connection is closed, although the setting itself succeeds and is set back."""
    bench = await Bench.ready(tmp_path / "app.db", inline=False)

    def fails(raw):
        raise OSError("of the cleanup")

    async with bench.engine.connect() as connection:
        await connection.execute(text("PRAGMA cache_size=-500"))
        (lease,) = bench.engine.pool._leases
        lease.driver.post(fails)
        await connection.execute(text("PRAGMA cache_size=-600"))
        assert lease.driver.suspect
    await eventually(lambda: not lease.driver.is_open)
    await bench.check()
    await bench.engine.dispose()
