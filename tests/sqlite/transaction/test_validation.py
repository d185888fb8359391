"""What a transaction has read is looked at again before its first write, in every mode."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import Any

import pytest
from cancelling import Bench, assert_free, eventually, rows
from sqlalchemy import event, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from qsession import ConflictError
from qsession.sqlite.queue.prediction import Guess
from qsession.sqlite.transaction import log, plan, sending

NEVER = 3600.0


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True)
    balance: Mapped[int] = mapped_column(default=100)


ACCOUNTS = select(Account).order_by(Account.id)
BALANCES = "SELECT id, balance FROM accounts ORDER BY id"

MODES: dict[str, dict[str, Any]] = {
    "auto": {},
    "snapshot": {"qsession_reads": "snapshot"},
    "write": {"qsession_access": "write"},
}


@pytest.fixture(params=MODES)
async def engine(request, tmp_path):
    """An engine in each mode, on three accounts; what it has not read it may not depend on."""
    bench = await Bench.ready(tmp_path / "app.db", stall_after=0.01, pool_size=3)
    async with bench.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(bench.engine) as session:
        session.add_all([Account(id=1), Account(id=2), Account(id=3)])
        await session.commit()
    yield bench.engine.execution_options(**MODES[request.param])
    await bench.check()
    await bench.engine.dispose()
    assert_free(bench.path)


@pytest.fixture(params=[Guess.READS, Guess.VALIDATES])
async def predicted(request, engine):
    """The engine, whose call sites are known: their transactions begin without the ticket."""
    engine.pool.write_queue.prediction.guess = lambda site: request.param
    return engine


async def balances(engine) -> dict[int, int]:
    reader = engine.execution_options(qsession_access="read")
    async with AsyncSession(reader) as session:
        return {each.id: each.balance for each in await session.scalars(ACCOUNTS)}


def adding(account: int, amount: int) -> Any:
    change = update(Account).where(Account.id == account)
    return change.values(balance=Account.balance + amount)


async def deposit(engine, account: int, amount: int) -> None:
    """In a task of its own, as another request would."""

    async def write() -> None:
        async with AsyncSession(engine) as session:
            await session.execute(adding(account, amount))
            await session.commit()

    await asyncio.create_task(write())


async def test_objects_loaded_before_the_first_write_are_saved_with_it(predicted):
    """ORM objects do not notice how their transaction came by the lock."""
    async with AsyncSession(predicted, expire_on_commit=False) as session:
        accounts = (await session.scalars(ACCOUNTS)).all()
        accounts[0].balance -= 30
        accounts[1].balance += 30
        await session.commit()
        assert accounts[0].balance == 70
    assert await balances(predicted) == {1: 70, 2: 130, 3: 100}


async def test_a_change_elsewhere_in_the_file_goes_unnoticed(predicted):
    """Something was committed meanwhile, but nothing that this transaction has read."""
    async with AsyncSession(predicted) as session:
        await session.scalars(ACCOUNTS)
        async with predicted.begin() as connection:
            await connection.execute(text("CREATE TABLE other (id INTEGER)"))
        await session.execute(update(Account).where(Account.id == 1).values(balance=1))
        await session.commit()
    assert await balances(predicted) == {1: 1, 2: 100, 3: 100}
    assert predicted.stats().validations == 1


async def test_a_change_of_what_was_read_is_a_conflict(predicted):
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


async def test_nothing_is_read_again_if_nothing_was_committed(engine):
    """PRAGMA data_version of the same connection tells."""
    engine.pool.write_queue.prediction.guess = lambda site: Guess.VALIDATES
    async with AsyncSession(engine) as session:
        await session.scalars(ACCOUNTS)
        await session.execute(update(Account).values(balance=1))
        await session.commit()
    assert engine.stats().validations == 0


async def test_minus_one_is_not_minus_two(predicted):
    """In Python hash(-1) == hash(-2); a digest tells them apart."""
    async with AsyncSession(predicted) as session:
        await session.execute(update(Account).values(balance=-1))
        await session.commit()
    async with AsyncSession(predicted) as session:
        accounts = (await session.scalars(ACCOUNTS)).all()
        await deposit(predicted, 3, -1)
        accounts[0].balance = 7
        with pytest.raises(ConflictError):
            await session.commit()


@pytest.mark.parametrize("number", [10, 1_000])
async def test_large_results_are_compared_too(predicted, number):
    """A result that is kept as a digest is told apart from one with a single other value."""
    async with predicted.begin() as connection:
        await connection.execute(text("CREATE TABLE many (id INTEGER PRIMARY KEY, v INTEGER)"))
        values = [{"id": n, "v": n} for n in range(number)]
        await connection.execute(text("INSERT INTO many VALUES (:id, :v)"), values)
    for changed in (False, True):
        async with predicted.connect() as connection:
            assert len((await connection.execute(text("SELECT * FROM many"))).all()) == number
            async with predicted.begin() as other:
                change = f"UPDATE many SET v = v + {int(changed)} WHERE id = {number - 1}"
                await other.execute(text(change))
            write = connection.execute(text("UPDATE many SET v = 0 WHERE id = 0"))
            if changed:
                with pytest.raises(ConflictError):
                    await write
            else:
                await write
                await connection.commit()


async def test_one_that_idles_gives_up_the_ticket_and_goes_on(engine):
    """A session that has only read and waits for something else holds nobody up."""
    async with AsyncSession(engine) as session:
        account = await session.get(Account, 1)
        assert engine.stats().holder is not None
        await deposit(engine, 2, 1)
        account.balance += 1
        await session.commit()
    assert await balances(engine) == {1: 101, 2: 101, 3: 100}
    assert engine.stats().taken_away == 1
    assert engine.stats().validations == 1


async def test_one_that_idles_while_its_rows_are_changed_conflicts(engine):
    """It had lost the ticket, and what it had read is no longer there."""
    async with AsyncSession(engine) as session:
        account = await session.get(Account, 1)
        await deposit(engine, 1, 50)
        account.balance += 1
        with pytest.raises(ConflictError):
            await session.commit()
        await session.rollback()
    assert (await balances(engine))[1] == 150


async def test_for_update_keeps_the_ticket(engine):
    """However long it idles; the other one waits, and so there is nothing to validate."""
    async with AsyncSession(engine) as session:
        account = await session.get(Account, 1, with_for_update=True)
        other = asyncio.create_task(deposit(engine, 1, 50))
        await eventually(lambda: engine.stats().waiting == 1)
        (watch,) = engine.pool.write_queue.watch._watches.values()
        await eventually(lambda: watch._idle_ticks > 5)
        assert not other.done()
        account.balance += 1
        await session.commit()
        await other
    assert (await balances(engine))[1] == 151
    assert engine.stats().validations == engine.stats().taken_away == 0


async def test_savepoints_before_the_first_write(engine):
    """They are there at the first write, and can be rolled back to."""
    async with AsyncSession(engine) as session, session.begin():
        outer = await session.get(Account, 1)
        nested = await session.begin_nested()
        await session.get(Account, 2)
        await deposit(engine, 3, 1)
        (await session.get(Account, 2)).balance = 0
        await session.flush()
        await nested.rollback()
        outer.balance = 1
    assert await balances(engine) == {1: 1, 2: 100, 3: 101}
    assert engine.stats().validations == 1


async def test_a_savepoint_before_anything_else(engine):
    """begin_nested() as the first thing is sent with the first statement that writes."""
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


async def test_what_was_read_in_a_savepoint_counts_past_its_end(predicted):
    """Rolling it back does not undo what the application has seen."""
    async with AsyncSession(predicted) as session:
        async with session.begin_nested() as savepoint:
            await session.scalars(ACCOUNTS)
            await savepoint.rollback()
        await deposit(predicted, 2, 5)
        with pytest.raises(ConflictError):
            await session.execute(update(Account).where(Account.id == 1).values(balance=0))


@pytest.mark.parametrize("changed", [False, True])
async def test_a_log_past_its_limit_is_compared_by_version(engine, monkeypatch, changed):
    """Without a log it goes on only if nothing at all was committed."""
    engine.pool.write_queue.prediction.guess = lambda site: Guess.VALIDATES
    monkeypatch.setattr(log, "MAX_STATEMENTS", 3)
    async with AsyncSession(engine) as session:
        for number in range(1, 6):
            await session.scalars(ACCOUNTS.limit(number))
        if changed:
            async with engine.begin() as connection:
                await connection.execute(text("CREATE TABLE other (id INTEGER)"))
        write = session.execute(update(Account).where(Account.id == 1).values(balance=1))
        if changed:
            with pytest.raises(ConflictError, match="too much to compare"):
                await write
        else:
            await write
            await session.commit()
    assert (await balances(engine))[1] == (100 if changed else 1)


async def test_validation_does_not_show_in_the_application_s_events(predicted):
    """Listeners see each statement of the application once, and none of ours."""
    seen: list[str] = []

    @event.listens_for(predicted.sync_engine, "before_cursor_execute")
    def note(connection, cursor, statement, parameters, context, executemany):
        seen.append(statement.split()[0])

    async with AsyncSession(predicted) as session:
        accounts = (await session.scalars(ACCOUNTS)).all()
        async with predicted.begin() as connection:
            await connection.execute(text("CREATE TABLE other (id INTEGER)"))
        seen.clear()
        accounts[0].balance = 0
        await session.commit()
    event.remove(predicted.sync_engine, "before_cursor_execute", note)
    assert seen == ["UPDATE"]
    assert predicted.stats().validations == 1


async def test_a_failed_transaction_is_rolled_back_through_its_savepoints(engine):
    """After a conflict inside of savepoints one rollback() is enough, and masks nothing."""
    async with AsyncSession(engine) as session:
        await session.get(Account, 1)
        await session.begin_nested()
        await session.begin_nested()
        await deposit(engine, 1, 50)
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


@pytest.mark.parametrize("logged", [True, False], ids=["logged", "outgrown"])
async def test_a_stream_that_is_open_at_the_first_write(predicted, monkeypatch, logged):
    """What is still to be fetched has to be as new as what the write goes on top of."""
    if not logged:
        monkeypatch.setattr(log, "MAX_STATEMENTS", 0)
    async with predicted.connect() as connection:
        result = await connection.stream(ACCOUNTS)
        first = await result.fetchone()
        await deposit(predicted, 3, 5)
        with pytest.raises(ConflictError):
            await connection.execute(update(Account).values(balance=first.balance + 1))
    assert await balances(predicted) == {1: 100, 2: 100, 3: 105}


async def test_a_stream_goes_on_behind_the_first_write(predicted):
    """It is read to its end before, where nobody else has written."""
    async with predicted.connect() as connection:
        seen = []
        async for id_, balance in await connection.stream(ACCOUNTS):
            seen.append(id_)
            change = update(Account).where(Account.id == id_).values(balance=balance + 1)
            await connection.execute(change)
        await connection.commit()
    assert seen == [1, 2, 3]
    assert await balances(predicted) == {1: 101, 2: 101, 3: 101}


async def trigger(engine, name: str, when: str, message: str) -> None:
    async with engine.begin() as connection:
        await connection.exec_driver_sql(
            f"CREATE TRIGGER {name} BEFORE UPDATE ON accounts WHEN {when} "
            f"BEGIN SELECT RAISE(ABORT, '{message}'); END"
        )


@pytest.mark.parametrize("sql", ["SELECT * FROM other", "ALTER TABLE other ADD COLUMN x"])
async def test_an_error_is_an_observation_too(predicted, sql):
    """What failed before the first write must fail again; no table is one, then it is there."""
    async with predicted.connect() as connection:
        with pytest.raises(Exception, match="no such table: other"):
            await connection.execute(text(sql))
        async with predicted.begin() as another:
            await another.execute(text("CREATE TABLE other (id INTEGER)"))
        with pytest.raises(ConflictError, match="other"):
            await connection.execute(update(Account).values(balance=0))
        await connection.rollback()
    assert await balances(predicted) == {1: 100, 2: 100, 3: 100}


async def test_a_table_that_is_made_when_it_is_missed(predicted):
    """By the same transaction: the first attempt fails again, and it goes on."""
    async with predicted.connect() as connection:
        with pytest.raises(Exception, match="no such table: other"):
            await connection.execute(text("INSERT INTO other VALUES (1)"))
        await deposit(predicted, 3, 1)
        await connection.execute(text("CREATE TABLE other (id INTEGER)"))
        await connection.execute(text("INSERT INTO other VALUES (1)"))
        await connection.commit()
        assert await connection.scalar(text("SELECT count(*) FROM other")) == 1


async def test_an_error_of_python_s_is_an_observation_too(predicted):
    """A number that SQLite cannot hold is refused again, and the transaction goes on."""
    async with predicted.connect() as connection:
        with pytest.raises(OverflowError):
            await connection.execute(text("SELECT :big"), {"big": 2**70})
        await deposit(predicted, 3, 1)
        await connection.execute(update(Account).where(Account.id == 1).values(balance=0))
        await connection.commit()
    assert await balances(predicted) == {1: 0, 2: 100, 3: 101}


@pytest.mark.parametrize("engine", ["auto", "snapshot"], indirect=True)
async def test_an_interrupted_validation_is_no_conflict(engine, monkeypatch):
    """Its time on the loop is over at once: the validation is made again in the thread."""
    interrupted = []

    def same_again(raw, entry):
        try:
            return sending_same_again(raw, entry)
        except sqlite3.OperationalError as error:
            interrupted.append(str(error))
            raise

    sending_same_again = sending.same_again
    count = text(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 30000) "
        "SELECT count(*) FROM n, accounts"
    )
    for _ in range(10):
        await deposit(engine, 1, 1)  # so that it is known to be short
    engine.pool.write_queue.prediction.guess = lambda site: Guess.VALIDATES
    async with engine.connect() as connection:
        await connection.execute(count)
        await deposit(engine, 3, 1)
        with monkeypatch.context() as patch:
            patch.setattr(plan, "LONG_WRITE", 1e-9)
            patch.setattr(sending, "same_again", same_again)
            await connection.execute(adding(2, 5))
        await connection.commit()
    assert interrupted == ["interrupted"]
    assert await balances(engine) == {1: 110, 2: 105, 3: 101}


async def test_a_first_write_that_fails_has_validated(predicted):
    """What was read cannot change any more: behind it, the transaction goes on with the lock."""
    await trigger(predicted, "poor", "new.balance < 0", "not enough money")
    async with predicted.connect() as connection:
        await connection.execute(ACCOUNTS)
        with pytest.raises(IntegrityError, match="not enough money"):
            await connection.execute(update(Account).values(balance=-1))
        assert predicted.stats().holder is not None
        await connection.execute(update(Account).values(balance=7))
        await connection.commit()
    assert await balances(predicted) == {1: 7, 2: 7, 3: 7}


async def test_what_user_version_said_is_looked_at_again(predicted):
    """It is in the file, so it belongs to what a transaction has read."""
    version = text("PRAGMA user_version")
    async with predicted.connect() as one:
        assert await one.scalar(version) == 0
        async with predicted.connect() as other:
            await other.execute(text("PRAGMA user_version = 1"))
            await other.commit()
        with pytest.raises(ConflictError, match="user_version"):
            await one.execute(update(Account).values(balance=0))


class Masked:
    """It has no equality, and its repr() does not tell its value."""

    def __init__(self, text_):
        self.secret = int(text_)

    def __repr__(self):
        return "Masked('****')"


def mask(connection, _):
    connection.raw.text_factory = lambda data: Masked(data) if data.isdigit() else data.decode()


@pytest.mark.parametrize("number", [3, 70])
async def test_a_converter_whose_values_look_alike(predicted, number):
    """A transaction whose rows were changed is told, though they have neither equality nor repr."""
    await predicted.dispose()
    event.listen(predicted.sync_engine, "connect", mask)
    async with AsyncSession(predicted) as session:
        session.add_all([Account(id=n) for n in range(4, number + 1)])
        await session.commit()
    balance = text("SELECT CAST(balance AS TEXT) FROM accounts ORDER BY id")
    async with predicted.connect() as connection:
        found = (await connection.scalars(balance)).all()
        await deposit(predicted, 1, 1)
        with pytest.raises(ConflictError):
            await connection.execute(update(Account).values(balance=found[0].secret))
    event.remove(predicted.sync_engine, "connect", mask)
    await predicted.dispose()


async def test_a_reader_keeps_no_log(engine):
    """It never writes, so what it has read need not be remembered."""
    async with engine.execution_options(qsession_access="read").connect() as connection:
        await connection.execute(text("SELECT zeroblob(1000000)"))
        with pytest.raises(Exception, match="no such column"):
            await connection.execute(text("SELECT nothing_of_it"))
        routed = (await connection.get_raw_connection()).dbapi_connection
        assert routed.transaction.work.log.is_empty


async def test_a_refused_write_of_a_reader_leaves_its_snapshot(engine):
    """ReadOnlyError undoes nothing of what was read."""
    async with engine.execution_options(qsession_access="read").connect() as connection:
        before = (await connection.execute(text(BALANCES))).all()
        with pytest.raises(Exception, match="access='read' cannot write"):
            await connection.execute(text("WITH x AS (SELECT 1) DELETE FROM accounts"))
        await deposit(engine, 1, 1)
        assert (await connection.execute(text(BALANCES))).all() == before
    assert rows(engine.pool.write_queue.path, BALANCES)[0] == (1, 101)


async def test_a_change_of_an_attached_file_is_a_conflict(engine, tmp_path):
    """PRAGMA data_version tells of the main file only; the others are read again."""
    with closing(sqlite3.connect(tmp_path / "far.db", isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode=WAL")
        other.execute("CREATE TABLE stock (n)")
        other.execute("INSERT INTO stock VALUES (10)")
        async with engine.connect() as connection:
            await connection.execute(text(f"ATTACH '{tmp_path / 'far.db'}' AS far"))
            await connection.commit()
            left = await connection.scalar(text("SELECT n FROM far.stock"))
            other.execute("UPDATE stock SET n = n + 100")
            with pytest.raises(ConflictError):
                await connection.execute(text("UPDATE far.stock SET n = :n"), {"n": left + 1})
            await connection.rollback()
        assert other.execute("SELECT n FROM stock").fetchall() == [(110,)]


async def test_a_copy_of_the_file_is_not_made_again(engine, tmp_path):
    """VACUUM INTO has shown the transaction nothing; it runs once, outside of one."""
    copy = tmp_path / "copy.db"
    async with engine.connect() as connection:
        await connection.execute(text(f"VACUUM INTO '{copy}'"))
        copy.unlink()
        await deposit(engine, 2, 5)
        await connection.execute(update(Account).where(Account.id == 1).values(balance=1))
        await connection.commit()
    assert not copy.exists()
    assert await balances(engine) == {1: 1, 2: 105, 3: 100}
