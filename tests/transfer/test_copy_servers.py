"""`qsession.copy` to servers and from them: each driver, each direction, each loose type."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from copy_databases import ask, cancelled_at, made, tables
from sqlalchemy import (
    JSON,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Integer,
    Interval,
    MetaData,
    Numeric,
    SmallInteger,
    String,
    Table,
    Text,
    Uuid,
    inspect,
    select,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import Double

from qsession import CopyError, copy
from qsession.transfer import reading

pytestmark = pytest.mark.servers

SERVERS = ("asyncpg", "psycopg", "asyncmy")
POSTGRESQL = ("asyncpg", "psycopg")


@pytest.fixture
def small_batches(monkeypatch):
    """Ten rows at a time."""
    monkeypatch.setattr(reading, "BATCH_ROWS", 10)
    monkeypatch.setattr(reading, "_FIRST_ROWS", 10)


class Base(DeclarativeBase):
    """The models of an application that moves."""


class Mood(Enum):
    """Kept by name."""

    GOOD = "good"
    BAD = "bad"


MOMENT = DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql")


class Thing(Base):
    """A column of each type."""

    __tablename__ = "things"
    id: Mapped[int] = mapped_column(primary_key=True)
    parent: Mapped[int | None] = mapped_column(ForeignKey("things.id"))
    yes: Mapped[bool]
    small: Mapped[int] = mapped_column(SmallInteger)
    ratio: Mapped[float] = mapped_column(Double)
    price: Mapped[Decimal] = mapped_column(Numeric(10, 2))
    name: Mapped[str] = mapped_column(String(20))
    body: Mapped[str] = mapped_column(Text)
    blob: Mapped[bytes]
    day: Mapped[date]
    hour: Mapped[time]
    moment: Mapped[datetime] = mapped_column(MOMENT)
    span: Mapped[timedelta] = mapped_column(Interval)
    extra: Mapped[Any] = mapped_column(JSON)
    key: Mapped[UUID] = mapped_column(Uuid)
    mood: Mapped[Mood]


def thing(number: int) -> Thing:
    """One with values at the edges of what they may be."""
    return Thing(
        id=number,
        parent=number % 25 + 1 if number > 25 else None,
        yes=bool(number % 2),
        small=(-1) ** number * (2**15 - 1),
        ratio=number / 3,
        price=Decimal(number) / 100,
        name="näme" if number % 2 else "",
        body="line\nback\\slash\ttab 'quote' \U0001f40d %s {" * (number % 3),
        blob=bytes(range(256)) if number % 2 else b"",
        day=date(1, 1, 2) if number == 1 else date(2024, 2, 29),  # asyncpg's 0001-01-01 is none
        hour=time(23, 59, 59),
        moment=datetime.fromisoformat("2024-02-29 01:02:03.000004"),
        span=timedelta(days=number, seconds=7),
        extra={"n": number, "f": 0.5, "text": "é\n", "none": None, "list": [True, 10**15]},
        key=UUID(int=number),
        mood=Mood.GOOD if number % 2 else Mood.BAD,
    )


async def fill(url: str, count: int = 60) -> None:
    """Make the tables of the models, and rows in them."""
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    for first in range(1, count + 1, 25):  # parents before children
        async with AsyncSession(engine) as session:
            session.add_all(thing(n) for n in range(first, min(first + 25, count + 1)))
            await session.commit()
    await engine.dispose()


async def contents(url: str) -> list[tuple[Any, ...]]:
    """What the application reads, in Python's types."""
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        rows = await connection.execute(select(Thing.__table__).order_by(Thing.id))
        found = [tuple(row) for row in rows]
    await engine.dispose()
    return found


KINDS = ("sqlite", *SERVERS)
PAIRS = [(a, b) for a in KINDS for b in KINDS if "sqlite" not in (a, b) or a != b]


@pytest.mark.parametrize(("source", "target"), PAIRS)
async def test_the_application_reads_the_same(new, small_batches, source, target):
    """With the schema of its models, in every direction: each value as it was, in Python."""
    there, here = await new(source), await new(target)
    await fill(there)
    report = await copy(there, here, metadata=Base, verify=True)
    assert report.rows == 60
    assert not report.notes
    assert await contents(here) == await contents(there)


