"""What a statement is: read from its text as SQLite reads it, or told by what compiled it."""

from __future__ import annotations

import gc
import sqlite3
import sys
import weakref
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
from cancelling import eventually
from engines import Make, metadata, notes
from hypothesis import given, settings
from hypothesis import strategies as st
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
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import registry
from sqlalchemy.schema import DDL, CreateTable, ExecutableDDLElement

from qsession.sqlite.dialect import QSessionDialect
from qsession.sqlite.driver import pace
from qsession.sqlite.transaction.statement import (
    LONG,
    Kind,
    Statement,
    Words,
    is_committed_by_sqlite3,
    kind_of,
    leaves_wal,
    unquoted,
    words_of,
)
from qsession.sqlite.transaction.transaction import savepoints_after

TEXTS = [
    # What the first word says.
    ("SELECT 1", Words(Kind.READ, "select")),
    ("VALUES (1)", Words(Kind.READ, "values")),
    ("EXPLAIN DELETE FROM t", Words(Kind.READ, "explain")),
    ("INSERT INTO t VALUES (1)", Words(Kind.WRITE, "insert")),
    ("update t set a = 1", Words(Kind.WRITE, "update")),
    ("delete from t", Words(Kind.WRITE, "delete")),
    ("REPLACE INTO t VALUES (1)", Words(Kind.WRITE, "replace")),
    ("replacement", Words(Kind.UNKNOWN, "replacement")),
    ("WITH x AS (SELECT 1) DELETE FROM t", Words(Kind.UNKNOWN, "with")),
    ("ANALYZE", Words(Kind.WRITE, "analyze")),
    ("REINDEX t", Words(Kind.WRITE, "reindex")),
    ("ALTER TABLE t ADD b", Words(Kind.WRITE, "alter")),
    ("DROP TABLE t", Words(Kind.WRITE, "drop")),
    ("CREATE TABLE temp_t (a)", Words(Kind.WRITE, "create")),
    ("CREATE TABLE template (a)", Words(Kind.WRITE, "create")),
    ("CREATE TEMP TABLE t (a)", Words(Kind.SET_IN_FILE, "create")),
    ("create temporary view v as select 1", Words(Kind.SET_IN_FILE, "create")),
    ("CREATE TABLE temp.t (a)", Words(Kind.SET_IN_FILE, "create")),
    ('create unique index if not exists "temp".i ON t (a)', Words(Kind.SET_IN_FILE, "create")),
    ("CREATE VIRTUAL TABLE [temp].t USING fts5(a)", Words(Kind.SET_IN_FILE, "create")),
    ("", Words(Kind.UNKNOWN)),
    ("vacuumed", Words(Kind.UNKNOWN, "vacuumed")),
    ("beginning", Words(Kind.UNKNOWN, "beginning")),
    # What is about the whole file, or about more than one.
    ("VACUUM", Words(Kind.OUTSIDE, "vacuum")),
    ("VACUUM main", Words(Kind.OUTSIDE, "vacuum")),
    ("VACUUM INTO 'x.db'", Words(Kind.COPY, "vacuum")),
    ("attach 'x.db' AS x", Words(Kind.SET, "attach")),
    ("DETACH DATABASE x", Words(Kind.SET, "detach")),
    # What begins and ends.
    ("SAVEPOINT a", Words(Kind.SAVEPOINT, "a")),
    ('SAVEPOINT "A b"', Words(Kind.SAVEPOINT, "a b")),
    ("RELEASE a", Words(Kind.RELEASE, "a")),
    ("release savepoint [A]", Words(Kind.RELEASE, "a")),
    ("ROLLBACK TO a", Words(Kind.ROLLBACK_TO, "a")),
    ("ROLLBACK TRANSACTION TO SAVEPOINT `a`", Words(Kind.ROLLBACK_TO, "a")),
    ("ROLLBACK", Words(Kind.ROLLBACK)),
    ("rollback transaction;", Words(Kind.ROLLBACK)),
    ("COMMIT", Words(Kind.COMMIT, "commit")),
    ("END TRANSACTION", Words(Kind.COMMIT, "end")),
    ("BEGIN", Words(Kind.BEGIN)),
    ("BEGIN DEFERRED", Words(Kind.BEGIN)),
    ("begin\nimmediate", Words(Kind.BEGIN_WRITE)),
    ("BEGIN EXCLUSIVE TRANSACTION", Words(Kind.BEGIN_WRITE)),
    # PRAGMAs.
    ("PRAGMA foreign_keys", Words(Kind.TELL, "foreign_keys")),
    ("PRAGMA foreign_keys=ON", Words(Kind.SET, "foreign_keys", "ON")),
    ("PRAGMA foreign_keys(1)", Words(Kind.SET, "foreign_keys", "1")),
    ("PRAGMA cache_size = -2000;", Words(Kind.SET, "cache_size", "-2000")),
    ("pragma main.journal_mode = wal", Words(Kind.SET, "journal_mode", "wal")),
    ("PRAGMA main.journal_mode ;\n", Words(Kind.TELL, "journal_mode")),
    ("PRAGMA defer_foreign_keys = ON", Words(Kind.DEFER, "defer_foreign_keys")),
    ("PRAGMA main.defer_foreign_keys(1)", Words(Kind.DEFER, "defer_foreign_keys")),
    ("PRAGMA defer_foreign_keys", Words(Kind.TELL, "defer_foreign_keys")),
    ("PRAGMA wal_checkpoint", Words(Kind.OUTSIDE, "wal_checkpoint")),
    ("PRAGMA wal_checkpoint(TRUNCATE)", Words(Kind.OUTSIDE, "wal_checkpoint")),
    ("PRAGMA optimize;", Words(Kind.OUTSIDE, "optimize")),
    ("PRAGMA main.user_version ;\n", Words(Kind.READ, "user_version")),
    ("PRAGMA user_version -- = 1", Words(Kind.READ, "user_version")),
    ("PRAGMA foreign_keys /* = ON */", Words(Kind.TELL, "foreign_keys")),
    ("PRAGMA user_version = 1", Words(Kind.WRITE, "user_version")),
    ("PRAGMA data_version", Words(Kind.WATCH, "data_version")),
    ('PRAGMA main.table_info("t")', Words(Kind.READ, "table_info")),
    ('PRAGMA "main".table_xinfo("t")', Words(Kind.READ, "table_xinfo")),
    ("PRAGMA integrity_check(5)", Words(Kind.READ, "integrity_check")),
    ("PRAGMA foreign_key_check", Words(Kind.READ, "foreign_key_check")),
]

