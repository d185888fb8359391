"""A transaction that moves between connections: upgrade, suspension, and what gives it away."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any

import pytest
from sqlalchemy import event, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from qsession import ConflictError, create_async_engine
from qsession.sqlite import log
from qsession.sqlite.transaction.prediction import READ_ONLY_RUNS


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True)
    balance: Mapped[int] = mapped_column(default=100)


ACCOUNTS = select(Account).order_by(Account.id)


@pytest.fixture
async def engine(tmp_path):
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}", stall_after=0.01)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(engine) as session:
        session.add_all([Account(id=1), Account(id=2), Account(id=3)])
        await session.commit()
    yield engine
    await engine.dispose()
    outside = sqlite3.connect(tmp_path / "app.db", timeout=0.2, isolation_level=None)
    outside.execute("BEGIN IMMEDIATE")
    outside.close()


@pytest.fixture
async def predicted(engine):
    """The engine, with ACCOUNTS known as the beginning of transactions that only read."""
    for _ in range(READ_ONLY_RUNS):
        async with AsyncSession(engine) as session:
            await session.scalars(ACCOUNTS)
    return engine


async def balances(engine) -> dict[int, int]:
    reader = engine.execution_options(qsession_access="read")
    async with AsyncSession(reader) as session:
        return {each.id: each.balance for each in await session.scalars(ACCOUNTS)}


async def deposit(engine, account: int, amount: int) -> None:
    async with AsyncSession(engine) as session:
        change = update(Account).where(Account.id == account)
        await session.execute(change.values(balance=Account.balance + amount))
        await session.commit()


async def test_objects_loaded_before_the_upgrade_are_saved_after_it(predicted):
    """A reader that writes is replayed on the writer; its ORM objects do not notice."""
    async with AsyncSession(predicted, expire_on_commit=False) as session:
        accounts = (await session.scalars(ACCOUNTS)).all()
        assert predicted.stats().holder is None  # it began as a reader
        accounts[0].balance -= 30
        accounts[1].balance += 30
        await session.commit()
        assert accounts[0].balance == 70
    assert predicted.stats().replays == 1
    assert await balances(predicted) == {1: 70, 2: 130, 3: 100}


async def test_upgrade_after_a_change_elsewhere_in_the_file_goes_unnoticed(predicted):
    """Something was committed meanwhile, but nothing that this transaction has read."""
    async with AsyncSession(predicted) as session:
        await session.scalars(ACCOUNTS)
        async with predicted.begin() as connection:
            await connection.execute(text("CREATE TABLE other (id INTEGER)"))
        await session.execute(update(Account).where(Account.id == 1).values(balance=1))
        await session.commit()
    assert await balances(predicted) == {1: 1, 2: 100, 3: 100}


async def test_upgrade_after_a_change_of_what_was_read_is_a_conflict(predicted):
    """The error names the statement that now returns something else; nothing was written."""
    async with AsyncSession(predicted) as session:
        accounts = (await session.scalars(ACCOUNTS)).all()
        await deposit(predicted, 2, 5)
        accounts[0].balance = 0
        with pytest.raises(ConflictError, match="accounts"):
            await session.commit()
        await session.rollback()
        accounts = (await session.scalars(ACCOUNTS)).all()  # and the session is usable
        assert accounts[1].balance == 105
    assert await balances(predicted) == {1: 100, 2: 105, 3: 100}
    assert predicted.stats().conflicts == 1


async def test_minus_one_is_not_minus_two(predicted):
    """In Python hash(-1) == hash(-2); the replay tells them apart."""
    async with AsyncSession(predicted) as session:
        await session.execute(update(Account).values(balance=-1))
        await session.commit()
    async with AsyncSession(predicted) as session:
        accounts = (await session.scalars(ACCOUNTS)).all()
        if predicted.stats().holder is None:
            await deposit(predicted, 3, -1)
        accounts[0].balance = 7
        with pytest.raises(ConflictError):
            await session.commit()


@pytest.mark.parametrize("rows", [10, 1_000])
async def test_large_results_are_compared_too(engine, rows):
    """A result that is kept as a digest is told apart from one with a single other value."""
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE many (id INTEGER PRIMARY KEY, v INTEGER)"))
        values = [{"id": n, "v": n} for n in range(rows)]
        await connection.execute(text("INSERT INTO many VALUES (:id, :v)"), values)
    reader = engine.execution_options(qsession_access="auto")
    for changed in (False, True):
        async with reader.connect() as connection:
            await asyncio.wait_for(_read_as_reader(engine, connection), 5)
            async with engine.begin() as other:
                change = f"UPDATE many SET v = v + {int(changed)} WHERE id = {rows - 1}"
                await other.execute(text(change))
            write = connection.execute(text("UPDATE many SET v = 0 WHERE id = 0"))
            if changed:
                with pytest.raises(ConflictError):
                    await write
            else:
                await write
                await connection.commit()


async def _read_as_reader(engine, connection) -> Any:
    """Read beside a holder that has written and stalls, so on a snapshot."""
    async with engine.connect() as holder:
        await holder.execute(text("UPDATE accounts SET balance = balance WHERE id = 3"))
        rows = (await connection.execute(text("SELECT * FROM many"))).all()
        await holder.rollback()
    return rows


async def test_stalled_reader_gives_up_the_ticket_and_goes_on(engine):
    """A session that has only read and waits for something else holds nobody up."""
    async with AsyncSession(engine) as session:
        account = await session.get(Account, 1)
        assert engine.stats().holder is not None
        other = asyncio.create_task(deposit(engine, 2, 1))
        await other  # in another task: it gets the ticket after stall_after
        account.balance += 1
        await session.commit()
    assert await balances(engine) == {1: 101, 2: 101, 3: 100}
    assert engine.stats().suspensions == 1


async def test_stalled_reader_whose_rows_were_changed_conflicts(engine):
    """What it had read was changed while it was suspended."""
    async with AsyncSession(engine) as session:
        account = await session.get(Account, 1)
        await asyncio.create_task(deposit(engine, 1, 50))
        account.balance += 1
        with pytest.raises(ConflictError):
            await session.commit()
        await session.rollback()
    assert (await balances(engine))[1] == 150


async def test_for_update_is_never_suspended(engine):
    """SELECT ... FOR UPDATE keeps the ticket however long it idles; the other one waits."""
    async with AsyncSession(engine) as session:
        account = await session.get(Account, 1, with_for_update=True)
        other = asyncio.create_task(deposit(engine, 1, 50))
        watch = engine.pool.writer.watch
        while not watch.stalled():
            await asyncio.sleep(0)
        assert not other.done()
        account.balance += 1
        await session.commit()
        await other
    assert (await balances(engine))[1] == 151


async def test_savepoints_are_replayed(engine):
    """A suspended transaction finds its savepoints again, and can roll back to them."""
    async with AsyncSession(engine) as session, session.begin():
        outer = await session.get(Account, 1)
        nested = await session.begin_nested()
        await session.get(Account, 2)
        await asyncio.create_task(deposit(engine, 3, 1))
        (await session.get(Account, 2)).balance = 0
        await session.flush()
        await nested.rollback()
        outer.balance = 1
    assert await balances(engine) == {1: 1, 2: 100, 3: 101}
    assert engine.stats().replays == 1


async def test_savepoint_before_anything_else(engine):
    """begin_nested() as the first thing is sent with the first statement."""
    async with AsyncSession(engine) as session:
        async with session.begin_nested():
            session.add(Account(id=4))
        with pytest.raises(KeyError):
            async with session.begin_nested():
                session.add(Account(id=5))
                await session.flush()
                raise KeyError
        await session.commit()
    assert set(await balances(engine)) == {1, 2, 3, 4}


@pytest.mark.parametrize("changed", [False, True])
async def test_log_past_its_limit_is_compared_by_version(predicted, monkeypatch, changed):
    """Without a log an upgrade goes on only if nothing at all was committed."""
    monkeypatch.setattr(log, "MAX_STATEMENTS", 3)
    async with AsyncSession(predicted) as session:
        for _ in range(6):
            await session.scalars(ACCOUNTS)
        if changed:
            async with predicted.begin() as connection:
                await connection.execute(text("CREATE TABLE other (id INTEGER)"))
        write = session.execute(update(Account).where(Account.id == 1).values(balance=1))
        if changed:
            with pytest.raises(ConflictError, match="limits"):
                await write
        else:
            await write
            await session.commit()
    assert (await balances(predicted))[1] == (100 if changed else 1)


async def test_replay_does_not_show_in_the_application_s_events(predicted):
    """Listeners see each statement of the application once, and none of ours."""
    seen: list[str] = []

    @event.listens_for(predicted.sync_engine, "before_cursor_execute")
    def note(connection, cursor, statement, parameters, context, executemany):
        seen.append(statement.split()[0])

    async with AsyncSession(predicted) as session:
        accounts = (await session.scalars(ACCOUNTS)).all()
        accounts[0].balance = 0
        await session.commit()
    assert seen == ["SELECT", "UPDATE"]


async def test_a_failed_transaction_is_rolled_back_through_its_savepoints(engine):
    """After a conflict inside of savepoints one rollback() is enough, and masks nothing."""
    async with AsyncSession(engine) as session:
        await session.get(Account, 1)
        await session.begin_nested()
        await session.begin_nested()
        await asyncio.create_task(deposit(engine, 1, 50))
        with pytest.raises(ConflictError):
            await session.execute(update(Account).where(Account.id == 1).values(balance=0))
        await session.rollback()
        assert (await session.get(Account, 1)).balance == 150


async def test_the_end_of_a_stream_is_part_of_what_was_seen(predicted):
    """A row that appears behind those that a stream has returned is a conflict, too."""
    async with predicted.connect() as connection:
        stream = await connection.stream(ACCOUNTS)
        assert len(await stream.all()) == 3
        async with AsyncSession(predicted) as other:
            other.add(Account(id=9))
            await other.commit()
        with pytest.raises(ConflictError):
            await connection.execute(update(Account).where(Account.id == 1).values(balance=0))