@pytest.mark.parametrize(("source", "target"), PAIRS)
async def test_reflected(new, source, target):
    """Without models the tables are made as they are in the source, and the copy verifies."""
    there, here = await new(source), await new(target)
    await fill(there)
    report = await copy(there, here, verify=True)
    assert report.rows == 60
    count = "SELECT count(*), sum(small), min(name), max(price) FROM things WHERE yes"
    if "sqlite" not in (source, target):
        assert await ask(here, count) == await ask(there, count)
    back = await new("sqlite")
    assert (await copy(here, back, metadata=Base, verify=True)).rows == 60
    assert await contents(back) == await contents(there)


LOOSE = """
CREATE TABLE loose (
    id INTEGER PRIMARY KEY, flag BOOLEAN, number INTEGER, ratio DOUBLE, price NUMERIC(8, 2),
    word VARCHAR(5), day DATE, hour TIME, moment DATETIME, extra JSON, body BLOB, huge BIGINT
);
INSERT INTO loose VALUES
    (1, 1, 7, 0.5, 1.5, 'five5', '2024-01-02', '10:11:12', '2024-01-02 03:04:05',
     '{"a": 1}', x'00', 1),
    (2, 'true', 7.0, 2, '3', 12, '2024-01-02 00:00:00', '10:11', '2024-01-02T03:04', 5, 'text',
     9223372036854775807),
    (3, 'f', '8', 9, 4, 'é', NULL, '10:11:12.5', '2024-01-02', '[]', NULL, NULL);
"""
BAD = [
    ("flag", "2", "neither true nor false, and neither 1 nor 0"),
    ("number", "'twelve'", "text in a column of integers"),
    ("number", "1.5", "a number with a fraction in a column of integers"),
    ("ratio", "'wide'", "text in a column of floats"),
    ("price", "1234567.5", "more than 6 digits before the point"),
    ("price", "'free'", "text in a column of decimals"),
    ("word", "'too long'", "longer than 5 characters"),
    ("word", "x'ff'", "a blob in a column of text"),
    ("day", "'2024-02-30'", "a date or time that does not exist"),
    ("day", "20240102", "a number in a column of dates: nothing says from when it counts"),
    ("hour", "'noon'", "not a time of day"),
    (
        "moment",
        "1700000000",
        "a number in a column of timestamps: nothing says from when it counts",
    ),
    (
        "moment",
        "'2024-01-02 03:04:05+02:00'",
        "a timestamp with a time zone: say which one the column is in (--zone)",
    ),
    ("extra", "'{'", "text that is not JSON"),
    ("body", "5", "an integer in a column of blobs"),
    ("huge", "1e300", "a number with a fraction in a column of integers"),
]


@pytest.mark.parametrize("kind", SERVERS)
async def test_loose_values_are_converted(new, tmp_path, kind):
    """What says the same in another type arrives in the type of the column."""
    here = await new(kind)
    report = await copy(made(tmp_path / "s.db", LOOSE), here, verify=True)
    assert report.rows == 3
    rows = await ask(
        here, "SELECT flag, number, ratio, price, word, moment, body FROM loose ORDER BY id"
    )
    assert rows[1] == (
        True,
        7,
        2.0,
        Decimal(3),
        "12",
        datetime.fromisoformat("2024-01-02 03:04"),
        b"text",
    )
    assert rows[2][:4] == (False, 8, 9.0, Decimal(4))