SKIPPED = [
    "",
    "  \t\r\n\f",
    "-- a note\n",
    "--\n--\n",
    "/* a note */",
    "/**/ /* and\nanother */",
    "/* it's */ -- isn't it\n",
    "\ufeff",
    ";",
    " ; ;-- nothing\n;",
    "\ufeff/* app */ ;",
]
"""What may stand before a statement."""


@pytest.mark.parametrize("before", SKIPPED, ids=range(len(SKIPPED)))
@pytest.mark.parametrize(("sql", "words"), TEXTS)
def test_first_words(sql: str, words: Words, before: str) -> None:
    """The kind of a statement is read from its first words, whatever is before them."""
    assert words_of(before + sql) == words


@pytest.mark.parametrize("before", SKIPPED, ids=range(len(SKIPPED)))
def test_sqlite_skips_the_same(before: str) -> None:
    """And runs what is behind it."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as raw:
        raw.execute("CREATE TABLE t (a)")
        raw.execute(f"{before}INSERT INTO t VALUES (1)")
        assert raw.execute("SELECT count(*) FROM t").fetchone() == (1,)


@pytest.mark.parametrize(("sql", "words"), TEXTS)
def test_long_texts(sql: str, words: Words) -> None:
    """They are looked at as others are, and none is kept."""
    assert words_of(f"{'/* a note */' * 100}{sql}") == words


@pytest.mark.parametrize("sql", ["/* never closed", "-- never ended", "'never closed", '"a', "[b"])
def test_what_is_not_finished(sql: str) -> None:
    """SQLite says what is wrong with it: no kind is known."""
    assert words_of(sql).kind is Kind.UNKNOWN
    assert words_of(f"{sql}{' ' * LONG}").kind is Kind.UNKNOWN


@pytest.mark.parametrize("quoted", ['"a""b"', "'a\"b'", '`a"b`', '[a"b]'])
def test_quotes(quoted: str) -> None:
    """A name is what is between the quotes; only a doubled one stands for itself."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as raw:
        raw.execute(f"SAVEPOINT {quoted}")
        raw.execute('RELEASE "a""b"')
    (token,) = unquoted(quoted)
    assert token.replace('""', '"') == 'a"b'


