"""How rows are read: out of one snapshot, as the driver gives them, a batch at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from datetime import datetime, timezone
from operator import methodcaller
from typing import Any

from sqlalchemy import (
    URL,
    Column,
    ColumnElement,
    Dialect,
    Select,
    Table,
    cast,
    column,
    event,
    exc,
    func,
    literal_column,
    select,
    table,
    text,
    types,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from qsession.engine import create_async_engine
from qsession.transfer.codecs import teach
from qsession.transfer.collations import stand_in
from qsession.transfer.inheritance import own_rows
from qsession.transfer.kinds import Kind, kind_of, plain
from qsession.transfer.notes import naming
from qsession.transfer.untouched import untouched
from qsession.waiting.handoff import to_end

BATCH_ROWS = 2_000
BATCH_BYTES = 1024 * 1024
"""Of texts and blobs. Rows with large ones come in smaller batches."""
_FIRST_ROWS = 64
_PATIENCE = 3600
"""Seconds that MySQL waits for the copy to take the next row, or to send something."""
_SETTINGS = {
    "datestyle": "ISO, YMD",
    "intervalstyle": "iso_8601",
    "timezone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "standard_conforming_strings": "on",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "row_security": "off",
}
"""Of PostgreSQL, whatever the role and the database say. The psycopg driver gets text:
https://www.postgresql.org/docs/current/runtime-config-client.html"""


_SQL_MODE = (
    "CONCAT(IF(FIND_IN_SET('ANSI_QUOTES', @@sql_mode), 'ANSI_QUOTES,', ''), "
    "'STRICT_ALL_TABLES,NO_AUTO_VALUE_ON_ZERO,NO_ENGINE_SUBSTITUTION')"
)
"""Of MySQL, in full: other modes make NULL of an empty text, fill it up, or keep its backslashes.
Which quotes names have is what SQLAlchemy has asked for before, so that stays.
https://mariadb.com/kb/en/sql-mode/"""


def open_engine(url: URL, collations: Iterable[str] = ()) -> AsyncEngine:
    """An engine for a copy: what SQLite does runs in a thread, whatever its length.

    A text in SQLite need not be valid UTF-8. Then it comes with surrogates, so that the row can be
    named, instead of an error that names none. A collation that the file names and SQLite lacks is
    stood in for, and so are ``collations``.
    """
    if url.get_backend_name() != "sqlite":
        engine = create_async_engine(url)
        teach(engine)
        return engine
    engine = create_async_engine(url, inline=False)

    def prepare_file(connection: Any, record: Any) -> None:
        connection.raw.text_factory = methodcaller("decode", "utf-8", "surrogateescape")
        stand_in(connection.raw, collations)

    event.listen(engine.sync_engine, "connect", prepare_file)
    return engine


@contextlib.asynccontextmanager
async def connected(
    engine: AsyncEngine, side: str = "", url: URL | None = None
) -> AsyncIterator[AsyncConnection]:
    """A connection, rolled back at the end. Cancelled, that to a server is dropped instead.

    Its driver may be anywhere in a statement or a COPY then, and a ROLLBACK would fail. One that
    fails all the same is no error: the connection is lost, so the server rolls back by itself, and
    what is raised is what was raised before.

    Raises what SQLAlchemy and the driver raise when it cannot be opened, with a note on ``side``
    and on ``url``, if the user knows it by another one than the engine.
    """
    with naming(side, url or engine.url):
        try:
            connection = await engine.connect()
        except (TypeError, ValueError) as error:  # of arguments in the URL that the driver lacks
            raise exc.ArgumentError(f"a parameter of the URL is wrong: {error}") from error
    try:
        yield connection
    except asyncio.CancelledError:
        if connection.dialect.name != "sqlite":
            await connection.invalidate()
        raise
    finally:
        await to_end(_leave(connection))


async def _leave(connection: AsyncConnection) -> None:
    try:
        await connection.rollback()
    except Exception:  # whatever the driver says of a connection that it has lost
        await connection.invalidate()
    await connection.close()


@contextlib.asynccontextmanager
async def snapshot(url: URL) -> AsyncIterator[AsyncConnection]:
    """A connection in a read-only transaction that sees one state of the whole database.

    On SQLite in WAL mode it waits for no writer, and none waits for it. A file in another mode
    stays in that: while it is read, nobody can write to it. Cancelled: it is rolled back.
    """
    with naming("source", url):
        engine = open_engine(await asyncio.to_thread(untouched, url))
    try:
        async with connected(engine, "source", url) as connection:
            dialect = connection.dialect.name
            if dialect == "sqlite":
                await connection.execution_options(qsession_access="read")
                await connection.execute(text("SELECT count(*) FROM sqlite_master"))
            elif dialect == "postgresql":
                await connection.execution_options(
                    isolation_level="REPEATABLE READ", postgresql_readonly=True
                )
                await settle(connection)
            else:
                await connection.execution_options(isolation_level="REPEATABLE READ")
                await settle(connection)
                await connection.exec_driver_sql(
                    "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY"
                )
            yield connection
    finally:
        await engine.dispose()


