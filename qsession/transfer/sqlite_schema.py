"""What a file of SQLite has in its schema, and SQLAlchemy does not reflect."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from sqlalchemy import (
    Connection,
    Inspector,
    LargeBinary,
    MetaData,
    Table,
    UniqueConstraint,
    exc,
    func,
    select,
    text,
)
from sqlalchemy.dialects.sqlite.base import SQLiteDialect
from sqlalchemy.types import NullType

from qsession.transfer.collations import collations_in, sorted_by_strangers
from qsession.transfer.left_out import virtual_tables
from qsession.transfer.names import referred

WRITTEN = "qsession_written"
"""In ``Table.info``: the statements that make the table, as they were written."""
LOST = "qsession_lost"
"""In ``Table.info``: what such a table has, and one of another database would not; for people."""
UNSORTED = "qsession_unsorted"
"""In ``Table.info``: columns with an index in an order that only the program of the file knows."""

_UNIQUE = text(
    "SELECT l.name, i.name FROM pragma_index_list(:table) l, pragma_index_info(l.name) i "
    "WHERE l.origin = 'u' ORDER BY l.seq, i.seqno"
)
_OF_EXPRESSIONS = text(
    "SELECT DISTINCT l.name FROM pragma_index_list(:table) l, pragma_index_info(l.name) i "
    "WHERE l.origin = 'c' AND i.cid = -2 ORDER BY 1"
)
_STATEMENTS = text(
    "SELECT sql FROM sqlite_master WHERE tbl_name = :table COLLATE NOCASE AND sql IS NOT NULL "
    "AND type IN ('table', 'index') ORDER BY type = 'index', rowid"
)
_TYPES = text("SELECT name, type FROM pragma_table_xinfo(:table)")
_AFFINITIES = ("INT", "CHAR", "CLOB", "TEXT", "BLOB", "REAL", "FLOA", "DOUB")
"""What a declared type may contain (https://sqlite.org/datatype3.html#determination_of_column_affinity).
"""
_FOREIGN_KEYS = text(
    'SELECT f.id, f."table", f."from" FROM pragma_foreign_key_list(:table) f ORDER BY f.id, f.seq'
)


class _Inspector(Inspector):
    """Knows that ``REFERENCES Users`` means the primary key of users, whatever the case.

    What leads to no such table or column is left out: SQLite takes it, and SQLAlchemy can make
    nothing of it.
    """

    def get_multi_foreign_keys(self, *args: Any, **options: Any) -> Any:
        found = super().get_multi_foreign_keys(*args, **options)
        bind: Any = self.bind
        names = set(self.get_table_names()) - virtual_tables(bind)
        parents = {name.lower(): name for name in names}
        return {
            table: [key for key in keys if self._leads_somewhere(key, parents)]
            for table, keys in found.items()
        }

    def _leads_somewhere(self, key: Any, parents: dict[str, str]) -> bool:
        parent = parents.get(key["referred_table"].lower())
        if parent is None:
            return False
        if not key["referred_columns"]:
            key["referred_columns"] = self.get_pk_constraint(parent)["constrained_columns"]
        there = {each["name"].lower() for each in self.get_columns(parent)}
        wanted = [name.lower() for name in key["referred_columns"]]
        return len(wanted) == len(key["constrained_columns"]) and there >= set(wanted)


def prepare(connection: Connection) -> None:
    """Let SQLAlchemy reflect what it would fail at, and not warn of what it makes less of.

    An index of an expression becomes a note, a type that it does not know is an error or a note
    where it matters. Its warnings would show the user lines of this package. The filter stays: one
    that was taken back at the end of a reflection would take back what other tasks have set
    meanwhile. The dialect is that of the copy's own engine.
    """
    warnings.filterwarnings("ignore", category=exc.SAWarning, module=r"qsession\.transfer\.")
    if connection.dialect.name == "sqlite":
        dialect: Any = connection.dialect
        dialect.inspector = _Inspector


def complete(connection: Connection, metadata: MetaData) -> None:
    """Add to tables that were reflected what was missed."""
    _set_types(connection, metadata)
    for table in metadata.tables.values():
        _add_unique_constraints(connection, table)
        of = {"table": table.name}
        statements = [str(sql) for (sql,) in connection.execute(_STATEMENTS, of)]
        collations = {name.upper() for name in collations_in(" ".join(statements))}
        lost = [f"COLLATE {name}" for name in sorted(collations - {"BINARY"})]
        for (name,) in connection.execute(_OF_EXPRESSIONS, of):
            lost.append(f"the index {name}, of an expression")
        lost += _lost_keys(table, connection.execute(_FOREIGN_KEYS, of))
        strange = frozenset(sorted_by_strangers(connection, table.name))
        table.info.update({WRITTEN: statements, LOST: lost, UNSORTED: strange})


def _set_types(connection: Connection, metadata: MetaData) -> None:
    """Set types that SQLAlchemy does not know by what the columns hold, or what they refer to.

    A column of type UUID or STRING may hold text, one of type MONEY numbers.
    """
    referring = []
    for table in metadata.sorted_tables:  # what is referred to comes first
        for name, declared in connection.execute(_TYPES, {"table": table.name}):
            if name in table.columns and _is_unknown(declared):
                column = table.columns[name]
                held = select(func.typeof(column)).where(column.is_not(None)).distinct()
                found = set(connection.scalars(held))
                if found == {"blob"}:
                    column.type = LargeBinary()
                elif not found <= {"integer", "real"}:
                    column.type = NullType()
                else:
                    referring.append((column, not found))
    for column, is_empty in referring:
        for key in column.foreign_keys:
            with suppress(exc.NoReferenceError):
                if is_empty or isinstance(key.column.type, NullType):  # numbers among texts
                    column.type = key.column.type


def _is_unknown(declared: str) -> bool:
    """Whether it is a type of which SQLite, like SQLAlchemy, makes NUMERIC for want of a better."""
    name = declared.partition("(")[0].strip().upper()
    if not name or name in SQLiteDialect.ischema_names:
        return False
    return not any(part in name for part in _AFFINITIES)


def _lost_keys(table: Table, rows: Iterable[Any]) -> list[str]:
    """The foreign keys that :class:`_Inspector` has left out."""
    parents: dict[int, str] = {}
    columns: dict[int, list[str]] = {}
    for number, parent, column in rows:
        parents[number] = parent
        columns.setdefault(number, []).append(column)
    kept = {
        (referred(each).lower(), *(name.lower() for name in each.column_keys))
        for each in table.foreign_key_constraints
    }
    return sorted(
        f"the foreign key of {', '.join(columns[number])} to {parent}, which has no such key"
        for number, parent in parents.items()
        if (parent.lower(), *(name.lower() for name in columns[number])) not in kept
    )


def _add_unique_constraints(connection: Connection, table: Table) -> None:
    """SQLAlchemy finds them in the text of CREATE TABLE; ``NUMERIC(10, 2) UNIQUE`` it does not."""
    known = {
        frozenset(each.columns.keys())
        for each in table.constraints
        if isinstance(each, UniqueConstraint)
    }
    indexes: dict[str, list[str]] = {}
    for index, column in connection.execute(_UNIQUE, {"table": table.name}):
        indexes.setdefault(index, []).append(column)
    for columns in indexes.values():
        if frozenset(columns) not in known:
            table.append_constraint(UniqueConstraint(*columns))
