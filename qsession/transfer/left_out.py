"""What of a schema no table of the target has: named, so that nobody has to find it missing."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, exc, inspect, text

from qsession.transfer.inheritance import not_inherited

_OF_POSTGRESQL = text(
    """
    WITH ours AS (
        SELECT c.* FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE pg_table_is_visible(c.oid) AND n.nspname !~ '^pg_|^information_schema$'
    )
    SELECT relname, 'left out, as it is a materialized view' FROM ours WHERE relkind = 'm'
    UNION ALL
    SELECT relname, 'left out the trigger ' || tgname
    FROM pg_trigger JOIN ours ON ours.oid = tgrelid WHERE NOT tgisinternal
    UNION ALL
    SELECT relname, 'left out the rule ' || rulename
    FROM pg_rewrite JOIN ours ON ours.oid = ev_class WHERE rulename <> '_RETURN'
    UNION ALL
    SELECT relname, 'left out the exclusion constraint ' || conname
    FROM pg_constraint JOIN ours ON ours.oid = conrelid WHERE contype = 'x'
    UNION ALL
    SELECT relname, 'left out DEFERRABLE of the constraint ' || conname
    FROM pg_constraint JOIN ours ON ours.oid = conrelid
    WHERE condeferrable AND contype IN ('p', 'u')
    UNION ALL
    SELECT relname, 'left out its row-level security' FROM ours WHERE relrowsecurity
    ORDER BY 1, 2
    """
)
# SQLAlchemy does not reflect defaults of sequences, which MariaDB has.
_OF_MYSQL = text(
    """
    SELECT event_object_table, concat('left out the trigger ', trigger_name)
    FROM information_schema.triggers WHERE trigger_schema = database()
    UNION ALL
    SELECT concat(table_name, '.', column_name), 'left out its attribute INVISIBLE'
    FROM information_schema.columns
    WHERE table_schema = database() AND extra LIKE '%INVISIBLE%'
    UNION ALL
    SELECT concat(table_name, '.', column_name), concat('left out its default ', column_default)
    FROM information_schema.columns
    WHERE table_schema = database() AND column_default LIKE 'nextval(%'
    ORDER BY 1, 2
    """
)
_TRIGGERS_OF_SQLITE = text(
    "SELECT name FROM sqlite_master WHERE type = 'trigger' "
    r"AND name NOT LIKE 'qsession\_follow%' ESCAPE '\' "
    r"AND name NOT LIKE 'qsession\_moved%' ESCAPE '\' ORDER BY 1"
)
"""Without those of a copy that follows."""
_REST = {
    "postgresql": _OF_POSTGRESQL,
    "mysql": _OF_MYSQL,
    "mariadb": _OF_MYSQL,
}


def left_out(connection: Connection, schema_too: bool) -> list[str]:
    """Notes on what is no table with rows: virtual tables and, where asked for, the schema's rest.

    Where the models make the schema, or migrations, what they leave out was left out on purpose.
    """
    notes = _listed("virtual tables and what belongs to them", sorted(virtual_tables(connection)))
    if not schema_too:
        return notes
    notes += _listed("views", inspect(connection).get_view_names())
    notes += not_inherited(connection)
    if connection.dialect.name == "sqlite":
        return notes + _listed("triggers", connection.scalars(_TRIGGERS_OF_SQLITE))
    rest = connection.execute(_REST[connection.dialect.name])
    return notes + [f"{name}: {what}" for name, what in rest]


def _listed(kind: str, names: Iterable[str]) -> list[str]:
    """One note for all that is of one kind, as a file may have dozens of triggers."""
    found = ", ".join(names)
    return [f"not copied, {kind}: {found}"] if found else []


def virtual_tables(connection: Connection) -> set[str]:
    """SQLite's tables that a module makes, and those that it keeps its data in."""
    if connection.dialect.name != "sqlite":
        return set()
    try:
        rows = connection.execute(
            text("SELECT name FROM pragma_table_list WHERE type IN ('virtual', 'shadow')")
        )
        return {str(name) for (name,) in rows}
    except exc.OperationalError:  # SQLite before 3.37
        rows = connection.execute(
            text("SELECT name FROM sqlite_master WHERE sql LIKE 'CREATE VIRTUAL TABLE%'")
        )
        return {str(name) for (name,) in rows}