LEAVING_WAL = [
    ("PRAGMA journal_mode=DELETE", True),
    ("pragma main.journal_mode(truncate);", True),
    ("PRAGMA journal_mode = 'WAL'", False),
    ("PRAGMA journal_mode", False),
    ("PRAGMA synchronous=OFF", False),
    ("DELETE FROM journal_mode", False),
]


@pytest.mark.parametrize(("sql", "leaves"), LEAVING_WAL)
def test_what_leaves_wal_mode(sql: str, leaves: bool) -> None:
    """Asking for the mode, and setting the one that there is, does not."""
    assert leaves_wal(words_of(sql)) is leaves
    assert not leaves_wal(None)


COMMITTED_BY_SQLITE3 = [
    ("CREATE TABLE u (a)", True),
    ("-- migration\nALTER TABLE t ADD b", True),
    ("DROP INDEX i", True),
    ("ANALYZE", True),
    ("REINDEX t", True),
    ("PRAGMA user_version=1", True),
    ("WITH q AS (SELECT 1) INSERT INTO t SELECT * FROM q", True),
    ("WITH q AS (SELECT 1) UPDATE t SET a = 2", True),
    ("WITH q AS (SELECT 1) UPDATE t SET a = 2 WHERE a > 2", False),  # changes no row
    ("WITH q AS (SELECT 1) SELECT * FROM q", False),
    ("INSERT INTO t VALUES (1)", False),
    ("SELECT 1", False),
]


@pytest.mark.parametrize(("sql", "is_committed"), COMMITTED_BY_SQLITE3)
def test_what_sqlite3_commits(sql: str, is_committed: bool) -> None:
    """What we say of Python's driver is what it does, however the text is compiled."""
    with closing(sqlite3.connect(":memory:")) as raw:
        raw.executescript("CREATE TABLE t (a); INSERT INTO t VALUES (1); CREATE INDEX i ON t (a)")
        changes = raw.total_changes
        raw.execute(sql)
        changed = raw.total_changes != changes
        wrote = changed or not sql.startswith(("SELECT", "WITH"))
        assert is_committed == (wrote and not raw.in_transaction)
    assert is_committed_by_sqlite3(Statement(sql, words=words_of(sql)), changed) is is_committed
    if sql.startswith(("WITH", "INSERT", "SELECT")):
        assert is_committed_by_sqlite3(Statement(sql), changed) is is_committed


NAMES = st.sampled_from(["a", "A", '"a"', "[b]", "'b b'", '"b B"', "`savepoint_1`"])
VERBS = st.sampled_from(
    ["SAVEPOINT", "savepoint", "RELEASE", "Release SAVEPOINT", "ROLLBACK TO",
     "rollback transaction to\n savepoint", "/* app */ RELEASE", "-- app\nSAVEPOINT"]
)  # fmt: skip
TAILS = st.sampled_from(["", ";", " ; ", " -- done", " /* done */"])


