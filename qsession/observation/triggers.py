"""Triggers that let PostgreSQL tell of commits.

A server notifies nobody by itself. One trigger on each observed table does, once for each statement
that changes it; PostgreSQL delivers the notification when the transaction commits
(https://www.postgresql.org/docs/current/sql-notify.html).
"""

from __future__ import annotations

from sqlalchemy import Connection, TableClause, exc, inspect
from sqlalchemy.orm import Mapper

CHANNEL = "qsession_changes"
"""Each payload is the name of a table. An empty one means any table."""
NAME = "qsession_changed"
"""The name of the function, and of each trigger."""
LOCK = f"SELECT pg_advisory_xact_lock({int.from_bytes(NAME.encode()[-8:], 'big')})"
"""Two that replace the function at once would fail: "tuple concurrently updated"."""
FUNCTION = f"""
CREATE OR REPLACE FUNCTION {NAME}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('{CHANNEL}', TG_TABLE_NAME);
    RETURN NULL;
END $$
"""
TRIGGER = (
    f"CREATE TRIGGER {NAME} AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s "
    f"FOR EACH STATEMENT EXECUTE FUNCTION {NAME}()"
)


def install_triggers(connection: Connection, *tables: object) -> None:
    """Let PostgreSQL notify observers of changes of ``tables``. It may be called again.

    Several processes may call it at once: one waits until the other has committed.

    ``tables``: tables, mapped classes or names. Call it in a migration, with ``op.get_bind()``, or
    by ``await connection.run_sync(install_triggers, Order)``. The caller commits. No effect on
    other databases, so that one migration serves all.

    Raises the errors of the database, and `sqlalchemy.exc.ArgumentError` for what is no table.
    """
    if connection.dialect.name != "postgresql":
        return
    connection.exec_driver_sql(LOCK)
    connection.exec_driver_sql(FUNCTION)
    for table in _quoted(connection, tables):
        connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {NAME} ON {table}")
        connection.exec_driver_sql(TRIGGER % table)


def remove_triggers(connection: Connection, *tables: object) -> None:
    """Undo `install_triggers` for ``tables``. The function stays, for other tables."""
    if connection.dialect.name != "postgresql":
        return
    for table in _quoted(connection, tables):
        connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {NAME} ON {table}")


def _quoted(connection: Connection, tables: tuple[object, ...]) -> list[str]:
    """The names of tables as SQL."""
    preparer, found = connection.dialect.identifier_preparer, []
    for each in tables:
        if isinstance(each, str):
            found.append(preparer.quote(each))
            continue
        mapper = inspect(each, raiseerr=False)
        parts = mapper.tables if isinstance(mapper, Mapper) else [each]
        for part in parts:
            if not isinstance(part, TableClause):
                raise exc.ArgumentError(f"{each!r} is not a table, a mapped class or a name")
            found.append(preparer.format_table(part))
    return found
