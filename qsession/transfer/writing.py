"""How rows are written: by COPY where the driver has it, else by executemany."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

from sqlalchemy import Table
from sqlalchemy.ext.asyncio import AsyncConnection

from qsession.errors import CopyError
from qsession.transfer.kinds import Kind, Wanted
from qsession.transfer.times import EPOCH
from qsession.transfer.wording import counted

Rows = list[tuple[Any, ...]]
Encode = Callable[[Any], Any]


async def write(
    connection: AsyncConnection,
    table: Table,
    names: Sequence[str],
    takes: Sequence[Wanted],
    rows: Rows,
) -> None:
    """Write converted rows in the transaction of ``connection``, which must have begun.

    Raises :class:`CopyError` if a trigger kept some of them out, and what the driver raises.
    Cancelled, or after an error, that transaction is to be rolled
    back.
    """
    taken = await _send(connection, table, names, encoded(rows, takes, connection.dialect.name))
    if taken != len(rows):
        raise CopyError(
            f"the target took {taken} of {counted(len(rows), 'row')} of {table.fullname}: a "
            "trigger there left the others out. Disable it for the copy"
        )


async def _send(connection: AsyncConnection, table: Table, names: Sequence[str], rows: Rows) -> int:
    """Write rows as the driver takes them. How many the database says are there now."""
    driver = connection.dialect.driver
    if driver == "asyncpg":
        raw = await connection.get_raw_connection()
        assert raw.driver_connection is not None
        status = await raw.driver_connection.copy_records_to_table(
            table.name, schema_name=table.schema, columns=list(names), records=rows
        )
        return int(status.rpartition(" ")[2])  # COPY 7
    prepare = connection.dialect.identifier_preparer
    where = prepare.format_table(table)
    columns = ", ".join(prepare.quote(name) for name in names)
    if driver == "psycopg":
        raw = await connection.get_raw_connection()
        assert raw.driver_connection is not None
        statement = f"COPY {where} ({columns}) FROM STDIN".replace("%%", "%")
        async with raw.driver_connection.cursor() as cursor:
            async with cursor.copy(statement) as copy:
                for row in rows:
                    await copy.write_row(row)
            return int(cursor.rowcount)
    mark = "?" if connection.dialect.name == "sqlite" else "%s"
    marks = ", ".join([mark] * len(names))
    result = await connection.exec_driver_sql(
        f"INSERT INTO {where} ({columns}) VALUES ({marks})",  # noqa: S608
        rows,
    )
    return result.rowcount


def encoded(rows: Rows, takes: Sequence[Wanted], dialect: str) -> Rows:
    """As the driver takes them, and as SQLAlchemy keeps them where there is no such type."""
    encoders = [_encoder(each, dialect) for each in takes]
    if not any(encoders):
        return rows
    columns = [
        column if encode is None else [None if value is None else encode(value) for value in column]
        for encode, column in zip(encoders, zip(*rows, strict=True), strict=True)
    ]
    return list(zip(*columns, strict=True))


def _encoder(takes: Wanted, dialect: str) -> Encode | None:
    common = _FOR_ALL.get(takes.kind)
    if dialect == "sqlite":
        return common or _FOR_SQLITE.get(takes.kind)
    if dialect == "postgresql" and takes.native:
        return None
    if takes.kind is Kind.INTERVAL:
        return lambda value: EPOCH + value
    return _utc if takes.aware and dialect != "postgresql" else common


def _utc(value: datetime) -> datetime:
    return value.astimezone(timezone.utc).replace(tzinfo=None)


def _sqlite_number(value: Decimal) -> int | float:
    return int(value) if value == value.to_integral_value() and abs(value) < 2**63 else float(value)


def _sqlite_timestamp(value: datetime) -> str:
    return value.isoformat(" ", timespec="microseconds")


_FOR_ALL: dict[Kind, Encode] = {Kind.BOOLEAN: int, Kind.UUID: lambda value: value.hex}
_FOR_SQLITE: dict[Kind, Encode] = {
    Kind.NUMERIC: _sqlite_number,
    Kind.DATE: lambda value: value.isoformat(),
    Kind.TIME: lambda value: value.isoformat(timespec="microseconds"),
    Kind.TIMESTAMP: _sqlite_timestamp,
    Kind.INTERVAL: lambda value: _sqlite_timestamp(EPOCH + value),
}
