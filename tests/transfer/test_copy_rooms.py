"""`qsession.copy` makes room for its rows: what others have there, or are about to write."""

from __future__ import annotations

import asyncio

import pytest
from copy_databases import ask, made
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from qsession import CopyError, copy

pytestmark = pytest.mark.servers

SERVERS = ("asyncpg", "psycopg", "asyncmy")
POSTGRESQL = ("asyncpg", "psycopg")
ROW = "CREATE TABLE t (id INTEGER PRIMARY KEY); INSERT INTO t VALUES (1);"
WAITS = {
    "postgresql": "SELECT count(*) FROM pg_locks WHERE NOT granted AND database = "
    "(SELECT oid FROM pg_database WHERE datname = current_database())",
    "mysql": "SELECT count(*) FROM information_schema.processlist WHERE db = database() "
    "AND (info LIKE '%FOR UPDATE%' OR info LIKE 'DELETE%') AND id <> connection_id()",
}


@pytest.mark.parametrize("kind", SERVERS)
async def test_rows_that_are_committed_while_it_waits(new, tmp_path, kind):
    """They are somebody else's: the copy is refused, and they stay."""
    here = await new(kind)
    await ask(here, "CREATE TABLE t (id bigint PRIMARY KEY)")
    engine = create_async_engine(here)
    try:
        async with engine.connect() as writing, engine.connect() as looking:
            await writing.execute(text("INSERT INTO t VALUES (77)"))
            copying = asyncio.ensure_future(copy(made(tmp_path / "s.db", ROW), here))
            waits = text(WAITS[engine.dialect.name])
            while not (copying.done() or await looking.scalar(waits)):
                await looking.rollback()
            await writing.commit()
            with pytest.raises(CopyError, match="the target is not empty"):
                await copying
    finally:
        await engine.dispose()
    assert await ask(here, "SELECT id FROM t") == [(77,)]


TRIGGERS = {
    "sqlite": """
    CREATE TRIGGER keep_out BEFORE INSERT ON t WHEN new.id = 2 BEGIN SELECT RAISE(IGNORE); END
    """,
    "postgresql": """
    CREATE TRIGGER keep_out BEFORE INSERT ON t FOR EACH ROW WHEN (new.id = 2)
    EXECUTE FUNCTION nothing()
    """,
}
FUNCTION = """
CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'
"""


@pytest.mark.parametrize("kind", ["sqlite", *POSTGRESQL])
async def test_a_trigger_that_leaves_rows_out(new, tmp_path, kind):
    """Those rows would be lost in silence: the copy fails, and nothing is there."""
    here = await new(kind)
    backend = make_url(here).get_backend_name()
    if backend == "postgresql":
        await ask(here, FUNCTION)
    await ask(here, "CREATE TABLE t (id bigint PRIMARY KEY)", TRIGGERS[backend])
    source = made(tmp_path / "s.db", f"{ROW} INSERT INTO t VALUES (2), (3);")
    with pytest.raises(CopyError, match="the target took 2 of 3 rows of t: a trigger"):
        await copy(source, here)
    assert await ask(here, "SELECT count(*) FROM t") == [(0,)]


@pytest.mark.parametrize("engine", ["MyISAM", "Aria"])
async def test_a_table_without_transactions(new, tmp_path, engine):
    """A copy into it could not be undone: it is refused, and the rows stay."""
    here = await new("asyncmy")
    if not await ask(here, f"SELECT 1 FROM information_schema.engines WHERE engine = '{engine}'"):
        pytest.skip("MySQL has no Aria")
    await ask(
        here, f"CREATE TABLE t (id bigint PRIMARY KEY) ENGINE={engine}", "INSERT INTO t VALUES (9)"
    )
    source = made(tmp_path / "s.db", ROW)
    for options in ({"check": True}, {"replace": True}, {"resume": True}):
        with pytest.raises(CopyError, match=rf"the engines of t \({engine}\) have no transactions"):
            await copy(source, here, **options)
    assert await ask(here, "SELECT id FROM t") == [(9,)]


@pytest.mark.parametrize("kind", POSTGRESQL)
async def test_a_table_that_is_no_part_of_it_refers_to_one(new, tmp_path, kind):
    """Nothing has to be deleted there, so that is no obstacle."""
    here = await new(kind)
    await ask(
        here,
        "CREATE TABLE t (id bigint PRIMARY KEY)",
        "CREATE TABLE other (id bigint REFERENCES t)",
    )
    await copy(made(tmp_path / "s.db", ROW), here, verify=True)
    assert await ask(here, "SELECT id FROM t") == [(1,)]


@pytest.mark.parametrize("kind", POSTGRESQL)
async def test_tables_that_inherit_keep_their_rows(new, tmp_path, kind):
    """They are no part of the copy, which neither counts nor deletes them."""
    here = await new(kind)
    await ask(
        here,
        "CREATE TABLE t (id bigint PRIMARY KEY)",
        "CREATE TABLE child (extra text) INHERITS (t)",
        "INSERT INTO child VALUES (5, 'mine')",
    )
    source = made(tmp_path / "s.db", ROW)
    for replace in (False, True):
        await copy(source, here, replace=replace, verify=True)
        assert await ask(here, "SELECT id FROM ONLY t") == [(1,)]
        assert await ask(here, "SELECT * FROM child") == [(5, "mine")]


async def test_a_partitioned_table_is_emptied(new, tmp_path):
    """Its rows are those of its partitions."""
    here = await new("psycopg")
    await ask(
        here,
        "CREATE TABLE t (id bigint PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE part PARTITION OF t FOR VALUES FROM (0) TO (100)",
        "INSERT INTO t VALUES (5)",
    )
    source = made(tmp_path / "s.db", ROW)
    with pytest.raises(CopyError, match="the target is not empty"):
        await copy(source, here)
    await copy(source, here, replace=True, verify=True)
    assert await ask(here, "SELECT id FROM t") == [(1,)]
