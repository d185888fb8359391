"""`qsession.copy`: values that a database, or a type of a column, would make others of."""

from __future__ import annotations

from uuid import UUID

import pytest
from copy_databases import ask
from sqlalchemy import Column, Integer, Interval, MetaData, Table, Uuid, make_url

from qsession import CopyError, copy

pytestmark = pytest.mark.servers

POSTGRESQL = ("asyncpg", "psycopg")


@pytest.mark.parametrize("kind", POSTGRESQL)
async def test_types_that_the_models_keep_in_others(new, kind):
    """A UUID in CHAR(32), an interval in a timestamp: what fits by the check is copied."""
    metadata = MetaData()
    table = Table(
        "t",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("key", Uuid(native_uuid=False)),
        Column("span", Interval(native=False)),
    )
    there, here = await new("sqlite"), await new(kind)
    key = UUID("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")
    statements = (
        "CREATE TABLE t (id INTEGER PRIMARY KEY, key CHAR(32), span DATETIME)",
        f"INSERT INTO t VALUES (1, '{key.hex}', '1970-01-02 00:00:01.000000')",
    )
    await ask(there, *statements)
    await copy(there, here, metadata=metadata, check=True)
    await copy(there, here, metadata=metadata, verify=True)
    assert await ask(here, f"SELECT key = '{key.hex}', span::text FROM {table.name}") == [
        (True, "1970-01-02 00:00:01")
    ]
    again = await new("sqlite")
    await copy(here, again, metadata=metadata, verify=True)
    every = "SELECT key, span FROM t"
    assert await ask(again, every) == await ask(there, every)


async def test_json_that_is_a_number(new):
    """SQLite makes a number of it, in a column of type JSON: one that is not the same is named."""
    there, here = await new("psycopg"), await new("sqlite")
    await ask(
        there,
        "CREATE TABLE t (id integer PRIMARY KEY, v jsonb)",
        "INSERT INTO t VALUES (1, '12345678901234567890123'), (2, '9007199254740993.5'), "
        "(3, '9007199254740993.0'), (4, '0.1000000000000000055511151231257827'), "
        "(5, '9007199254740993'), (6, '1.50'), (7, '[12345678901234567890123]'), (8, 'true')",
    )
    with pytest.raises(CopyError, match="more digits than SQLite keeps") as raised:
        await copy(there, here)
    assert [each.row for each in raised.value.problems] == ["id=1", "id=2", "id=3", "id=4"]
    await ask(there, "DELETE FROM t WHERE id < 5")
    await copy(there, here, verify=True)
    assert await ask(here, "SELECT v FROM t ORDER BY id") == [
        (9007199254740993,),
        (1.5,),
        ("[12345678901234567890123]",),
        ("true",),
    ]


@pytest.mark.parametrize(
    "mode",
    [
        "NO_BACKSLASH_ESCAPES",
        "EMPTY_STRING_IS_NULL",
        "PAD_CHAR_TO_FULL_LENGTH",
        "ANSI_QUOTES,NO_ZERO_DATE",
    ],
)
async def test_modes_of_the_server(new, mode):
    """What it makes of texts for others does not change what is copied, there and back."""
    source, here, back = await new("sqlite"), await new("asyncmy"), await new("sqlite")
    await ask(
        source,
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v VARCHAR(20), b BLOB, c CHAR(9))",
        "INSERT INTO t VALUES (1, 'C:\\new', x'615c6227', 'ab'), (2, '', x'', '')",
    )
    maria = make_url(here).update_query_dict({"init_command": f"SET sql_mode = '{mode}'"})
    await ask(
        here,
        "CREATE TABLE t (id bigint PRIMARY KEY, v varchar(20), b longblob, c char(9))",
    )
    await copy(source, maria, verify=True)
    await copy(maria, back, verify=True)
    every = "SELECT v, b, c FROM t ORDER BY id"
    assert await ask(here, every) == await ask(source, every) == await ask(back, every)


@pytest.mark.parametrize("kind", POSTGRESQL)
async def test_settings_of_the_database(new, kind):
    """How it writes floats, dates and bytes for others does not change what is copied."""
    there, here = await new(kind), await new("sqlite")
    name = make_url(there).database
    settings = (
        "extra_float_digits = 0",
        "datestyle = 'SQL, DMY'",
        "timezone = 'Europe/Amsterdam'",
        "bytea_output = 'escape'",
        "intervalstyle = 'sql_standard'",
    )
    await ask(there, *(f"ALTER DATABASE {name} SET {setting}" for setting in settings))
    await ask(
        there,
        "CREATE TABLE t (id integer PRIMARY KEY, x double precision, day date, at timestamptz, "
        "b bytea, span interval)",
        "INSERT INTO t VALUES (1, 0.1::float8 + 0.2::float8, '2024-02-01', "
        "'1900-01-01 00:00:00Z', 'a\\000b', '-1 days -02:03:04')",
    )
    await copy(there, here, zone="UTC", verify=True)
    assert await ask(here, "SELECT x, day, at, b, span FROM t") == [
        (
            0.1 + 0.2,
            "2024-02-01",
            "1900-01-01 00:00:00.000000",
            b"a\0b",
            "1969-12-30 21:56:56.000000",
        )
    ]


