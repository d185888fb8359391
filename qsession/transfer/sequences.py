"""Where a database goes on counting: past every number that was copied, or given out before."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import BigInteger, Table, Text, cast, exc, func, literal, select, text
from sqlalchemy.dialects.postgresql import REGCLASS
from sqlalchemy.ext.asyncio import AsyncConnection

from qsession.errors import ConflictError
from qsession.transfer.names import as_value
from qsession.transfer.plan import TablePlan
from qsession.transfer.reading import bare
from qsession.transfer.wording import reason_of

# Of each column: the sequence behind "serial" and "identity", or behind a default of nextval();
# its first number, its bounds and steps, and the last one that it gave out.
_SEQUENCES = text(
    """
    SELECT a.attname, s.oid::regclass::text, q.seqstart, q.seqmin, q.seqmax, q.seqincrement,
        CASE WHEN has_sequence_privilege(s.oid, 'SELECT, USAGE')
            THEN pg_sequence_last_value(s.oid) END
    FROM pg_attribute a
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    JOIN pg_depend p ON
        (p.classid = 'pg_attrdef'::regclass AND p.objid = d.oid
            AND p.refclassid = 'pg_class'::regclass)
        OR (p.classid = 'pg_class'::regclass AND p.refclassid = 'pg_class'::regclass
            AND p.refobjid = a.attrelid AND p.refobjsubid = a.attnum AND p.deptype IN ('a', 'i'))
    JOIN pg_class s ON s.oid = CASE WHEN p.classid = 'pg_attrdef'::regclass
        THEN p.refobjid ELSE p.objid END AND s.relkind = 'S'
    JOIN pg_sequence q ON q.seqrelid = s.oid
    WHERE a.attrelid = to_regclass(:table) AND a.attnum > 0 AND NOT a.attisdropped
    GROUP BY 1, 2, 3, 4, 5, 6, 7
    """
)


# The tables with AUTOINCREMENT (https://sqlite.org/autoinc.html).
_AUTOINCREMENT = text(
    """
    SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE '%AUTOINCREMENT%'
    AND name = :table COLLATE NOCASE
    AND EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'sqlite_sequence')
    """
)
_NEXT = re.compile(r"\) .*\bAUTO_INCREMENT=(\d+)")
_LOCK_WAIT = 60
"""Seconds to wait for the others that use a table, before its numbers are left as they are."""


async def past_the_rows(
    source: AsyncConnection, target: AsyncConnection, plans: Sequence[TablePlan]
) -> list[str]:
    """See to it that the next number in each table of the target is a new one.

    It comes after the greatest one of the rows, and after those that the source gave to rows that
    were deleted since, as far as both databases remember such numbers: in sequences, by
    AUTOINCREMENT and by AUTO_INCREMENT. What is ahead already stays there.

    Returns statements for :func:`after_commit`.
    """
    later: list[str] = []
    for plan in plans:
        given = await _given_out(source, plan.source)
        if target.dialect.name == "postgresql":
            await _set_sequences(target, plan.target, given)
        elif target.dialect.name == "sqlite":
            await _set_autoincrement(target, plan.target, given)
        else:
            later += await _auto_increment(target, plan.target, given)
    return later


async def after_commit(target: AsyncConnection, statements: Sequence[str]) -> list[str]:
    """Send what MySQL would have committed the rows with. Returns notes on what it refused."""
    notes = []
    for statement in statements:
        try:
            await target.exec_driver_sql(f"SET SESSION lock_wait_timeout = {_LOCK_WAIT}")
            await target.exec_driver_sql(statement)
        except (exc.DBAPIError, ConflictError) as error:
            notes.append(f"not done: {statement}. The database says: {reason_of(error)}")
    return notes


async def _given_out(source: AsyncConnection, table: Table) -> dict[str, int]:
    """For each column that numbers itself the last number, as far as the source remembers it."""
    if source.dialect.name == "postgresql":
        found = await source.execute(_SEQUENCES, {"table": as_value(source.dialect, table)})
        return {column: int(last) for column, *_, last in found if last is not None}
    if source.dialect.name == "sqlite":
        key = [each.name for each in table.primary_key]
        last = await _autoincremented(source, table)
        return {} if last is None else {key[0]: last}
    numbered = _numbered(table)
    if numbered is None:
        return {}
    name = source.dialect.identifier_preparer.format_table(table)
    shown = await source.exec_driver_sql(f"SHOW CREATE TABLE {name}")
    written = str(shown.mappings().one()["Create Table"])
    found_next = _NEXT.search(written.rpartition("\n")[2])
    return {numbered: int(found_next[1]) - 1} if found_next else {}


async def _autoincremented(source: AsyncConnection, table: Table) -> int | None:
    of = {"table": table.name}
    if len(table.primary_key) != 1 or await source.scalar(_AUTOINCREMENT, of) is None:
        return None
    last = await source.scalar(
        text("SELECT seq FROM sqlite_sequence WHERE name = :table COLLATE NOCASE"), of
    )
    return last if isinstance(last, int) else None


def _numbered(table: Table) -> str | None:
    """The column of a table of MySQL that has AUTO_INCREMENT."""
    return next((each.name for each in table.columns if each.autoincrement is True), None)


async def _set_sequences(target: AsyncConnection, table: Table, given: dict[str, int]) -> None:
    of = {"table": as_value(target.dialect, table)}
    found = (await target.execute(_SEQUENCES, of)).all()
    for column, sequence, start, least, greatest, step, last in found:
        further: Any = max if step > 0 else min
        numbers = [given.get(column), await _furthest(target, table, column, step > 0)]
        known = [each for each in numbers if each is not None]
        if not known:
            continue
        value = min(max(further(known), least), greatest)
        begun = start if last is None else last
        if further(value, begun) == value:
            named = cast(cast(literal(sequence), Text), REGCLASS)
            await target.execute(select(func.setval(named, literal(value, BigInteger))))


async def _set_autoincrement(target: AsyncConnection, table: Table, given: dict[str, int]) -> None:
    number = max(given.get(each.name, 0) for each in table.primary_key) if table.primary_key else 0
    name = await target.scalar(_AUTOINCREMENT, {"table": table.name}) if number else None
    if name is None:
        return
    of = {"name": name, "number": number}
    found = await target.execute(
        text("UPDATE sqlite_sequence SET seq = max(seq, :number) WHERE name = :name"), of
    )
    if not found.rowcount:
        await target.execute(
            text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :number)"), of
        )


async def _auto_increment(
    target: AsyncConnection, table: Table, given: dict[str, int]
) -> list[str]:
    """The statement that sets it. A smaller number than that of the rows changes nothing."""
    column = _numbered(table)
    if column is None or column not in given:
        return []
    if given[column] <= (await _furthest(target, table, column) or 0):
        return []
    name = target.dialect.identifier_preparer.format_table(table)
    return [f"ALTER TABLE {name} AUTO_INCREMENT = {given[column] + 1}"]


async def _furthest(
    target: AsyncConnection, table: Table, column: str, ascending: bool = True
) -> int | None:
    """The greatest number, or the least. A text may be made of one of a sequence, and is none."""
    furthest = func.max if ascending else func.min
    found = await target.scalar(select(furthest(bare(table).c[column])))
    return int(found) if isinstance(found, int | float | Decimal) else None
