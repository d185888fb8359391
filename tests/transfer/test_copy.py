"""`qsession.copy` from file to file: what it promises of every pair of databases."""

from __future__ import annotations

import asyncio
import fcntl
import subprocess
import sys
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest
from cancelling import eventually
from copy_databases import ask, cancelled_at, made, tables
from sqlalchemy import (
    Boolean,
    Column,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    event,
)
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from qsession import CopyError, copy, create_async_engine
from qsession.transfer import Stage, loading, reading
from qsession.transfer.schema import BOOKS, load_metadata, sort

PEOPLE = """
CREATE TABLE people (id INTEGER PRIMARY KEY, name VARCHAR(10) NOT NULL,
                     boss INTEGER REFERENCES people);
CREATE TABLE tags (person INTEGER REFERENCES people, tag TEXT, PRIMARY KEY (person, tag));
CREATE TABLE loose (x INTEGER, y TEXT);
CREATE INDEX by_name ON people (name);
INSERT INTO people VALUES (1, 'Ann', 2), (2, 'Bob', 1), (3, 'Cid', NULL);
INSERT INTO tags VALUES (1, 'a'), (1, 'b'), (3, 'a');
INSERT INTO loose VALUES (1, 'one'), (1, 'one'), (NULL, NULL);
"""
MANY = """
CREATE TABLE t (id INTEGER PRIMARY KEY, word TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)
INSERT INTO t SELECT i, 'word ' || i FROM n;
"""


@pytest.fixture
def target(tmp_path):
    """The URL of a file that is not there."""
    return f"sqlite+aiosqlite:///{tmp_path / 'target.db'}"


@pytest.fixture
def small_batches(monkeypatch):
    """Ten rows at a time."""
    monkeypatch.setattr(reading, "BATCH_ROWS", 10)
    monkeypatch.setattr(reading, "_FIRST_ROWS", 10)


def left_of(target):
    """The files that a target has left in its folder."""
    return sorted(each.name for each in Path(target.partition("///")[2]).parent.glob("target*"))


async def test_rows_and_schema(tmp_path, target):
    """Tables that refer to themselves, rows without a key and duplicates: all of them arrive."""
    source = made(tmp_path / "source.db", PEOPLE)
    report = await copy(source, target, verify=True)
    assert report.verified
    assert report.written
    assert {each.name: each.rows for each in report.tables} == {"people": 3, "tags": 3, "loose": 3}
    for table in ("people", "tags", "loose"):
        query = f"SELECT * FROM {table} ORDER BY 1, 2"
        assert await ask(target, query) == await ask(source, query)
    assert await ask(target, "SELECT name FROM sqlite_master WHERE name = 'by_name'")
    assert await tables(target) == {"people", "tags", "loose"}


async def test_the_source_is_one_snapshot(tmp_path, target, small_batches):
    """What is committed while the copy runs is not in it, in no table."""
    source = made(tmp_path / "source.db", MANY + "CREATE TABLE u (id INTEGER PRIMARY KEY);")
    engine = create_async_engine(source)
    written = []

    async def write():
        async with engine.begin() as connection:
            await connection.exec_driver_sql("INSERT INTO u VALUES (1)")
            await connection.exec_driver_sql("DELETE FROM t WHERE id > 400")
        written.append(True)

    writing = []

    def at_the_first_batch(step):
        if not writing:
            writing.append(asyncio.ensure_future(write()))

    report = await copy(source, target, progress=at_the_first_batch)
    await writing[0]
    await engine.dispose()
    assert {each.name: each.rows for each in report.tables} == {"t": 500, "u": 0}
    assert await ask(target, "SELECT count(*) FROM t") == [(500,)]
    assert await ask(source, "SELECT count(*) FROM t") == [(400,)]


def waits(lock):
    """Whether another one waits for its turn on a file."""
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


async def test_the_target_is_written_in_the_queue(tmp_path, target, small_batches):
    """A writer of the application that has the target's ticket is waited for, not failed on."""
    source = made(tmp_path / "source.db", MANY)
    made(tmp_path / "target.db", "CREATE TABLE mine (x);")
    engine = create_async_engine(target)
    async with engine.begin() as connection:
        await connection.exec_driver_sql("INSERT INTO mine VALUES (1)")
        copying = asyncio.ensure_future(copy(source, target))
        await eventually(lambda: waits(tmp_path / "target.db-qsession-next"))
        assert not copying.done()
    report = await copying
    await engine.dispose()
    assert report.rows == 500
    assert await ask(target, "SELECT count(*) FROM mine") == [(1,)]


