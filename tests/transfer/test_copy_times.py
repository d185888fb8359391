"""`qsession.copy`: dates, timestamps and intervals that Python or a driver takes for others."""

from __future__ import annotations

import pytest
from copy_databases import ask, made

from qsession import CopyError, copy

pytestmark = pytest.mark.servers

POSTGRESQL = ("asyncpg", "psycopg")


@pytest.mark.parametrize("kind", POSTGRESQL)
async def test_the_first_and_the_last_date_are_not_infinite(new, tmp_path, kind):
    """There and back they are the dates that they were."""
    script = """
    CREATE TABLE t (id INTEGER PRIMARY KEY, day DATE, moment DATETIME);
    INSERT INTO t VALUES (1, '9999-12-31', '9999-12-31 23:59:59.999999'),
                         (2, '0001-01-01', '0001-01-01 00:00:00.000000');
    """
    source, here, back = made(tmp_path / "s.db", script), await new(kind), await new("sqlite")
    await copy(source, here, verify=True)
    assert await ask(here, "SELECT day::text, moment::text FROM t ORDER BY id") == [
        ("9999-12-31", "9999-12-31 23:59:59.999999"),
        ("0001-01-01", "0001-01-01 00:00:00"),
    ]
    await copy(here, back, verify=True)
    every = "SELECT day, moment FROM t ORDER BY id"
    assert await ask(back, every) == await ask(source, every)


@pytest.mark.parametrize("kind", POSTGRESQL)
async def test_infinity(new, kind):
    """PostgreSQL takes what PostgreSQL has, also in an array. The others know no such date."""
    there, here = await new(kind), await new(kind)
    await ask(
        there,
        "CREATE TABLE t (id integer PRIMARY KEY, day date, at timestamp, zoned timestamptz, "
        "days date[])",
        "INSERT INTO t VALUES "
        "(1, 'infinity', 'infinity', 'infinity', '{infinity}'), "
        "(2, '-infinity', '-infinity', '-infinity', '{-infinity}'), "
        "(3, '2020-02-29', '9999-12-31 23:59:59.999999', '9999-12-31 23:59:59.999999Z', "
        "'{9999-12-31}')",
    )
    every = "SELECT id, day::text, at::text, zoned::text, days::text FROM t ORDER BY id"
    await copy(there, here, verify=True)
    assert await ask(here, every) == await ask(there, every)
    await ask(there, "ALTER TABLE t DROP days")
    with pytest.raises(CopyError, match="infinity, which the database does not know") as raised:
        await copy(there, await new("sqlite"), zone="UTC")
    assert sum(raised.value.counts.values()) == 6


@pytest.mark.parametrize("kind", POSTGRESQL)
async def test_dates_before_the_first_year(new, kind):
    """Python knows none: the rows are named."""
    there, here = await new(kind), await new(kind)
    await ask(
        there,
        "CREATE TABLE t (id integer PRIMARY KEY, day date, at timestamp)",
        "INSERT INTO t VALUES (7, '0044-03-15 BC', '20000-01-01 00:00:00')",
    )
    with pytest.raises(CopyError, match="not a date or timestamp in ISO 8601") as raised:
        await copy(there, here)
    assert [each.row for each in raised.value.problems] == ["id=7"] * 2


@pytest.mark.parametrize("kind", POSTGRESQL)
@pytest.mark.parametrize("other", POSTGRESQL)
async def test_intervals_keep_their_parts(new, kind, other):
    """24 hours are no day where the clocks change, and a month has no fixed length."""
    there, here = await new(kind), await new(other)
    await ask(
        there,
        "CREATE TABLE t (id integer PRIMARY KEY, span interval)",
        "INSERT INTO t VALUES (1, '24:00:00'), (2, '1 day -01:00:00'), (3, '-1 mons +2 days'), "
        "(4, '-00:00:00.000001'), (5, '14 mons -3 days 25:01:02.5'), (6, '0'), (7, NULL)",
    )
    every = "SELECT span::text FROM t ORDER BY id"
    await copy(there, here, verify=True)
    assert await ask(here, every) == await ask(there, every)


@pytest.mark.parametrize("kind", POSTGRESQL)
async def test_intervals_of_months(new, kind):
    """No other database has anything like them: such rows are reported."""
    there, here = await new(kind), await new("sqlite")
    await ask(
        there,
        "CREATE TABLE t (id integer PRIMARY KEY, span interval)",
        "INSERT INTO t VALUES (1, '3 days 04:05:06.5'), (2, '1 month')",
    )
    with pytest.raises(CopyError, match=r"t\.span: an interval of months"):
        await copy(there, here)
