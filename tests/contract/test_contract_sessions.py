"""What qsession() and reader() promise, the same on every database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from contract_tables import Counter, Database, Note, Statements
from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.exc import ArgumentError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from qsession import QSession, QueuedAsyncEngine, ReadOnlyError, UncommittedChangesWarning
from qsession.session.maker import SessionMaker


async def test_a_commit_is_seen_by_others(maker: SessionMaker, database: Database) -> None:
    """What a block commits is there; what a block that fails had written is not."""
    async with maker.begin() as s:
        s.add(Note(body="kept"))
    with pytest.raises(ZeroDivisionError):
        async with maker.begin() as s:
            s.add(Note(body="gone"))
            await s.flush()
            raise ZeroDivisionError
    assert await database.notes() == ["kept"]


async def test_an_error_of_a_constraint_stays_what_it_is(maker: SessionMaker) -> None:
    """A row that is there already is SQLAlchemy's IntegrityError, and the session goes on."""
    async with maker() as s:
        s.add(Counter(id=1))
        with pytest.raises(IntegrityError):
            await s.flush()
        await s.rollback()
        assert await s.scalar(select(Counter.value).where(Counter.id == 1)) == 0


async def test_savepoints(maker: SessionMaker, database: Database) -> None:
    """A savepoint that is rolled back takes only its own work along."""
    async with maker.begin() as s:
        s.add(Note(body="before"))
        with pytest.raises(ZeroDivisionError):
            async with s.begin_nested():
                s.add(Note(body="inside"))
                await s.flush()
                raise ZeroDivisionError
        s.add(Note(body="after"))
    assert await database.notes() == ["before", "after"]


async def test_tasks_share_a_session(maker: SessionMaker) -> None:
    """Operations begun at once on one session queue up, and give their own results."""
    async with maker() as s:
        found = await asyncio.gather(
            s.scalar(select(Counter.id).where(Counter.id == 2)),
            s.get(Counter, 1),
            s.execute(select(Counter)),
        )
    assert found[0] == 2
    assert found[1] is not None
    assert found[1].id == 1
    assert len(found[2].all()) == 2


async def test_a_block_that_loses_changes_warns(maker: SessionMaker) -> None:
    """A clean end without a commit says what is lost."""
    with pytest.warns(UncommittedChangesWarning, match="insert on notes"):
        async with maker() as s:
            await s.execute(insert(Note).values(body="lost"))


async def test_transactional_commits(maker: SessionMaker, database: Database) -> None:
    """The decorated function runs in a transaction of its own."""

    @maker.transactional
    async def rename(s: QSession, value: int) -> None:
        (await s.get_one(Counter, 1)).value = value

    await rename(7)
    assert await database.values() == [7, 0]


async def test_a_reader_sees_one_snapshot(maker: SessionMaker, database: Database) -> None:
    """What others commit while a reader is open is not seen by it, and it makes nobody wait."""
    values = select(Counter.value).order_by(Counter.id)
    async with maker.reader() as reader:
        assert list(await reader.scalars(values)) == [0, 0]
        async with maker.begin() as s:
            await s.execute(update(Counter).values(value=5))
        assert list(await reader.scalars(values)) == [0, 0]
    assert await database.values() == [5, 5]


async def test_a_reader_does_not_wait_for_a_writer(maker: SessionMaker) -> None:
    """While rows are changed and not yet committed, a reader sees what was there before."""
    async with maker() as s:
        await s.execute(update(Counter).values(value=5))
        async with maker.reader() as reader:
            assert await reader.scalar(select(Counter.value).where(Counter.id == 1)) == 0
        await s.rollback()


@pytest.mark.parametrize("write", ["orm", "core", "text", "delete"])
async def test_a_reader_cannot_write(maker: SessionMaker, database: Database, write: str) -> None:
    """A write in a reader is a ReadOnlyError, whatever it is written in; the session goes on."""
    async with maker.reader() as s:
        assert await s.get(Counter, 1) is not None
        with pytest.raises(ReadOnlyError) as caught:
            if write == "orm":
                s.add(Note(body="x"))
                await s.flush()
            elif write == "core":
                await s.execute(insert(Note).values(body="x"))
            elif write == "delete":
                await s.execute(delete(Counter))
            else:
                await s.execute(text("UPDATE counters SET value = 9"))
        assert database.is_sqlite or caught.value.__cause__ is not None
        await s.rollback()
        assert await s.scalar(select(Counter.value).where(Counter.id == 1)) == 0
    async with maker.begin() as s:  # nor is the connection read-only for the next one
        s.add(Note(body="y"))
    assert await database.notes() == ["y"]