@settings(deadline=None)
@given(st.lists(st.tuples(VERBS, NAMES, TAILS), max_size=12))
def test_savepoints_are_followed(sent: list[tuple[str, str, str]]) -> None:
    """SQLite is in a transaction for as long as one is left, and agrees on which are open."""
    savepoints: list[str] = []
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as raw:
        for verb, name, tail in sent:
            words = words_of(f"{verb} {name}{tail}")
            known = words.name in savepoints
            try:
                raw.execute(f"{verb} {name}{tail}")
            except sqlite3.OperationalError:
                assert not known
                continue
            savepoints = savepoints_after(savepoints, words)
            assert raw.in_transaction == bool(savepoints)
            assert (words.kind is Kind.ROLLBACK_TO) == ("rollback" in verb.lower())


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
    del connection
    assert seen
    gc.collect()

    def kept() -> list[str]:
        return [found[:30] for each in seen if (found := each()) is not None]

    await eventually(lambda: not kept(), lambda: str(kept()))  # the watch looks once more


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
    (select(notes), Kind.READ),
    (select(exists().where(notes.c.id == 1)), Kind.READ),
    (union(select(notes.c.id), select(notes.c.id)), Kind.READ),
    (select(notes).with_for_update(), Kind.LOCK),
    (insert(notes).returning(notes), Kind.WRITE),
    (upsert(notes).on_conflict_do_nothing(), Kind.WRITE),
    (update(notes), Kind.WRITE),
    (delete(notes), Kind.WRITE),
    (CreateTable(notes), Kind.WRITE),
    (CreateTable(temporary), Kind.SET_IN_FILE),
    (DDL("CREATE TRIGGER a AFTER DELETE ON notes BEGIN SELECT 1; END"), Kind.WRITE),
    (DDL("PRAGMA user_version"), Kind.READ),
    (DDL("PRAGMA foreign_keys=OFF"), Kind.SET),
    (DDL("CREATE TEMP TABLE t (a)"), Kind.SET_IN_FILE),
    (DDL("VACUUM"), Kind.OUTSIDE),
    (text("SELECT 1"), Kind.READ),
    (text("SELECT 1 AS a").columns(a=DateTime), Kind.READ),
    (text("WITH x AS (SELECT 1) SELECT a FROM x").columns(a=DateTime), Kind.UNKNOWN),
    (DELETE, Kind.WRITE),
    (select(Note).from_statement(text("DELETE FROM notes RETURNING id")), Kind.WRITE),
    (select(Note).from_statement(DELETE), Kind.WRITE),
    (select(Note).from_statement(select(Note)), Kind.READ),
    (select(Note).from_statement(select(Note).with_for_update()), Kind.LOCK),
    (select(Note).from_statement(insert(Note).returning(Note)), Kind.WRITE),
    (select(Note).from_statement(update(Note).returning(Note)), Kind.WRITE),
    (select(Note).from_statement(delete(Note).returning(Note)), Kind.WRITE),
    (union(select(notes.c.id), DELETE), Kind.READ),
    (union(INSERT, TWO), Kind.WRITE),
    (union(union(INSERT, TWO), TWO), Kind.UNKNOWN),
    (select(Note).from_statement(union(INSERT, TWO)), Kind.WRITE),
    (DELETE.add_cte(select(notes.c.id).cte("x")), Kind.UNKNOWN),
    (select(select(notes.c.id).cte("x")), Kind.READ),
    (select(select(notes.c.id).cte("x").suffix_with("INSERT INTO notes")), Kind.UNKNOWN),
    (select(text("a")).select_from(text("t")), Kind.READ),
    (select(literal_column("a + 1")), Kind.READ),
]


@pytest.mark.parametrize(("statement", "kind"), COMPILED, ids=lambda value: str(value)[:40])
def test_compiled_statements_say_it_themselves(statement: Any, kind: Kind) -> None:
    """No SQL is parsed where SQLAlchemy has compiled it."""
    context = context_of(statement)
    for _ in range(2):  # the second time it is remembered
        assert kind_of(context, str(context.compiled))[:2] == (kind, False)


@pytest.mark.parametrize("options", [{}, {"nowait": True}, {"skip_locked": True}])
def test_for_update(options: dict[str, bool]) -> None:
    """NOWAIT means no waiting for the ticket; with the ticket there is nothing locked to skip."""
    context = context_of(select(notes).with_for_update(**options))
    assert kind_of(context, "") == (Kind.LOCK, "nowait" in options, None)


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
    monkeypatch.setattr(pace, "BUDGET", -1.0)
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
