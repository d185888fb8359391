"""What a statement needs before it runs."""

from __future__ import annotations

import gc
import sys
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
from engines import Make, metadata, notes
from sqlalchemy import (
    Column,
    DateTime,
    Integer,
    MetaData,
    Table,
    delete,
    event,
    exists,
    func,
    insert,
    literal_column,
    select,
    text,
    union,
    update,
)
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import registry
from sqlalchemy.schema import DDL, CreateTable, ExecutableDDLElement

from qsession.sqlite import running
from qsession.sqlite.dialect import QSessionDialect
from qsession.sqlite.need import LONG, Need, need_of, need_of_text

TEXTS = [
    ("SELECT 1", Need.UNKNOWN),
    ("INSERT INTO t VALUES (1)", Need.WRITE),
    ("/* app */ update t set a = 1", Need.WRITE),
    ("delete from t", Need.WRITE),
    ("REPLACE INTO t VALUES (1)", Need.WRITE),
    ("replacement", Need.UNKNOWN),
    ("PRAGMA defer_foreign_keys = ON", Need.DEFER),
    ("PRAGMA main.defer_foreign_keys(1)", Need.DEFER),
    ("PRAGMA defer_foreign_keys", Need.ASK),
    ("WITH x AS (SELECT 1) DELETE FROM t", Need.UNKNOWN),
    ("EXPLAIN SELECT 1", Need.UNKNOWN),
    ("", Need.UNKNOWN),
    ("vacuumed", Need.UNKNOWN),
    ("beginning", Need.UNKNOWN),
    ("CREATE TABLE temp_t (a)", Need.UNKNOWN),
    ("PRAGMA foreign_keys=ON", Need.PRAGMA),
    ("PRAGMA foreign_keys(1)", Need.PRAGMA),
    ("pragma main.journal_mode = wal", Need.FILE),
    ("PRAGMA wal_checkpoint", Need.FILE),
    ("PRAGMA wal_checkpoint(TRUNCATE)", Need.FILE),
    ("PRAGMA optimize;", Need.FILE),
    ("PRAGMA foreign_keys", Need.ASK),
    ("PRAGMA main.user_version ;\n", Need.UNKNOWN),
    ("PRAGMA application_id", Need.UNKNOWN),
    ("PRAGMA user_version = 1", Need.WRITE),
    ("PRAGMA main.journal_mode ;\n", Need.ASK),
    ('PRAGMA main.table_info("t")', Need.ASK),
    ('PRAGMA "main".table_xinfo("t")', Need.ASK),
    ("PRAGMA integrity_check(5)", Need.ASK),
    ("CREATE TEMP TABLE t (a)", Need.TEMP),
    ("create temporary view v as select 1", Need.TEMP),
    ("CREATE TABLE temp.t (a)", Need.TEMP),
    ('create unique index if not exists "temp".i ON t (a)', Need.TEMP),
    ("CREATE TABLE template (a)", Need.UNKNOWN),
    ("VACUUM", Need.FILE),
    ("VACUUM INTO 'x.db'", Need.FILE),
    ("attach 'x.db' AS x", Need.ALONE),
    ("DETACH DATABASE x", Need.ALONE),
    ("SAVEPOINT a", Need.SAVEPOINT),
    ("RELEASE a", Need.SAVEPOINT),
    ("ROLLBACK TO a", Need.SAVEPOINT),
    ("ROLLBACK TRANSACTION TO SAVEPOINT a", Need.SAVEPOINT),
    ("ROLLBACK", Need.ROLLBACK),
    ("COMMIT", Need.COMMIT),
    ("END TRANSACTION", Need.COMMIT),
    ("BEGIN", Need.BEGIN),
    ("BEGIN DEFERRED", Need.BEGIN),
    ("begin\nimmediate", Need.BEGIN_WRITE),
    ("BEGIN EXCLUSIVE TRANSACTION", Need.BEGIN_WRITE),
    ("-- a note\n/* and\nanother */ BEGIN IMMEDIATE", Need.BEGIN_WRITE),
]


