"""Foreign keys of PostgreSQL while a source is followed: checked at COMMIT, and without actions.

What has changed is deleted and inserted anew, so a row may be away for a moment. A foreign key that
is checked at once would refuse that, and ON DELETE CASCADE would delete rows that did not change.
MySQL and SQLite do not look at foreign keys while a copy writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from sqlalchemy import Table, text
from sqlalchemy.ext.asyncio import AsyncConnection

from qsession.transfer.names import as_statement, as_value
from qsession.transfer.schema import Completing

_KEYS = text(
    """
    SELECT conrelid::regclass::text, quote_ident(conname), pg_get_constraintdef(oid)
    FROM pg_constraint
    WHERE contype = 'f' AND conparentid = 0
    AND (conrelid = to_regclass(:table) OR confrelid = to_regclass(:table))
    ORDER BY 1, 2
    """
)
_UNCHECKED = text(
    """
    SELECT conrelid::regclass::text, quote_ident(conname) FROM pg_constraint
    WHERE contype = 'f' AND NOT convalidated
    AND (conrelid = to_regclass(:table) OR confrelid = to_regclass(:table))
    ORDER BY 1, 2
    """
)
_ACTION = r"(?:CASCADE|RESTRICT|NO ACTION|SET (?:NULL|DEFAULT)(?: \([^)]*\))?)"
_REST = re.compile(
    rf"(?: ON UPDATE {_ACTION})?(?: ON DELETE {_ACTION})?(?: DEFERRABLE)?(?: INITIALLY DEFERRED)?"
    r"(?: NOT VALID)?\Z"
)
"""What a definition has after the columns: https://www.postgresql.org/docs/current/sql-createtable.html"""
_NOT_VALID = " NOT VALID"


async def defer(target: AsyncConnection, tables: Iterable[Table]) -> Completing:
    """Let foreign keys of these tables, and those to them, be checked at COMMIT only.

    They hold at that moment, so nothing is checked now. Returns the statements that bring them
    back, which are to be kept in the books.
    """
    if target.dialect.name != "postgresql":
        return []
    keys = {
        (where, name): str(definition)
        for table in tables
        for where, name, definition in await target.execute(
            _KEYS, {"table": as_value(target.dialect, table)}
        )
    }
    statements: Completing = []
    for (where, name), definition in sorted(keys.items()):
        kept = definition.removesuffix(_NOT_VALID)
        deferred = f"{_REST.sub('', definition)} DEFERRABLE INITIALLY DEFERRED{_NOT_VALID}"
        change = f"ALTER TABLE IF EXISTS {where} DROP CONSTRAINT IF EXISTS {name}, ADD CONSTRAINT"
        await target.exec_driver_sql(as_statement(target.dialect, f"{change} {name} {deferred}"))
        statements.append((where, as_statement(target.dialect, f"{change} {name} {kept}")))
    return statements


async def bring_back(target: AsyncConnection, statements: Completing) -> None:
    """Bring them back in the transaction that ends it all. The rows are not looked at again."""
    if target.dialect.name == "postgresql":
        await target.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
    for _, statement in statements:
        await target.exec_driver_sql(f"{statement}{_NOT_VALID}")


async def validate(target: AsyncConnection, tables: Iterable[Table]) -> None:
    """Have PostgreSQL note that all rows hold to them; nobody has to wait for that.

    https://www.postgresql.org/docs/current/sql-altertable.html#SQL-ALTERTABLE-DESC-VALIDATE-CONSTRAINT
    """
    if target.dialect.name != "postgresql":
        return
    keys = {
        (where, name)
        for table in tables
        for where, name in await target.execute(
            _UNCHECKED, {"table": as_value(target.dialect, table)}
        )
    }
    for where, name in sorted(keys):
        statement = f"ALTER TABLE {where} VALIDATE CONSTRAINT {name}"
        await target.exec_driver_sql(as_statement(target.dialect, statement))
        await target.commit()