@pytest.mark.parametrize("kind", SERVERS)
async def test_values_that_do_not_fit_are_all_reported(new, tmp_path, kind):
    """Each by table, column, primary key and reason; none of the rows arrives."""
    script = LOOSE + "".join(
        f"INSERT INTO loose (id, {column}) VALUES ({number}, {value});"
        for number, (column, value, _) in enumerate(BAD, 10)
    )
    here = await new(kind)
    with pytest.raises(CopyError) as refused:
        await copy(made(tmp_path / "s.db", script), here)
    found = {(each.column, each.row, each.reason) for each in refused.value.problems}
    expected = {(column, f"id={n}", reason) for n, (column, _, reason) in enumerate(BAD, 10)}
    if kind != "asyncmy":
        assert found == expected
    assert {each[:2] for each in found} == {each[:2] for each in expected}
    assert sum(refused.value.counts.values()) == len(BAD)
    assert await tables(here) == set()


@pytest.mark.parametrize("kind", POSTGRESQL)
async def test_what_only_postgresql_refuses(new, tmp_path, kind):
    """NUL in a text; integers past 32 bits, labels and timestamps of a schema that is there."""
    here = await new(kind)
    await ask(
        here,
        "CREATE TYPE mood AS ENUM ('good', 'bad')",
        "CREATE TABLE t (id integer PRIMARY KEY, body text, mood mood, at timestamptz, key uuid, "
        "extra jsonb, narrow real NOT NULL)",
    )
    script = r"""
    CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT, mood TEXT, at TEXT, key TEXT, extra TEXT,
                    narrow REAL);
    INSERT INTO t VALUES
        (1, 'a', 'good', '2024-01-02 03:04:05Z', '000102030405060708090a0b0c0d0e0f', '{}', 0.5),
        (2, 'a' || char(0), 'good', NULL, NULL, NULL, 1), (3, NULL, 'odd', NULL, NULL, NULL, 1),
        (4, NULL, NULL, '2024-01-02 03:04:05', NULL, NULL, 1), (5, NULL, NULL, NULL, '1', NULL, 1),
        (6, NULL, NULL, NULL, NULL, '"\u0000"', 1), (7, NULL, NULL, NULL, NULL, NULL, 0.1),
        (8, NULL, NULL, NULL, NULL, NULL, NULL), (9000000000, NULL, NULL, NULL, NULL, NULL, 1);
    """
    source = made(tmp_path / "s.db", script)
    with pytest.raises(CopyError) as refused:
        await copy(source, here)
    found = {(each.row.partition("=")[2], each.column) for each in refused.value.problems}
    assert found == {
        ("2", "body"),
        ("3", "mood"),
        ("4", "at"),
        ("5", "key"),
        ("6", "extra"),
        ("7", "narrow"),
        ("8", "narrow"),
        ("9000000000", "id"),
    }
    assert await ask(here, "SELECT count(*) FROM t") == [(0,)]
    await ask(source, "DELETE FROM t WHERE id NOT IN (1, 4)")
    assert (await copy(source, here, zone="Europe/Berlin", verify=True)).rows == 2
    moments = await ask(here, "SELECT at AT TIME ZONE 'UTC' FROM t ORDER BY id")
    assert moments == [
        (datetime.fromisoformat("2024-01-02 03:04:05"),),
        (datetime.fromisoformat("2024-01-02 02:04:05"),),
    ]


async def test_what_mariadb_would_round_is_refused(new, tmp_path):
    """Its defaults cut fractions of seconds and digits after the point without an error."""
    here = await new("asyncmy")
    await ask(
        here, "CREATE TABLE t (id INTEGER PRIMARY KEY, at DATETIME, price DECIMAL, narrow FLOAT)"
    )
    script = """
    CREATE TABLE t (id INTEGER PRIMARY KEY, at DATETIME, price NUMERIC, narrow REAL);
    INSERT INTO t VALUES (0, '2024-01-02 03:04:05', 5, 0.25), (1, '2024-01-02 03:04:05.5', 1, 1),
        (2, NULL, 1.5, 1), (3, NULL, 1, 0.1);
    """
    source = made(tmp_path / "s.db", script)
    with pytest.raises(CopyError) as refused:
        await copy(source, here)
    assert {(each.row, each.column) for each in refused.value.problems} == {
        ("id=1", "at"),
        ("id=2", "price"),
        ("id=3", "narrow"),
    }
    await ask(source, "DELETE FROM t WHERE id > 0")
    await copy(source, here, verify=True)
    assert await ask(here, "SELECT id, narrow FROM t") == [(0, 0.25)]  # 0 asks for no new number


