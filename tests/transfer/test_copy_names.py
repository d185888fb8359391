"""`qsession.copy`: names of tables that a driver could misread, and sequences of any step."""

from __future__ import annotations

import pytest
from copy_databases import ask
from sqlalchemy import Column, ForeignKey, Integer, MetaData, String, Table, insert
from sqlalchemy.ext.asyncio import create_async_engine

from qsession import copy

pytestmark = pytest.mark.servers

POSTGRESQL = ("asyncpg", "psycopg")


@pytest.mark.parametrize("kind", POSTGRESQL)
@pytest.mark.parametrize("name", ["100%", "a%sb", "x :y"])
async def test_names_with_marks_of_parameters(new, kind, name):
    """Numbers go on behind the rows, and references come back, also when all is copied again."""
    metadata = MetaData()
    table = Table(
        name,
        metadata,
        Column("id", Integer, primary_key=True),
        Column("up%", Integer, ForeignKey(f"{name}.id")),
        Column("word", String(9)),
    )
    there, here = await new("sqlite"), await new(kind)
    source, target = create_async_engine(there), create_async_engine(here)
    try:
        async with source.begin() as connection:
            await connection.run_sync(metadata.create_all)
            await connection.execute(
                insert(table), [{"id": 1, "up%": 2, "word": "a"}, {"id": 2, "up%": 1, "word": "b"}]
            )
        for replace in (False, True):
            await copy(there, here, replace=replace, verify=True)
            kept = await ask(here, "SELECT count(*) FROM pg_constraint WHERE contype = 'f'")
            assert kept == [(1,)]
        async with target.begin() as connection:
            added = await connection.execute(insert(table).returning(table.c.id), {"word": "c"})
            assert added.scalar_one() == 3
    finally:
        await source.dispose()
        await target.dispose()


@pytest.mark.parametrize("kind", POSTGRESQL)
async def test_sequences_of_any_step(new, kind):
    """The next number is one that neither the rows have nor the source has given out."""
    there, here = await new(kind), await new(kind)
    await ask(
        there,
        "CREATE TABLE down (id int GENERATED ALWAYS AS IDENTITY (INCREMENT -1 START -1), v int)",
        "INSERT INTO down (v) VALUES (1), (2), (3)",
        "DELETE FROM down WHERE v = 3",
        "CREATE TABLE up (id int GENERATED ALWAYS AS IDENTITY (INCREMENT 10 START 5), v int)",
        "INSERT INTO up (v) VALUES (1), (2)",
        "CREATE TABLE unused (id int GENERATED ALWAYS AS IDENTITY (START 100), v int)",
        "INSERT INTO unused OVERRIDING SYSTEM VALUE VALUES (7, 1)",
    )
    await copy(there, here, verify=True)
    for table, number in (("down", -4), ("up", 25), ("unused", 100)):
        assert await ask(here, f"INSERT INTO {table} (v) VALUES (9) RETURNING id") == [(number,)]