async def test_a_target_with_rows_is_refused_unless_told(tmp_path, target):
    """The tables are named; --replace deletes their rows, and no others."""
    source = made(tmp_path / "source.db", PEOPLE)
    made(
        tmp_path / "target.db",
        PEOPLE.replace("Ann", "Eve") + "CREATE TABLE other (x); INSERT INTO other VALUES (1);",
    )
    with pytest.raises(CopyError, match=r"not empty, there are rows in .*people") as refused:
        await copy(source, target)
    assert "--replace" in str(refused.value)
    assert await ask(target, "SELECT name FROM people WHERE id = 1") == [("Eve",)]
    await copy(source, target, replace=True, verify=True)
    assert await ask(target, "SELECT name FROM people WHERE id = 1") == [("Ann",)]
    assert await ask(target, "SELECT x FROM other") == [(1,)]


async def test_arguments(tmp_path, target):
    """What makes no sense is refused before anything is opened or made."""
    source = made(tmp_path / "source.db", PEOPLE)
    with pytest.raises(ArgumentError, match="there is no database"):
        await copy(target, source)
    with pytest.raises(ArgumentError, match="the same database"):
        await copy(source, f"sqlite+qsession:///{tmp_path}/../{tmp_path.name}/source.db")
    with pytest.raises(ArgumentError, match="time zone"):
        await copy(source, target, zone="Mars/Olympus")
    with pytest.raises(ArgumentError, match="in memory"):
        await copy(source, "sqlite+aiosqlite://")
    with pytest.raises(ArgumentError, match="check writes nothing"):
        await copy(source, target, check=True, resume=True)
    for named in ("no_such_module:Base", "qsession:nothing", "qsession:copy", MetaData()):
        with pytest.raises(ArgumentError):
            await copy(source, target, metadata=named)
    assert left_of(target) == []


class Base(DeclarativeBase):
    """Models of the tests below."""


class Person(Base):
    """One with a column fewer than the source may have, and a name that is not its attribute's."""

    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column("name", String(10))
    boss: Mapped[int | None] = mapped_column(ForeignKey("people.id"))


async def test_the_schema_of_the_models(tmp_path, target):
    """Tables are made after the metadata; what it does not know of is said, or refused."""
    source = made(tmp_path / "source.db", PEOPLE)
    report = await copy(source, target, metadata=Base, verify=True)
    assert await tables(target) == {"people"}
    assert sorted(report.notes) == [
        "loose: not copied, as the models do not have this table",
        "tags: not copied, as the models do not have this table",
    ]
    await ask(source, "ALTER TABLE people ADD COLUMN salary INTEGER")
    with pytest.raises(CopyError, match=r"do not have people\.salary"):
        await copy(source, target, metadata=Base, replace=True)
    more = MetaData()
    Table("people", more, Column("id", Integer), Column("age", Integer))
    Table("pets", more, Column("id", Integer))
    with pytest.raises(CopyError, match=r"no column people\.age.* no table 'pets'"):
        await copy(source, target, metadata=more, replace=True)
    assert load_metadata("qsession:Base.metadata" if Base is None else Base) is Base.metadata


async def test_a_target_that_lacks_a_column(tmp_path, target):
    """A column of the source is never left out silently."""
    source = made(tmp_path / "source.db", PEOPLE)
    made(tmp_path / "target.db", "CREATE TABLE people (id INTEGER PRIMARY KEY, boss INTEGER);")
    with pytest.raises(CopyError, match=r"people of the target lacks the column name"):
        await copy(source, target)


ORPHANS = """
CREATE TABLE parents (a INTEGER, b INTEGER, PRIMARY KEY (a, b));
CREATE TABLE children (id INTEGER PRIMARY KEY, a INTEGER, b INTEGER,
                       FOREIGN KEY (a, b) REFERENCES parents (a, b));
INSERT INTO parents VALUES (1, 1);
INSERT INTO children VALUES (1, 1, 1), (2, 1, NULL), (3, 1, 2), (4, 2, 2), (5, 2, 3), (6, 2, 4),
                            (7, 2, 5), (8, 2, 6);
"""