async def test_references_to_tables_that_are_not_copied(new, tmp_path):
    """MariaDB does not look at them while it is loaded, so the copy does."""
    here = await new("asyncmy")
    await ask(
        here,
        "CREATE TABLE parents (id INTEGER PRIMARY KEY)",
        "CREATE TABLE children (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES parents (id))",
        "INSERT INTO parents VALUES (1)",
    )
    script = """
    CREATE TABLE children (id INTEGER PRIMARY KEY, parent INTEGER);
    INSERT INTO children VALUES (1, 1), (2, 2), (3, NULL);
    """
    source = made(tmp_path / "s.db", script)
    with pytest.raises(CopyError, match=r"1 row of children \(parent\) refers to rows of parents"):
        await copy(source, here)
    assert await ask(here, "SELECT count(*) FROM children") == [(0,)]
    await ask(source, "UPDATE children SET parent = 1 WHERE id = 2")
    assert (await copy(source, here, verify=True)).rows == 3


CIRCLES = """
CREATE TABLE hens (id INTEGER PRIMARY KEY, egg INTEGER NOT NULL REFERENCES eggs);
CREATE TABLE eggs (id INTEGER PRIMARY KEY, hen INTEGER NOT NULL REFERENCES hens);
CREATE TABLE nodes (id INTEGER PRIMARY KEY, up INTEGER NOT NULL REFERENCES nodes);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40)
INSERT INTO hens SELECT i, 41 - i FROM n;
INSERT INTO eggs SELECT egg, id FROM hens;
INSERT INTO nodes SELECT id, 41 - id FROM hens;
"""


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("resume", [False, True])
async def test_circles(new, tmp_path, small_batches, kind, resume):
    """Tables that refer to each other and to themselves, made by the copy or there already."""
    source = made(tmp_path / "s.db", CIRCLES)
    here = await new(kind)
    for replace in (False, True):
        report = await copy(source, here, resume=resume, replace=replace, verify=True)
        assert report.rows == 120
        keys = await foreign_keys(here)
        assert keys == {("eggs", "hens"), ("hens", "eggs"), ("nodes", "nodes")}
    await ask(source, "UPDATE nodes SET up = 77 WHERE id = 3")
    with pytest.raises(CopyError, match="refers to a row of nodes that is not there"):
        await copy(source, here, resume=resume, replace=True)
    assert await foreign_keys(here) == keys
    if not resume:
        assert await ask(here, "SELECT up FROM nodes WHERE id = 3") == [(38,)]


@pytest.mark.parametrize("kind", POSTGRESQL)
@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("then", ["resume", "replace"])
async def test_foreign_keys_come_back(new, tmp_path, small_batches, kind, existing, then):
    """What an unfinished copy took off is put back by the one that goes on, or begins anew."""
    source = made(tmp_path / "s.db", CIRCLES)
    here = await new(kind)
    if existing:
        await copy(source, here)

    def stop(step):
        if step.done > 50:
            raise RuntimeError("stopped")

    with pytest.raises(CopyError, match="stopped"):
        await copy(source, here, resume=True, replace=existing, progress=stop)
    assert await foreign_keys(here) == set()
    report = await copy(source, here, **{then: True}, verify=True)
    assert report.rows == 120
    assert await foreign_keys(here) == {("eggs", "hens"), ("hens", "eggs"), ("nodes", "nodes")}
    assert await tables(here) == {"eggs", "hens", "nodes"}


async def test_schemas(new):
    """Tables of another schema are copied where the metadata names them."""
    there, here = await new("asyncpg"), await new("psycopg")
    metadata = MetaData()
    Table("t", metadata, Column("id", Integer, primary_key=True), schema="far")
    await ask(
        there,
        "CREATE SCHEMA far",
        "CREATE TABLE far.t (id serial PRIMARY KEY)",
        "INSERT INTO far.t VALUES (7)",
    )
    await ask(here, "CREATE SCHEMA far")
    report = await copy(there, here, metadata=metadata, verify=True)
    assert [(each.name, each.rows) for each in report.tables] == [("far.t", 1)]
    assert await ask(here, "INSERT INTO far.t DEFAULT VALUES RETURNING id") == [(8,)]


