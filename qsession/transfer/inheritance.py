"""Tables of PostgreSQL whose rows are seen in another one, too: partitions, and what inherits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Dialect, FromClause, MetaData, Select, Table, text

_INHERITS = "qsession_inherits"
"""In ``Table.info``: whether others inherit from the table, so that it shows their rows."""
_CHILDREN = text(
    """
    SELECT c.relname, p.relname, n.nspname, c.relispartition,
        pg_table_is_visible(c.oid), pg_table_is_visible(p.oid)
    FROM pg_inherits i
    JOIN pg_class c ON c.oid = i.inhrelid AND c.relkind IN ('r', 'p', 'f')
    JOIN pg_class p ON p.oid = i.inhparent
    JOIN pg_namespace n ON n.oid = p.relnamespace
    ORDER BY 1, 2
    """
)


def partitions(connection: Connection) -> dict[str, str]:
    """Partitions of the default schema, each with the table that it is a part of.

    A partition of a table of another schema is none here, as that table is not copied.
    """
    if connection.dialect.name != "postgresql":
        return {}
    return {
        child: parent
        for child, parent, _, is_part, *visible in connection.execute(_CHILDREN)
        if is_part and all(visible)
    }


def separate(connection: Connection, metadata: MetaData) -> None:
    """Make a table of its own of each that inherits, with its :func:`own_rows`."""
    if connection.dialect.name != "postgresql":
        return
    for table in metadata.tables.values():
        table.dialect_options["postgresql"]["inherits"] = None  # which SQLAlchemy 2.1 reflects
    for _, parent, schema, is_part, _, visible in connection.execute(_CHILDREN):
        keys = [f"{schema}.{parent}", *([parent] if visible else [])]
        for key in keys:
            if not is_part and key in metadata.tables:
                metadata.tables[key].info[_INHERITS] = True


def own_rows(query: Select[Any], rows: FromClause, table: Table) -> Select[Any]:
    """Leave out of ``rows`` of a table those of the tables that inherit from it."""
    return query.with_hint(rows, "ONLY", "postgresql") if table.info.get(_INHERITS) else query


def names_alone(dialect: Dialect, tables: Sequence[Table]) -> str:
    """The names of tables for PostgreSQL's LOCK and TRUNCATE, without those that inherit.

    A partitioned table is nothing without its partitions, so it is named with them.
    """
    name = dialect.identifier_preparer.format_table
    return ", ".join(f"ONLY {name(t)}" if t.info.get(_INHERITS) else name(t) for t in tables)


def not_inherited(connection: Connection) -> list[str]:
    """Notes on tables that the copy makes without what connects them."""
    if connection.dialect.name != "postgresql":
        return []
    parts = partitions(connection)
    notes = [
        f"{parent}: left out its partitions; their rows are copied as its own"
        for parent in sorted(set(parts.values()) - set(parts))
    ]
    return notes + [
        f"{child}: left out its inheritance from {parent}"
        for child, parent, _, is_part, visible, _ in connection.execute(_CHILDREN)
        if visible and not is_part
    ]