async def test_rows_that_refer_to_nothing(tmp_path, target):
    """They are counted, and some are named; NULL refers to nothing and is no error."""
    source = made(tmp_path / "source.db", ORPHANS)
    with pytest.raises(CopyError) as refused:
        await copy(source, target)
    problems = refused.value.problems
    assert refused.value.counts == {
        ("children", "a, b", "refers to a row of parents that is not there"): 6
    }
    assert [each.row for each in problems] == [f"id={n}" for n in range(3, 8)]
    assert "id=3: (1, 2)" in str(refused.value)
    assert "The target is as it was" in str(refused.value)
    assert left_of(target) == []


async def test_text_that_is_no_text(tmp_path, target):
    """Bytes that are not UTF-8 in a text are reported by row, and not by an error of the driver."""
    script = PEOPLE + "INSERT INTO people VALUES (9, CAST(x'ff41' AS TEXT), NULL);"
    with pytest.raises(CopyError, match=r"people\.name: a text that is not valid UTF-8 \(1 row"):
        await copy(made(tmp_path / "source.db", script), target)
    assert left_of(target) == []


async def test_virtual_tables(tmp_path, target):
    """A full-text index has no equal elsewhere: it is named, and what it is made of, too."""
    script = PEOPLE + "CREATE VIRTUAL TABLE found USING fts5(body); INSERT INTO found VALUES ('x');"
    report = await copy(made(tmp_path / "source.db", script), target)
    assert await tables(target) == {"people", "tags", "loose"}
    assert any(
        note.startswith("not copied, virtual tables") and "found" in note for note in report.notes
    )


async def test_tables_of_litestream(tmp_path, target):
    """They are about the WAL of the source, so they are left there."""
    script = (
        PEOPLE
        + "CREATE TABLE _litestream_seq (id INTEGER PRIMARY KEY, seq INTEGER);"
        + "INSERT INTO _litestream_seq VALUES (1, 7); CREATE TABLE _litestream_lock (id INTEGER);"
    )
    await copy(made(tmp_path / "source.db", script), target)
    assert await tables(target) == {"people", "tags", "loose"}


async def test_views_and_triggers(tmp_path, target):
    """They do not come along, and are named, unless the models decide what comes along."""
    script = (
        PEOPLE
        + """
    CREATE VIEW names AS SELECT name FROM people;
    CREATE TRIGGER never BEFORE DELETE ON people BEGIN SELECT RAISE(ABORT, 'no'); END;
    """
    )
    source = made(tmp_path / "source.db", script)
    report = await copy(source, target)
    assert set(report.notes) == {
        "not copied, views: names",
        "not copied, triggers: never",
    }
    report = await copy(source, target, metadata=Base, replace=True)
    assert not {note for note in report.notes if "left out" in note}


async def test_progress(tmp_path, target, small_batches):
    """It counts the rows of all tables, and begins anew for the verification."""
    source = made(tmp_path / "source.db", MANY + PEOPLE)
    steps = []
    await copy(source, target, verify=True, progress=steps.append)
    for stage in (Stage.COPYING, Stage.VERIFYING):
        done = [each.done for each in steps if each.stage is stage]
        assert done == sorted(done)
        assert done[-1] == 509
        assert len(done) > 50
    assert {each.total for each in steps} == {509}


async def test_check_writes_nothing(tmp_path, target):
    """It finds what a copy would find, and leaves no file."""
    steps = []
    source = made(tmp_path / "source.db", PEOPLE)
    report = await copy(source, target, check=True, progress=steps.append)
    assert (report.written, report.rows) == (False, 9)
    assert {each.stage for each in steps} == {Stage.CHECKING}
    assert left_of(target) == []
    made(tmp_path / "other.db", ORPHANS)
    with pytest.raises(CopyError, match="6 values of 1 kind"):
        await copy(f"sqlite+aiosqlite:///{tmp_path}/other.db", target, check=True)
    assert left_of(target) == []