async def foreign_keys(url):
    """Who refers to whom."""
    engine = create_async_engine(url)

    def look(connection):
        inspector = inspect(connection)
        return {
            (table, each["referred_table"])
            for table in inspector.get_table_names()
            for each in inspector.get_foreign_keys(table)
        }

    async with engine.connect() as connection:
        found = await connection.run_sync(look)
    await engine.dispose()
    return found


@pytest.mark.parametrize("kind", POSTGRESQL)
async def test_sequences(new, tmp_path, kind):
    """Serial, identity of both sorts, and a default of nextval(): the next number is a new one."""
    here = await new(kind)
    await ask(
        here,
        "CREATE TABLE a (id serial PRIMARY KEY, x int)",
        'CREATE TABLE "B b" (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, x int)',
        "CREATE TABLE c (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, x int)",
        "CREATE SEQUENCE mine START 1000",
        "CREATE TABLE d (id int PRIMARY KEY DEFAULT nextval('mine'), x int)",
        "CREATE TABLE e (id serial PRIMARY KEY, x int)",
        "CREATE TABLE f (id serial PRIMARY KEY, x int)",
    )
    script = "".join(
        f'CREATE TABLE "{name}" (id INTEGER PRIMARY KEY {more}, x INTEGER);'
        f'INSERT INTO "{name}" VALUES (5, 1), (41, 1);'
        for name, more in (("a", ""), ("B b", ""), ("c", ""), ("d", ""), ("f", "AUTOINCREMENT"))
    )
    script += "CREATE TABLE e (id INTEGER PRIMARY KEY, x); DELETE FROM f WHERE id = 41;"
    await copy(made(tmp_path / "s.db", script), here, verify=True)
    numbers = {}
    for name in ("a", "B b", "c", "d", "e", "f"):
        ((numbers[name],),) = await ask(here, f'INSERT INTO "{name}" (x) VALUES (2) RETURNING id')
    assert numbers == {"a": 42, "B b": 42, "c": 42, "d": 1000, "e": 1, "f": 42}


async def test_tables_that_the_copy_makes_go_on_counting(new, tmp_path):
    """Identity columns of the models, and what MariaDB and SQLite do by themselves."""
    metadata = MetaData()
    Table("t", metadata, Column("id", Integer, Identity(), primary_key=True), Column("x", Integer))
    source = made(
        tmp_path / "s.db",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, x INTEGER); INSERT INTO t VALUES (41, 1);",
    )
    for kind in KINDS:
        for models in (None, metadata):
            here = await new(kind)
            await copy(source, here, metadata=models)
            await ask(here, "INSERT INTO t (x) VALUES (2)")
            assert await ask(here, "SELECT max(id) FROM t") == [(42,)], (kind, models)


MANY = """
CREATE TABLE t (id INTEGER PRIMARY KEY, word TEXT);
CREATE TABLE bare (word TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300)
INSERT INTO t SELECT i, 'word ' || i FROM n;
INSERT INTO bare SELECT word FROM t;
"""
KILLED = """
import asyncio, os, signal, sys
from qsession import copy
from qsession.transfer import reading

reading.BATCH_ROWS = reading._FIRST_ROWS = 10

def kill(step):
    if step.done >= int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(copy(*sys.argv[1:3], resume=sys.argv[3] == "resume", progress=kill))
"""


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("at", [100, 450])
async def test_killed_and_resumed(new, tmp_path, kind, at):
    """SIGKILL in the middle of a table with a key, and of one without."""
    source = made(tmp_path / "s.db", MANY)
    here = await new(kind)
    command = [sys.executable, "-c", KILLED, source, here, "resume", str(at)]
    done = await asyncio.to_thread(subprocess.run, command, check=False, timeout=60)
    assert done.returncode == -9
    ((kept,),) = await ask(here, "SELECT (SELECT count(*) FROM t) + (SELECT count(*) FROM bare)")
    assert 90 <= kept < 600
    report = await copy(source, here, resume=True, verify=True)
    assert sum(each.already for each in report.tables) == kept
    assert await tables(here) == {"t", "bare"}
    for table in ("t", "bare"):
        query = f"SELECT * FROM {table} ORDER BY 1, word"
        assert sorted(await ask(here, query)) == sorted(await ask(source, query))