@pytest.mark.parametrize(("sql", "need"), TEXTS)
def test_first_words_that_matter(sql: str, need: Need) -> None:
    """Only words that begin, end or may not be inside a transaction are known from their text."""
    assert need_of_text(sql) is need


@pytest.mark.parametrize(("sql", "need"), TEXTS)
def test_long_texts(sql: str, need: Need) -> None:
    """They are looked at as others are, and none is kept."""
    assert need_of_text(f"{'/* a note */' * 100}{sql}") is need


@pytest.mark.skipif(sys.version_info < (3, 11), reason="3.10 keeps five by itself")
async def test_texts_that_are_kept(make: Make) -> None:
    """A thousand texts of a megabyte would be a gigabyte: nothing refers to one that is over."""

    class Text(str):
        """A text that can be referred to weakly."""

        __slots__ = ("__weakref__",)

    seen: list[weakref.ref[Text]] = []
    engine = make(connect_args={"cached_statements": 0})  # sqlite3 keeps the last 128 itself

    @event.listens_for(engine.sync_engine, "before_cursor_execute", retval=True)
    def lengthen(conn: Any, cursor: Any, sql: str, parameters: Any, *_: Any) -> Any:
        longer = Text(f"{sql} -- {'x' * LONG}")
        seen.append(weakref.ref(longer))
        return longer, parameters

    writes = text("INSERT INTO t VALUES (1) RETURNING a")
    for level in ("SERIALIZABLE", "AUTOCOMMIT"):
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level=level)
            await connection.execute(text("CREATE TABLE IF NOT EXISTS t (a)"))
            await connection.execute(writes)
            await connection.commit()
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level=level)
            await connection.execute(text("SELECT a FROM t"))
            await connection.commit()
    gc.collect()
    assert seen
    assert [kept[:30] for each in seen if (kept := each()) is not None] == []


def context_of(statement: Any) -> Any:
    """What SQLAlchemy knows of a statement when it is executed."""
    compiled = statement.compile(dialect=QSessionDialect())
    return SimpleNamespace(
        compiled=compiled,
        isinsert=getattr(compiled, "isinsert", False),
        isupdate=getattr(compiled, "isupdate", False),
        isdelete=getattr(compiled, "isdelete", False),
        isddl=isinstance(statement, ExecutableDDLElement),
    )


temporary = Table("scratch", MetaData(), Column("a", Integer), prefixes=["TEMPORARY"])

DELETE = text("DELETE FROM notes RETURNING id").columns(notes.c.id)
INSERT = text("INSERT INTO notes (id) SELECT 1").columns(notes.c.id)
TWO = text("SELECT 2").columns(notes.c.id)


class Note:
    """A note, as the ORM has it."""


registry().map_imperatively(Note, notes)

COMPILED = [
    (select(notes), Need.READ),
    (select(exists().where(notes.c.id == 1)), Need.READ),
    (union(select(notes.c.id), select(notes.c.id)), Need.READ),
    (select(notes).with_for_update(), Need.WRITE),
    (insert(notes).returning(notes), Need.WRITE),
    (upsert(notes).on_conflict_do_nothing(), Need.WRITE),
    (update(notes), Need.WRITE),
    (delete(notes), Need.WRITE),
    (CreateTable(notes), Need.WRITE),
    (CreateTable(temporary), Need.TEMP),
    (DDL("CREATE TRIGGER a AFTER DELETE ON notes BEGIN SELECT 1; END"), Need.WRITE),
    (DDL("PRAGMA user_version"), Need.WRITE),
    (DDL("PRAGMA foreign_keys=OFF"), Need.PRAGMA),
    (DDL("CREATE TEMP TABLE t (a)"), Need.TEMP),
    (DDL("VACUUM"), Need.FILE),
    (text("SELECT 1"), Need.UNKNOWN),
    (text("SELECT 1 AS a").columns(a=DateTime), Need.UNKNOWN),
    (DELETE, Need.WRITE),
    (select(Note).from_statement(text("DELETE FROM notes RETURNING id")), Need.WRITE),
    (select(Note).from_statement(DELETE), Need.WRITE),
    (select(Note).from_statement(select(Note)), Need.READ),
    (select(Note).from_statement(select(Note).with_for_update()), Need.WRITE),
    (select(Note).from_statement(insert(Note).returning(Note)), Need.WRITE),
    (select(Note).from_statement(update(Note).returning(Note)), Need.WRITE),
    (select(Note).from_statement(delete(Note).returning(Note)), Need.WRITE),
    (union(select(notes.c.id), DELETE), Need.READ),
    (union(INSERT, TWO), Need.WRITE),
    (union(union(INSERT, TWO), TWO), Need.UNKNOWN),
    (select(Note).from_statement(union(INSERT, TWO)), Need.WRITE),
    (DELETE.add_cte(select(notes.c.id).cte("x")), Need.UNKNOWN),
    (select(select(notes.c.id).cte("x")), Need.READ),
    (select(select(notes.c.id).cte("x").suffix_with("INSERT INTO notes")), Need.UNKNOWN),
    (select(text("a")).select_from(text("t")), Need.READ),
    (select(literal_column("a + 1")), Need.READ),
]