async def test_an_error_on_the_way_leaves_nothing(tmp_path, target, small_batches):
    """What a listener raises ends the copy, and the file that was made is gone."""
    source = made(tmp_path / "source.db", MANY)

    def fail(step):
        if step.done >= 100:
            raise RuntimeError("no more paper")

    with pytest.raises(CopyError, match="no more paper") as failed:
        await copy(source, target, progress=fail)
    assert isinstance(failed.value.__cause__, RuntimeError)
    assert left_of(target) == []


async def test_cancelled_it_leaves_nothing(tmp_path, target, small_batches):
    """In the middle of the rows, in a file that was there: its tables are as they were."""
    source = made(tmp_path / "source.db", MANY)
    made(tmp_path / "target.db", "CREATE TABLE mine (x); INSERT INTO mine VALUES (1);")
    reached = asyncio.Event()
    task = asyncio.ensure_future(
        copy(source, target, progress=lambda step: reached.set() if step.done > 99 else None)
    )
    await cancelled_at(task, reached)
    assert await tables(target) == {"mine"}
    assert await ask(target, "SELECT x FROM mine") == [(1,)]


async def test_resumed_after_a_cancellation(tmp_path, target, small_batches):
    """What was committed stays, the rest follows, and the books are gone in the end."""
    source = made(tmp_path / "source.db", MANY + PEOPLE)
    reached = asyncio.Event()
    task = asyncio.ensure_future(
        copy(
            source,
            target,
            resume=True,
            progress=lambda step: reached.set() if step.done > 99 else None,
        )
    )
    await cancelled_at(task, reached)
    assert BOOKS in await tables(target)
    ((kept,),) = await ask(target, "SELECT count(*) FROM t")
    assert 90 <= kept < 500

    with pytest.raises(CopyError, match="not complete"):
        await copy(source, target)
    report = await copy(source, target, resume=True, verify=True)
    assert sum(each.already for each in report.tables) >= kept
    assert await ask(target, "SELECT * FROM t") == await ask(source, "SELECT * FROM t")
    assert BOOKS not in await tables(target)


async def interrupted(source, target, at):
    """A copy that can be resumed and stops after some rows."""

    def stop(step):
        if step.done >= at:
            raise RuntimeError("stopped")

    with pytest.raises(CopyError, match="Go on with --resume"):
        await copy(source, target, resume=True, progress=stop)


async def test_a_source_that_has_changed(tmp_path, target, small_batches):
    """What was copied must be what is there now: a change is noticed, new rows are not one."""
    source = made(tmp_path / "source.db", MANY)
    await interrupted(source, target, 100)
    await ask(source, "UPDATE t SET word = 'other' WHERE id = 50")
    with pytest.raises(CopyError, match="the source has changed"):
        await copy(source, target, resume=True)
    await ask(source, "UPDATE t SET word = 'word 50' WHERE id = 50")
    await ask(source, "INSERT INTO t VALUES (501, 'new')", "UPDATE t SET word = '?' WHERE id = 400")
    report = await copy(source, target, resume=True, verify=True)
    assert report.rows == 501
    assert await ask(target, "SELECT * FROM t") == await ask(source, "SELECT * FROM t")


async def test_rows_that_are_gone(tmp_path, target, small_batches):
    """A source with fewer rows has changed; to begin anew is offered, and works."""
    source = made(tmp_path / "source.db", MANY)
    await interrupted(source, target, 100)
    await ask(source, "DELETE FROM t WHERE id > 20")
    with pytest.raises(CopyError, match=r"has changed.*--replace"):
        await copy(source, target, resume=True)
    report = await copy(source, target, resume=True, replace=True, verify=True)
    assert report.rows == 20
    assert BOOKS not in await tables(target)


async def test_a_target_that_somebody_changed(tmp_path, target, small_batches):
    """Rows that the copy did not write are noticed before anything is added to them."""
    source = made(tmp_path / "source.db", MANY)
    await interrupted(source, target, 100)
    await ask(target, "DELETE FROM t WHERE id = 1")
    with pytest.raises(CopyError, match="somebody else changed the table"):
        await copy(source, target, resume=True)