@pytest.mark.parametrize("kind", SERVERS)
async def test_a_table_without_order_is_copied_whole(new, tmp_path, small_batches, kind):
    """Rows of a server that have no key have no order: a table of them is there, or not at all."""
    there, here = await new(kind), await new("sqlite")
    await copy(made(tmp_path / "s.db", MANY), there)

    def stop(step):
        if step.table == "t" and step.done > 400:
            raise RuntimeError("stopped")

    with pytest.raises(CopyError, match="stopped"):
        await copy(there, here, resume=True, progress=stop)
    assert await ask(here, "SELECT count(*) FROM bare") == [(300,)]
    await ask(there, "UPDATE bare SET word = 'other' WHERE word = 'word 5'")
    with pytest.raises(CopyError, match="the source has changed"):
        await copy(there, here, resume=True)
    await ask(there, "UPDATE bare SET word = 'word 5' WHERE word = 'other'")
    report = await copy(there, here, resume=True, verify=True)
    assert {each.name: each.already for each in report.tables}["bare"] == 300


@pytest.mark.parametrize("kind", SERVERS)
async def test_killed_and_not_resumed(new, tmp_path, kind):
    """A copy in one transaction leaves no row; only MariaDB keeps tables, and they are empty."""
    source = made(tmp_path / "s.db", MANY)
    here = await new(kind)
    command = [sys.executable, "-c", KILLED, source, here, "whole", "100"]
    done = await asyncio.to_thread(subprocess.run, command, check=False, timeout=60)
    assert done.returncode == -9
    if kind in POSTGRESQL:
        assert await tables(here) == set()
    assert (await copy(source, here, verify=True)).rows == 600


@pytest.mark.parametrize("kind", SERVERS)
async def test_cancelled_it_leaves_nothing(new, tmp_path, small_batches, kind):
    """In the middle of the rows: neither rows nor tables, on MariaDB too."""
    source = made(tmp_path / "s.db", MANY)
    here = await new(kind)
    await ask(here, "CREATE TABLE mine (x integer)", "INSERT INTO mine VALUES (1)")
    reached = asyncio.Event()
    task = asyncio.ensure_future(
        copy(source, here, progress=lambda step: reached.set() if step.done > 99 else None)
    )
    await cancelled_at(task, reached)
    assert await tables(here) == {"mine"}
    assert await ask(here, "SELECT x FROM mine") == [(1,)]


@pytest.mark.parametrize("kind", SERVERS)
async def test_what_the_database_refuses_leaves_nothing(new, tmp_path, kind):
    """A stricter schema of the target: its error is told, with the table, and nothing is kept."""
    here = await new(kind)
    await ask(here, "CREATE TABLE t (id integer PRIMARY KEY, x integer UNIQUE)")
    script = """
    CREATE TABLE t (id INTEGER PRIMARY KEY, x INTEGER);
    CREATE TABLE u (id INTEGER PRIMARY KEY);
    INSERT INTO t VALUES (1, 1), (2, 1);
    INSERT INTO u VALUES (1);
    """
    with pytest.raises(CopyError, match=r"refused rows of t: .*(?i:duplicate)") as refused:
        await copy(made(tmp_path / "s.db", script), here)
    assert "The target is as it was" in str(refused.value)
    assert await tables(here) == {"t"}
    assert await ask(here, "SELECT count(*) FROM t") == [(0,)]