@pytest.mark.parametrize(
    ("type_", "value", "reason"),
    [
        ("double(7,2)", 1.234, "more than 2 digits after the point"),
        ("double(7,2)", 123456.5, "more than 5 digits before the point"),
        ("float(7,2)", 1.0625, "more than 2 digits after the point"),
        ("double unsigned", -1.5, "a negative number"),
        ("float unsigned", -1.5, "a negative number"),
        ("decimal(10,2) unsigned", -1.5, "a negative number"),
    ],
)
async def test_numbers_that_mysql_would_change(new, type_, value, reason):
    """It rounds floats of so many digits in silence, and refuses signs: the check tells of both."""
    there, here = await new("sqlite"), await new("asyncmy")
    await ask(
        there,
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v FLOAT)",
        f"INSERT INTO t VALUES (1, {value}), (2, 1.25), (3, NULL)",
    )
    await ask(here, f"CREATE TABLE t (id bigint PRIMARY KEY, v {type_})")
    with pytest.raises(CopyError, match=f"t.v: {reason}") as raised:
        await copy(there, here, check=True)
    assert [each.row for each in raised.value.problems] == ["id=1"]
    await ask(there, "DELETE FROM t WHERE id = 1")
    await copy(there, here, verify=True)
    assert await ask(here, "SELECT v FROM t ORDER BY id") == [(1.25,), (None,)]


@pytest.mark.parametrize("kind", POSTGRESQL)
async def test_arrays_that_do_not_begin_at_one(new, kind):
    """A list of Python does not say where it begins: they are counted, and nothing is copied."""
    there, here = await new(kind), await new(kind)
    await ask(
        there,
        "CREATE TABLE t (id integer PRIMARY KEY, v integer[])",
        r"INSERT INTO t VALUES (1, '[0\:1]={7,8}'), (2, '[1\:1][2\:3]={{7,8}}'), (3, '{1,2}'), "
        "(4, '{{1},{2}}'), (5, '{}'), (6, NULL)",
    )
    with pytest.raises(CopyError, match="an array with subscripts that do not begin at 1") as found:
        await copy(there, here, check=True)
    assert sum(found.value.counts.values()) == 2
    await ask(there, "DELETE FROM t WHERE id < 3")
    assert (await copy(there, here, verify=True)).rows == 4


@pytest.mark.parametrize("kind", POSTGRESQL)
async def test_numbers_in_arrays_of_json(new, kind):
    """They keep their digits, also in a domain: Python's floats have no part in it."""
    there, here = await new(kind), await new(kind)
    for each in there, here:
        await ask(
            each,
            "CREATE DOMAIN many AS jsonb[]",
            "CREATE TABLE t (id integer PRIMARY KEY, a json[], b jsonb[], c many)",
        )
    numbers = "array['0.12345678901234567890123', '12345678901234567890.50', 'null', '\"é\"']"
    await ask(
        there,
        f"INSERT INTO t VALUES (1, {numbers}::json[], {numbers}::jsonb[], {numbers}::jsonb[]), "
        "(2, '{NULL}', '{}', NULL), (3, '{{1.10},{2}}', '{{1.10},{2}}', '{}')",
    )
    every = "SELECT a::text, b::text, c::text FROM t ORDER BY id"
    await copy(there, here, verify=True)
    assert await ask(here, every) == await ask(there, every)


async def test_floats_of_some_digits(new):
    """What MySQL keeps in one column it takes in another one of the same type."""
    there, here = await new("asyncmy"), await new("asyncmy")
    await ask(
        there,
        "CREATE TABLE t (id int PRIMARY KEY, a float(10,3), b double(10,3))",
        "INSERT INTO t VALUES (1, 1234.567, 1234.567), (2, -0.1, -0.1), (3, 0, 1234567.891)",
    )
    await copy(there, here, verify=True)
    every = "SELECT a * 1e0, b FROM t ORDER BY id"
    assert await ask(here, every) == await ask(there, every)