async def test_two_copies_at_once(tmp_path, target, small_batches):
    """Of two that resume the same copy, no row is written by both."""
    source = made(tmp_path / "source.db", MANY)
    await interrupted(source, target, 100)
    results = await asyncio.gather(
        copy(source, target, resume=True),
        copy(source, target, resume=True),
        return_exceptions=True,
    )
    assert any(isinstance(each, CopyError) for each in results)
    if all(isinstance(each, CopyError) for each in results):
        await copy(source, target, resume=True)
    assert await ask(target, "SELECT * FROM t") == await ask(source, "SELECT * FROM t")


async def test_problems_of_a_copy_that_can_be_resumed(tmp_path, target, small_batches):
    """All are reported, nothing behind the first is written; corrected, the copy goes on."""
    script = MANY + "UPDATE t SET word = CAST(x'ff' AS TEXT) WHERE id IN (200, 300);"
    source = made(tmp_path / "source.db", script)
    with pytest.raises(CopyError, match="Go on with --resume") as failed:
        await copy(source, target, resume=True)
    assert [each.row for each in failed.value.problems] == ["id=200", "id=300"]
    assert await ask(target, "SELECT max(id) FROM t") == [(190,)]
    await ask(source, "UPDATE t SET word = 'fine' WHERE id IN (200, 300)")
    report = await copy(source, target, resume=True, verify=True)
    assert (report.rows, report.tables[0].already) == (500, 190)


KILLED = """
import asyncio, os, signal, sys
from qsession import copy
from qsession.transfer import reading

reading.BATCH_ROWS = reading._FIRST_ROWS = 10

def kill(step):
    if step.done >= 200:
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(copy(*sys.argv[1:3], resume=sys.argv[3] == "resume", progress=kill))
"""


@pytest.mark.parametrize("how", ["resume", "whole"])
async def test_killed(tmp_path, target, how):
    """SIGKILL in the middle: it can be resumed if that was asked for, else there is nothing."""
    source = made(tmp_path / "source.db", MANY)
    made(tmp_path / "target.db", "")
    command = [sys.executable, "-c", KILLED, source, target, how]
    done = await asyncio.to_thread(subprocess.run, command, check=False, timeout=60)
    assert done.returncode == -9
    if how == "whole":
        assert await tables(target) == set()
        return
    assert await ask(target, "SELECT count(*) FROM t") == [(200,)]
    report = await copy(source, target, resume=True, verify=True)
    assert report.tables[0].already == 200
    assert await ask(target, "SELECT * FROM t") == await ask(source, "SELECT * FROM t")


async def test_a_verification_that_fails(tmp_path, target, monkeypatch):
    """A row that gets lost on the way is noticed, and then nothing is kept."""
    source = made(tmp_path / "source.db", MANY)
    write = loading.write

    async def lose_one(connection, table, names, takes, rows):
        await write(connection, table, names, takes, [row for row in rows if row[0] != 77])

    monkeypatch.setattr(loading, "write", lose_one)
    with pytest.raises(CopyError, match="t has 499 rows instead of 500"):
        await copy(source, target, verify=True)

    async def change_one(connection, table, names, takes, rows):
        rows = [(row[0], "other") if row[0] == 77 else row for row in rows]
        await write(connection, table, names, takes, rows)

    monkeypatch.setattr(loading, "write", change_one)
    with pytest.raises(CopyError, match="t has the checksum"):
        await copy(source, target, verify=True)
    assert left_of(target) == []


def versions(revision):
    """Alembic's table."""
    return (
        "CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY);"
        f"INSERT INTO alembic_version VALUES ('{revision}');"
    )


async def test_revisions(tmp_path, target):
    """A target that was migrated has its own revision, and it must be that of the source."""
    source = made(tmp_path / "source.db", PEOPLE + versions("b2"))
    schema = PEOPLE.partition("INSERT")[0]
    made(tmp_path / "target.db", schema + versions("a1"))
    with pytest.raises(CopyError, match="source is at revision b2, the target at a1"):
        await copy(source, target)
    await ask(target, "UPDATE alembic_version SET version_num = 'b2'")
    report = await copy(source, target, verify=True)
    assert "alembic_version" not in {each.name for each in report.tables}
    new = f"sqlite+aiosqlite:///{tmp_path / 'target2.db'}"
    await copy(source, new)
    assert await ask(new, "SELECT * FROM alembic_version") == [("b2",)]
    bare = f"sqlite+aiosqlite:///{tmp_path / 'target3.db'}"
    report = await copy(source, bare, metadata=Base)
    assert any("alembic stamp b2" in note for note in report.notes)


