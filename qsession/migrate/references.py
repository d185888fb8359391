"""Checks whether a migration on SQLite has broken references between tables.

Foreign keys are off during a migration, so SQLite does not check them.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

from qsession.tools.integrity import lacks_the_application

if TYPE_CHECKING:
    from sqlalchemy import Connection

KEYS = 10_000
"""The number of broken references between two tables up to which they are compared one by one."""


def refuse_new_orphans(connection: Connection, outside: Connection) -> None:
    """Raise if there are broken references that did not exist before.

    ``outside`` has a snapshot from before the migration.

    A table whose definition is unchanged is compared key by key, since one reference may have been
    repaired and another one broken. A rebuilt table may have other keys for the same rows, and a
    renamed table may be any of the earlier ones. Both may have as many broken references as before.
    """
    from alembic import util

    after = _orphans(connection)
    if not after:
        return
    before = _orphans(outside)
    was, now = _tables(outside), _tables(connection)
    new = after - before
    for pair in after.keys() & before.keys():
        child = pair[0]
        if was[child] == now[child] and max(before[pair], after[pair]) <= KEYS:
            new[pair] = (_keys(connection, *pair) - _keys(outside, *pair)).total()
    gone = before - after
    for child, parent in sorted(new, key=lambda pair: pair[0] not in was):
        for old in gone:
            if child not in was or (old[0] == child and parent not in was):
                known = min(new[child, parent], gone[old])
                new[child, parent] -= known
                gone[old] -= known
    if new := +new:
        broken = ", ".join(
            f"{count} in {child!r} to {parent!r}" for (child, parent), count in new.items()
        )
        if connection.get_isolation_level() == "AUTOCOMMIT":
            raise util.CommandError(
                f"the migration left references to rows that do not exist: {broken}. Its "
                "autocommit_block() is committed, but its revision is not recorded: restore the "
                "backup, or repair the rows and record the revision with `alembic stamp`"
            )
        raise util.CommandError(
            f"the migration was rolled back because it would leave references to rows that do not "
            f"exist: {broken}. Foreign keys are off during a migration, and ON DELETE does "
            "nothing: let the migration also delete or change the rows with these references"
        )


def _orphans(connection: Connection) -> Counter[tuple[str, str]]:
    """The number of broken references from one table to another. Names are in lower case.

    ``PRAGMA foreign_key_check`` runs table by table, because it fails at a reference to columns
    that are not unique (https://sqlite.org/foreignkeys.html, section 3). It also fails at a
    collation that only the application registers; such a table is skipped.
    """
    found: Counter[tuple[str, str]] = Counter()
    for table in _tables(connection):
        try:
            checked = connection.exec_driver_sql(
                "SELECT parent, count(*) FROM pragma_foreign_key_check(?) GROUP BY parent", (table,)
            ).all()
        except DBAPIError as error:
            if "foreign key mismatch" in str(error.orig):
                found[table, "columns that are not unique"] += 1
            elif not isinstance(error.orig, sqlite3.Error) or not lacks_the_application(error.orig):
                raise
            continue
        for parent, count in checked:
            found[table, parent.lower()] += count
    return found


def _keys(connection: Connection, child: str, parent: str) -> Counter[str]:
    """The keys of the broken references, as text; empty for a table WITHOUT ROWID."""
    quote = connection.dialect.identifier_preparer.quote_identifier
    taken = _names(connection, "SELECT lower(name) FROM pragma_table_xinfo(?)", (child,))
    rowid = next((each for each in ("rowid", "_rowid_", "oid") if each not in taken), None)
    columns: dict[int, list[str]] = {}
    for number, to, column in connection.exec_driver_sql(
        'SELECT id, "table", "from" FROM pragma_foreign_key_list(?) ORDER BY id, seq', (child,)
    ):
        if to.lower() == parent:
            columns.setdefault(number, []).append(f"hex(child.{quote(column)})")
    rows = "FROM pragma_foreign_key_check(?) AS found"
    having = "WHERE found.fkid = ?"
    found: Counter[str] = Counter()
    for number, wanted in columns.items():
        about = (child, number)
        key = " || ',' || ".join(wanted)
        count, numbered = connection.exec_driver_sql(
            f"SELECT count(*), count(found.rowid) {rows} {having}", about
        ).one()
        if rowid is None or not numbered:
            found[""] += count
            continue
        found.update(
            _names(
                connection,
                f"SELECT {key} {rows} CROSS JOIN {quote(child)} AS child "
                f"ON child.{rowid} = found.rowid {having}",
                about,
            )
        )
    return found


def _names(connection: Connection, sql: str, about: tuple[Any, ...]) -> list[str]:
    return list(connection.exec_driver_sql(sql, about).scalars())


def _tables(connection: Connection) -> dict[str, str]:
    """The tables and their definitions."""
    return {
        name.lower(): sql
        for name, sql in connection.exec_driver_sql(
            "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND rootpage > 0"
        )
    }
