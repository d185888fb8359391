"""What is in a database, as its driver gives it. Nothing of qsession or SQLAlchemy reads here."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import UUID

import asyncmy
import asyncpg
import psycopg

Rows = list[dict[str, Any]]


def dump(path: str | Path) -> list[str]:
    """Schema and rows of a file of SQLite.

    ``iterdump`` of Python 3.13 checks the foreign keys, and fails where they lead nowhere.
    """
    with closing(sqlite3.connect(path)) as raw:
        made = "SELECT name, type, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid"
        found = raw.execute(made).fetchall()
        lines = [sql for _, _, sql in found]
        for name, kind, _ in found:
            if kind == "table":
                rows = raw.execute(f'SELECT * FROM "{name}"')
                lines += [f"{name} {row!r}" for row in rows]
        return lines


async def rows_of(url: str, table: str) -> Rows:
    """The rows of a table, with the names of their columns."""
    parts = urlsplit(url)
    where: dict[str, Any] = {"host": parts.hostname, "port": parts.port, "user": parts.username}
    database = unquote(parts.path).lstrip("/")
    statement = f'SELECT * FROM "{table}"'
    if parts.scheme.startswith("sqlite"):
        with closing(sqlite3.connect("/" + database)) as raw:
            raw.create_collation("unicase", lambda a, b: (a > b) - (a < b))
            raw.row_factory = sqlite3.Row
            return [dict(row) for row in raw.execute(statement)]
    if parts.scheme == "postgresql+asyncpg":
        connection = await asyncpg.connect(**where, database=database)
        try:
            return [dict(row) for row in await connection.fetch(statement)]
        finally:
            await connection.close()
    if parts.scheme == "postgresql+psycopg":
        async with await psycopg.AsyncConnection.connect(**where, dbname=database) as one:
            found = await one.execute(statement.encode())
            names = [each.name for each in found.description or ()]
            return [dict(zip(names, row, strict=True)) for row in await found.fetchall()]
    other = await asyncmy.connect(**where, db=database)
    try:
        async with other.cursor() as cursor:
            await cursor.execute(statement.replace('"', "`"))
            names = [each[0] for each in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in await cursor.fetchall()]
    finally:
        other.close()


def differences(expected: Rows, found: Rows) -> list[str]:
    """Rows that are not there, and rows that are too many, whatever types the databases have."""
    left, lost = list(found), []
    for row in expected:
        equal = next((other for other in left if _equal(row, other)), None)
        if equal is None:
            lost.append(f"lost {row}")
        else:
            left.remove(equal)
    return lost + [f"added {row}" for row in left]


def _equal(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two rows have the same columns, in any order and case, with the same values."""
    one = {name.lower(): value for name, value in row.items()}
    two = {name.lower(): value for name, value in other.items()}
    return one.keys() == two.keys() and all(_same(one[name], two[name]) for name in one)


def _same(one: Any, other: Any) -> bool:
    """Whether a value of a file of SQLite, and what became of it, say the same."""
    if one is None or other is None:
        return one is other
    if type(one) is type(other) and one == other:
        return True
    if isinstance(other, bool):
        return one in (0, 1) and bool(one) == other
    if isinstance(one, int | float) and isinstance(other, int | float | Decimal):
        return Decimal(repr(one)) == Decimal(str(other))
    if isinstance(one, int | float) and isinstance(other, str):  # in a column of text
        return str(one) == other
    if isinstance(other, bytes | bytearray | memoryview):
        return (one.encode() if isinstance(one, str) else one) == bytes(other)
    if isinstance(one, str) and isinstance(other, UUID):
        return UUID(one) == other
    if isinstance(one, str) and isinstance(other, str | datetime | date | time | timedelta):
        return _moment(one) == _moment(other)
    return False


def _moment(value: Any) -> Any:
    """A timestamp in UTC, a date, or a time of the day."""
    if isinstance(value, timedelta):
        return (datetime.combine(date.min, time()) + value).time()
    if isinstance(value, str):
        text = value
        try:
            if len(text) == 10:
                return date.fromisoformat(text)
            if text[2:3] == ":":
                return time.fromisoformat(text)
            head, _, fraction = text.partition(".")  # Python 3.10 wants 3 digits, or 6
            value = datetime.fromisoformat(f"{head}.{fraction:0<6}" if fraction.isdigit() else text)
        except ValueError:
            return text
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(timezone.utc).replace(tzinfo=None)
    return value