async def test_revisions_of_a_copy_that_is_resumed(tmp_path, target, small_batches):
    """Those that an earlier run copied are not taken for the target's own."""
    source = made(tmp_path / "source.db", versions("b2") + MANY)
    await interrupted(source, target, 100)
    assert await ask(target, "SELECT * FROM alembic_version") == [("b2",)]
    report = await copy(source, target, resume=True, verify=True)
    assert report.rows == 501


async def test_no_tables(tmp_path, target):
    """An empty source is a mistake, and not a success."""
    with pytest.raises(CopyError, match="no table to copy"):
        await copy(made(tmp_path / "source.db", ""), target)
    assert left_of(target) == []


def test_order():
    """Parents come first; what no order satisfies is told apart."""
    metadata = MetaData()
    Table("c", metadata, Column("id", Integer, primary_key=True), Column("b", ForeignKey("b.id")))
    Table("b", metadata, Column("id", Integer, primary_key=True), Column("a", ForeignKey("a.id")))
    Table("a", metadata, Column("id", Integer, primary_key=True), Column("a", ForeignKey("a.id")))
    Table("x", metadata, Column("id", Integer, primary_key=True), Column("y", ForeignKey("y.id")))
    Table("y", metadata, Column("id", Integer, primary_key=True), Column("x", ForeignKey("x.id")))
    Table("z", metadata, Column("id", Integer, primary_key=True), Column("far", Boolean))
    Table("o", metadata, Column("id", Integer), Column("out", ForeignKey("elsewhere.id")))
    ordered, late = sort(metadata.tables.values())
    names = [table.name for table in ordered]
    assert sorted(names) == ["a", "b", "c", "o", "x", "y", "z"]
    assert names.index("a") < names.index("b") < names.index("c")
    assert [each.table.name for each in late] == ["a", "x", "y"]


async def test_memory_does_not_grow_with_the_rows(tmp_path, target):
    """50,000 rows pass through; at no time are more than a few batches of them there."""
    script = MANY.replace("i < 500", "i < 50000").replace("'word '", f"'{'word' * 100}'")
    source = made(tmp_path / "source.db", script)
    await copy(made(tmp_path / "warm.db", MANY), f"sqlite+aiosqlite:///{tmp_path / 'warmed.db'}")
    tracemalloc.start()
    try:
        await copy(source, target, verify=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert await ask(target, "SELECT count(*) FROM t") == [(50_000,)]
    assert peak < 12 * 2**20  # all rows are 25 MiB; qsession's log of a transaction may have 4


async def test_large_values_come_in_small_batches(tmp_path, target):
    """A thousand blobs of 100 KiB do not come at once."""
    script = """
    CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300)
    INSERT INTO t SELECT i, zeroblob(100000) FROM n;
    """
    source = made(tmp_path / "source.db", script)
    done = []
    await copy(source, target, progress=lambda step: done.append(step.done))
    sizes = [after - before for before, after in pairwise(done)]
    assert max(sizes[1:]) <= 11
    assert done[-1] == 300


async def test_no_statement_is_sent_to_the_source_that_writes(tmp_path, target):
    """The source is opened by a snapshot that could not write."""
    source = made(tmp_path / "source.db", PEOPLE)
    seen = []
    open_engine = reading.open_engine

    def watched(url):
        engine = open_engine(url)

        def note(connection, cursor, statement, parameters, context, many):
            options = connection.get_execution_options()
            seen.append((url.database, options.get("qsession_access"), statement))

        event.listen(engine.sync_engine, "before_cursor_execute", note)
        return engine

    patch = pytest.MonkeyPatch()
    patch.setattr(reading, "open_engine", watched)
    try:
        await copy(source, target)
    finally:
        patch.undo()
    modes = {access for database, access, _ in seen if database.endswith("source.db")}
    assert modes == {"read"}