async def settle(connection: AsyncConnection) -> None:
    """Settings of a server's session that decide how values are written, and how long it waits.

    On PostgreSQL they hold until the transaction ends: a pool between may give the session away.
    Where a policy would hide rows of a table, PostgreSQL refuses to read it, as it does pg_dump.
    """
    if connection.dialect.name == "postgresql":
        settings = (func.set_config(*each, True) for each in _SETTINGS.items())
        await connection.execute(select(*settings))
    elif connection.dialect.name in ("mysql", "mariadb"):
        await connection.exec_driver_sql(
            f"SET SESSION sql_mode = {_SQL_MODE}, "
            f"time_zone = '+00:00', net_write_timeout = {_PATIENCE}, "
            f"net_read_timeout = {_PATIENCE}, wait_timeout = {_PATIENCE}"
        )


def order_of(table: Table, dialect: Dialect) -> list[ColumnElement[Any]]:
    """What puts the rows of a table in the same order each time; empty where nothing does."""
    if table.primary_key:
        return [column(each.name) for each in table.primary_key]
    return [literal_column("rowid")] if dialect.name == "sqlite" else []


def select_rows(
    source: Table, names: Sequence[str], dialect: Dialect, order: Sequence[ColumnElement[Any]] = ()
) -> Select[Any]:
    """The columns of a table without their types, so that nothing is converted on the way."""
    expressions = [_expression(source.columns[name], dialect) for name in names]
    rows = bare(source)
    return own_rows(select(*expressions).select_from(rows).order_by(*order), rows, source)


def bare(source: Table) -> Any:
    """A table by its name, with columns that have no types."""
    columns: list[Any] = [column(each.name) for each in source.columns]
    return table(source.name, *columns, schema=source.schema)


def _expression(source: Column[Any], dialect: Dialect) -> ColumnElement[Any]:
    """What drivers make something else of: PostgreSQL's JSON, also in arrays, and its intervals.

    A float of 32 bits is asked for as one of 64: what psycopg is sent of it is the shortest text
    that stands for it, 1.1, which is another number. MySQL shows six digits, unless it is part of a
    calculation.
    """
    as_it_is: ColumnElement[Any] = column(source.name)
    kind = kind_of(source.type, dialect)
    if dialect.name == "postgresql" and kind in (Kind.JSON, Kind.INTERVAL):
        return cast(as_it_is, types.Text)
    type_ = plain(source.type)
    if isinstance(type_, types.ARRAY) and kind_of(type_.item_type, dialect) is Kind.JSON:
        return cast(as_it_is, types.ARRAY(types.Text))
    if dialect.name == "postgresql" and kind is Kind.FLOAT:
        return cast(as_it_is, types.Double)
    if dialect.name in ("mysql", "mariadb") and kind is Kind.FLOAT:
        return (as_it_is * literal_column("1e0")).label(source.name)
    return as_it_is


def read_as_utc(source: Table, names: Sequence[str]) -> list[int]:
    """Positions of columns that are points in time, which MySQL's drivers give without a zone."""
    return [
        at
        for at, name in enumerate(names)
        if isinstance(plain(source.columns[name].type), mysql.TIMESTAMP)
    ]


def with_utc(value: Any) -> Any:
    return value.replace(tzinfo=timezone.utc) if isinstance(value, datetime) else value


async def batches(
    connection: AsyncConnection, rows: Select[Any]
) -> AsyncGenerator[list[Any], None]:
    """The rows of a query, as many at a time as fit into ``BATCH_ROWS`` and about ``BATCH_BYTES``.

    Close it (``contextlib.aclosing``): the cursor on the server is open until then.
    """
    result = await connection.stream(rows, execution_options={"max_row_buffer": 1})
    try:
        size = _FIRST_ROWS
        while batch := await result.fetchmany(size):
            yield batch
            each = max(1, _bytes(batch) // len(batch))
            size = max(1, min(BATCH_ROWS, 4 * size, BATCH_BYTES // each))
    except BaseException:
        if connection.dialect.name in ("mysql", "mariadb") and not connection.invalidated:
            await connection.invalidate()  # to close the cursor would be to fetch all the rest
        raise
    finally:
        with contextlib.suppress(Exception):  # of a connection that is lost, as told above
            await to_end(result.close())


def _bytes(rows: Sequence[Any]) -> int:
    return sum(len(value) for row in rows for value in row if isinstance(value, str | bytes))


async def count_rows(connection: AsyncConnection, source: Table) -> int:
    """How many rows a table has."""
    rows = bare(source)
    query = own_rows(select(func.count()).select_from(rows), rows, source)
    found = await connection.scalar(query)
    return int(found or 0)