@pytest.mark.parametrize("kind", SERVERS)
async def test_a_server_as_source_is_one_snapshot(new, tmp_path, small_batches, kind):
    """What is committed there while the copy runs is in no table of it."""
    there, here = await new(kind), await new("sqlite")
    await copy(made(tmp_path / "s.db", MANY), there)
    changing = []

    def change(step):
        if not changing:
            statements = ("DELETE FROM t WHERE id > 200", "DELETE FROM bare")
            changing.append(asyncio.ensure_future(ask(there, *statements)))

    report = await copy(there, here, verify=True, progress=change)
    await changing[0]
    assert report.rows == 600
    assert await ask(there, "SELECT count(*) FROM t") == [(200,)]


async def test_points_in_time(new):
    """timestamptz needs a zone where there is no such type; MariaDB's TIMESTAMP is one itself."""
    there = await new("asyncpg")
    await ask(
        there,
        "CREATE TABLE t (id integer PRIMARY KEY, at timestamptz)",
        "INSERT INTO t VALUES (1, '2024-07-01 12:00:00+02')",
    )
    here = await new("sqlite")
    with pytest.raises(CopyError, match="--zone"):
        await copy(there, here)
    await copy(there, here, zone="UTC", verify=True)
    assert await ask(here, "SELECT at FROM t") == [("2024-07-01 10:00:00.000000",)]
    maria = await new("asyncmy")
    await ask(maria, "CREATE TABLE t (id integer PRIMARY KEY, at TIMESTAMP NULL)")
    await copy(there, maria, verify=True)
    assert await ask(maria, "SELECT UNIX_TIMESTAMP(at) FROM t") == [(1719828000,)]
    again = await new("psycopg")
    await copy(maria, again, verify=True)
    ((moment,),) = await ask(again, "SELECT at FROM t")
    assert moment == datetime(2024, 7, 1, 10, tzinfo=timezone.utc)


async def test_types_that_have_no_equal(new):
    """They are named before anything is copied; between equal drivers they go as they are."""
    there = await new("asyncpg")
    await ask(
        there,
        "CREATE TABLE t (id integer PRIMARY KEY, net inet, many integer[])",
        "INSERT INTO t VALUES (1, '10.0.0.1/8', '{1,2}')",
    )
    same = await new("asyncpg")
    await copy(there, same, verify=True)
    assert await ask(same, "SELECT host(net), many[2] FROM t") == [("10.0.0.1", 2)]
    with pytest.raises(CopyError, match=r"t\.net has the type INET"):
        await copy(there, await new("sqlite"))


@pytest.mark.parametrize("kind", SERVERS)
async def test_defaults(new, tmp_path, kind):
    """Those that mean the same everywhere come along; others are named."""
    script = """
    CREATE TABLE t (id INTEGER PRIMARY KEY, a INTEGER DEFAULT 7, b VARCHAR(9) DEFAULT ':b',
                    c BOOLEAN DEFAULT 1, d DATETIME DEFAULT CURRENT_TIMESTAMP,
                    e VARCHAR(9) DEFAULT (lower('X')));
    """
    here = await new(kind)
    report = await copy(made(tmp_path / "s.db", script), here)
    assert report.notes == ("t.e: left out its default lower('X')",)
    await ask(here, "INSERT INTO t (id) VALUES (1)")
    ((a, b, c, d, e),) = await ask(here, "SELECT a, b, c, d, e FROM t")
    assert (a, b, bool(c), e) == (7, ":b", True, None)
    assert isinstance(d, datetime)


async def test_indexes_of_the_same_name(new):
    """MariaDB names indexes per table, the others per database: all of them are made."""
    there = await new("asyncmy")
    await ask(
        there,
        "CREATE TABLE a (id INTEGER PRIMARY KEY, x INTEGER, INDEX by_x (x))",
        "CREATE TABLE b (id INTEGER PRIMARY KEY, x INTEGER, UNIQUE INDEX by_x (x))",
    )
    for kind in ("sqlite", "psycopg"):
        here = await new(kind)
        await copy(there, here)
        await ask(here, "INSERT INTO b VALUES (1, 1)")
        with pytest.raises(IntegrityError):
            await ask(here, "INSERT INTO b VALUES (2, 1)")
