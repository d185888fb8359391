"""Where PostgreSQL goes on counting: past every number that was copied."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import BigInteger, Text, cast, exc, func, literal, select, text
from sqlalchemy import column as column_
from sqlalchemy.dialects.postgresql import REGCLASS
from sqlalchemy.ext.asyncio import AsyncConnection

from .plan import TablePlan
from .reading import bare

# Of each column: the sequence behind "serial" and "identity", or behind a default of nextval().
_SEQUENCES = text(
    """
    SELECT a.attname, s.oid::regclass::text, q.seqmax
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
    GROUP BY 1, 2, 3
    """
)


async def past_the_rows(
    source: AsyncConnection, target: AsyncConnection, plans: Sequence[TablePlan]
) -> None:
    """Set each sequence of the tables past the greatest number in its column.

    Where SQLite's AUTOINCREMENT remembers a greater one, of a row that was deleted, it is set past
    that. MySQL and SQLite see to it by themselves. A sequence that is ahead already stays there.
    """
    if target.dialect.name != "postgresql":
        return
    used = await _autoincremented(source)
    prepare = target.dialect.identifier_preparer
    for plan in plans:
        table = prepare.format_table(plan.target)
        found = (await target.execute(_SEQUENCES, {"table": table})).all()
        key = [each.name for each in plan.source.primary_key]
        for column, sequence, limit in found:
            highest = select(func.max(bare(plan.target).c[column]))
            greatest = await target.scalar(highest)
            if key == [column]:
                greatest = max(greatest or 0, used.get(plan.source.name, 0)) or None
            if greatest is None or greatest < 1:
                continue
            value = literal(min(int(greatest), limit), BigInteger)
            named = cast(cast(literal(sequence), Text), REGCLASS)
            await target.execute(
                select(func.setval(named, value))
                .select_from(text(sequence))
                .where(column_("last_value") <= value)
            )


async def _autoincremented(source: AsyncConnection) -> dict[str, int]:
    if source.dialect.name != "sqlite":
        return {}
    try:
        rows = await source.execute(text("SELECT name, seq FROM sqlite_sequence"))
    except exc.OperationalError:  # no table has AUTOINCREMENT
        return {}
    return {str(name): int(number) for name, number in rows if isinstance(number, int)}