async def test_plain_sessions_write_after_readers(
    engine: QueuedAsyncEngine, maker: SessionMaker, database: Database
) -> None:
    """What a reader set on a connection is gone when a plain session gets it."""
    async with maker.reader() as s:
        await s.get(Counter, 1)
    async with AsyncSession(engine) as s, s.begin():
        s.add(Note(body="plain"))
    assert await database.notes() == ["plain"]


async def test_read_access_by_execution_option(
    engine: QueuedAsyncEngine, database: Database
) -> None:
    """qsession_access="read" means the same on an engine, a connection and a session's bind."""
    statement = insert(Note).values(body="x")
    reading = engine.execution_options(qsession_access="read")
    async with reading.connect() as connection:
        with pytest.raises(ReadOnlyError):
            await connection.execute(statement)
    async with engine.connect() as connection:
        await connection.execution_options(qsession_access="read")
        with pytest.raises(ReadOnlyError):
            await connection.execute(statement)
    async with AsyncSession(reading) as s:
        with pytest.raises(ReadOnlyError):
            await s.execute(statement)
    async with reading.execution_options(qsession_access="write").begin() as connection:
        await connection.execute(statement)
    async with engine.execution_options(qsession_access="auto", qsession_priority=3).begin() as c:
        await c.execute(statement)
    assert await database.notes() == ["x", "x"]


async def test_a_misspelt_execution_option_is_refused(
    engine: QueuedAsyncEngine, make: Callable[..., QueuedAsyncEngine]
) -> None:
    """``qsession_acces="read"`` would let a transaction write that was to read only."""
    wrong: dict[str, Any] = {"qsession_acces": "read"}
    refused = "'qsession_acces' is not an execution option of qsession. The options are"
    with pytest.raises(ArgumentError, match=refused):
        engine.execution_options(**wrong)
    with pytest.raises(ArgumentError, match=refused):
        make(execution_options=wrong)
    async with engine.connect() as connection:
        with pytest.raises(ArgumentError, match=refused):
            await connection.execution_options(**wrong)
    async with AsyncSession(engine) as s:
        with pytest.raises(ArgumentError, match=refused):
            await s.connection(execution_options=wrong)


async def test_an_engine_that_only_reads(make, database: Database) -> None:
    """access="read" of an engine is the mode of transactions that name none."""
    engine = make(access="read")
    async with AsyncSession(engine) as s:
        with pytest.raises(ReadOnlyError):
            await s.execute(insert(Note).values(body="x"))
    async with SessionMaker(bind=engine).begin() as s:
        s.add(Note(body="said so"))
    assert await database.notes() == ["said so"]


async def test_isolation_is_checked_and_accepted(engine: QueuedAsyncEngine) -> None:
    """A level that there is not is refused by name; the others work on every database."""
    for level in ("SERIALIZABLE", "REPEATABLE READ", "READ COMMITTED"):
        maker = SessionMaker(bind=engine, isolation=level)
        async with maker.begin() as s:
            assert s.isolation == level
            s.add(Note(body=level))
    with pytest.raises(
        ArgumentError, match="isolation='CHAOS' is not allowed: use one of 'SERIALIZABLE', "
    ):
        SessionMaker(bind=engine, isolation="CHAOS")()


async def test_statements_of_ours_are_not_seen(
    engine: QueuedAsyncEngine, maker: SessionMaker
) -> None:
    """A listener sees what the application sends, and nothing that tells the server how."""
    async with maker() as s:
        await s.get(Counter, 1)  # SQLAlchemy asks the server about itself
    seen = Statements(engine)
    async with maker.begin() as s:
        await s.get(Counter, 1)
    async with maker.reader() as s:
        await s.get(Counter, 1)
    assert len(seen.sent) == 2


async def test_rows_changed_by_text_that_are_never_committed(maker: SessionMaker) -> None:
    """A block that ends well warns of them; text that only reads, or changed nothing, is silent."""
    with pytest.warns(UncommittedChangesWarning, match="INSERT INTO counters VALUES"):
        async with maker() as s:
            await s.execute(text("INSERT INTO counters VALUES (3, 0)"))
    async with maker() as s:
        await s.execute(text("SELECT value FROM counters"))
        await s.execute(text("DELETE FROM counters WHERE id = 7"))