@pytest.mark.parametrize(("statement", "need"), COMPILED, ids=lambda value: str(value)[:40])
def test_compiled_statements_say_it_themselves(statement: Any, need: Need) -> None:
    """No SQL is parsed where SQLAlchemy has compiled it."""
    context = context_of(statement)
    assert need_of(context, str(context.compiled)) == (need, False)


def test_nowait_is_passed_on_and_skip_locked_is_refused() -> None:
    """NOWAIT means no waiting for the ticket; SKIP LOCKED has no meaning under one ticket."""
    context = context_of(select(notes).with_for_update(nowait=True))
    assert need_of(context, "") == (Need.WRITE, True)
    context = context_of(select(notes).with_for_update(skip_locked=True))
    with pytest.raises(InvalidRequestError, match="SKIP LOCKED has no meaning on SQLite"):
        need_of(context, "")


async def test_text_that_looks_like_a_select_and_writes(make: Make) -> None:
    """A reader that finds out that a statement writes hands it to the writer."""
    engine = make()
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE t (a)"))
    select_one = text("SELECT count(*) FROM t")
    for _ in range(20):
        async with engine.connect() as connection:
            await connection.execute(select_one)
    async with engine.begin() as connection:
        assert (await connection.execute(select_one)).scalar() == 0
        await connection.execute(text("WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x"))
    async with engine.connect() as connection:
        assert (await connection.execute(select_one)).scalar() == 1


async def test_a_long_write_in_from_statement(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not broken off as a read on the event loop is, which takes the transaction along."""
    monkeypatch.setattr(running, "BUDGET", -1.0)
    engine = make()
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
        await connection.execute(insert(notes), [{"id": key} for key in range(1, 2_001)])
    change = text("UPDATE notes SET body = '2' WHERE id <= 2000 RETURNING id").columns(notes.c.id)
    async with AsyncSession(engine) as session:
        await session.execute(insert(notes), {"id": 5_000})
        changed = await session.execute(select(Note).from_statement(change))
        assert len(changed.all()) == 2_000
        await session.commit()
    async with engine.connect() as connection:
        assert await connection.scalar(select(func.max(notes.c.id))) == 5_000


async def test_ddl_that_may_not_be_in_a_transaction(make: Make) -> None:
    """DDL() is for any text: a PRAGMA has its effect, VACUUM and ATTACH run by themselves."""
    engine = make()
    async with engine.connect() as connection:
        (before,) = (await connection.execute(text("PRAGMA foreign_keys"))).one()
        await connection.execute(DDL(f"PRAGMA foreign_keys={1 - before}"))
        assert (await connection.execute(text("PRAGMA foreign_keys"))).one() == (1 - before,)
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        for ddl in ("VACUUM", "ATTACH ':memory:' AS x", "DETACH x"):
            await connection.execute(DDL(ddl))
