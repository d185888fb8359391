"""The rows that a REPLACE deletes without a trigger: those that hold a value which is unique.

``INSERT OR REPLACE`` deletes each row that is in its way, and no DELETE trigger fires unless the
connection has set ``PRAGMA recursive_triggers`` (https://sqlite.org/lang_conflict.html). So a
BEFORE trigger looks for such rows, by each unique index, and takes their keys down. If nothing is
deleted in the end, the key is read once more, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, exc, text

from qsession.errors import CopyError

New = Callable[[str], str]
"""How a column of the row that is about to be written is named."""

_INDEXES = text(
    "SELECT l.name, l.origin, m.sql FROM pragma_index_list(:table) l "
    "LEFT JOIN sqlite_master m ON m.type = 'index' AND m.name = l.name "
    'WHERE l."unique" ORDER BY l.name'
)
_PARTS = text('SELECT name, coll FROM pragma_index_xinfo(:name) WHERE "key" ORDER BY seqno')
_COLUMNS = text(
    'SELECT name, upper(type), "notnull" AND dflt_value IS NOT NULL, hidden '
    "FROM pragma_table_xinfo(:table)"
)
_ROWID = text(
    "SELECT name FROM pragma_table_info(:table) WHERE pk = 1 AND upper(type) = 'INTEGER' "
    "AND (SELECT max(pk) FROM pragma_table_info(:table)) = 1 "
    "AND NOT EXISTS (SELECT 1 FROM pragma_index_list(:table) WHERE origin = 'pk')"
)
"""The primary key, if it is the rowid (https://sqlite.org/lang_createtable.html#rowid)."""
_PIECE = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]|--[^\n]*|/\*.*?(?:\*/|\Z)"""
    r"""|\w+|\s+|.""",
    re.DOTALL,
)
"""A text, a name, a comment, a word, a space, or one character."""
_ORDER = re.compile(r"\s+(ASC|DESC)\s*\Z", re.IGNORECASE)


@dataclass(frozen=True)
class Conflict:
    """The condition for rows of a table that a new row would be in conflict with."""

    of: str
    """The index, for people."""
    where: Callable[[New], str]
    columns: tuple[str, ...]
    """What an UPDATE has to name to bring it about. Empty: any UPDATE may."""
    asks_for: tuple[str, ...] = ()
    """Columns that a BEFORE UPDATE trigger has to read. SQLite loads only those that triggers read,
    and makes generated columns of what it has loaded."""


def quoted(name: str) -> str:
    """A name as it stands in a statement of SQLite."""
    return '"' + name.replace('"', '""') + '"'


def key_that_is_rowid(connection: Connection, table: str) -> str | None:
    """The name of a primary key that is the rowid; None if the key is something else."""
    name = connection.scalar(_ROWID, {"table": table})
    return None if name is None else str(name)


def conflicts_of(connection: Connection, table: str) -> list[Conflict]:
    """One for each unique index of a table, but for that of the primary key.

    A row that is replaced by its primary key has the key of the new row, which is taken down
    anyway. Where the key has a collation, the two may still be written differently.

    A BEFORE trigger does not know all of the new row: neither a rowid that SQLite will choose
    (https://sqlite.org/lang_createtrigger.html), nor the default that REPLACE stores in the place
    of a NULL, and what generated columns make of it. So what is not known is not asked for, and for
    such a NULL all rows are found. And NEW.x has no affinity there, so comparisons in an index may
    come out differently. They are made with and without that of the column.

    Raises :class:`CopyError` for an index by which this process cannot look rows up.
    """
    rowid = key_that_is_rowid(connection, table)
    columns = [_Column(*row) for row in connection.execute(_COLUMNS, {"table": table})]
    found, nulls = [], set()
    for index, origin, sql in connection.execute(_INDEXES, {"table": table}).all():
        parts = [_Part(*part) for part in connection.execute(_PARTS, {"name": index})]
        if origin == "pk" and all(part.collation.upper() == "BINARY" for part in parts):
            continue
        if rowid is not None and rowid in [part.column for part in parts]:
            continue  # what is in conflict has the same key
        words = _words(sql or "") | {(part.column or "").lower() for part in parts}
        named = [column for column in columns if column.name.lower() in words]
        if any(column.generated for column in named):
            named = columns
        conflict = _conflict(table, index, sql, parts, named, rowid)
        _check(connection, table, conflict)
        found.append(conflict)
        nulls |= {column.name for column in named if column.defaults}
    if nulls:
        found.append(_given_null(table, sorted(nulls)))
    return found


@dataclass(frozen=True)
class _Column:
    name: str
    declared: str
    defaults: bool
    """Whether REPLACE stores a default in the place of a NULL."""
    generated: bool

    def typed(self, value: str) -> str:
        """With the affinity of the column (https://sqlite.org/datatype3.html, 3.1).

        A text or a number in a column for such stays what it is. What else may be in it is not.
        """
        if "INT" not in self.declared:
            if any(word in self.declared for word in ("CHAR", "CLOB", "TEXT")):
                return f"CAST({value} AS TEXT)"
            if "BLOB" in self.declared or not self.declared:
                return value
        return f"CAST({value} AS NUMERIC)"


@dataclass(frozen=True)
class _Part:
    """A column of an index, or an expression."""

    column: str | None
    collation: str


def _conflict(
    table: str,
    index: str,
    sql: str | None,
    parts: Sequence[_Part],
    named: Sequence[_Column],
    rowid: str | None,
) -> Conflict:
    terms, condition = split(sql) if sql else ([], "")

    def theirs(term: str, typed: bool, new: New) -> str:
        """An expression of the new row."""
        values = ", ".join(
            f"{each.typed(new(each.name)) if typed else new(each.name)} AS {quoted(each.name)}"
            for each in named
        )
        return f"(SELECT {term} FROM (SELECT {values}) AS {quoted(table)})"  # noqa: S608

    def where(new: New) -> str:
        tests = [f"({condition})"] if condition else []
        for at, part in enumerate(parts):
            collate = f"COLLATE {quoted(part.collation)}"
            if part.column is not None:
                here = f"{quoted(table)}.{quoted(part.column)}"
                tests.append(f"{here} {collate} = {new(part.column)}")
            elif rowid is None or rowid.lower() not in _words(terms[at]):
                any_of = [theirs(terms[at], typed, new) for typed in (False, True)]
                tests.append(f"({terms[at]}) {collate} IN ({', '.join(any_of)})")
        return " AND ".join(tests) or "TRUE"

    watched = () if condition else tuple(part.column or "" for part in parts)
    read: tuple[str, ...] = ()
    if any(column.generated for column in named):
        watched, read = (), tuple(column.name for column in named if not column.generated)
    if "" in watched:
        watched = ()
    return Conflict(f"the unique index {index} of {table}", where, watched, read)


def _given_null(table: str, names: Sequence[str]) -> Conflict:
    """Any row, if a column with a default is given NULL."""

    def where(new: New) -> str:
        return " OR ".join(f"{new(name)} IS NULL" for name in names)

    return Conflict(f"the defaults of {table}", where, tuple(names))


def _words(sql: str) -> set[str]:
    return {each.strip('"`[]').lower() for each in _PIECE.findall(sql)}


def split(sql: str) -> tuple[list[str], str]:
    """The terms of a CREATE INDEX, without their order, and the condition after WHERE."""
    depth, terms, rest = 0, [""], ""
    done = False
    for found in _PIECE.findall(sql):
        piece = " " if found.startswith(("--", "/*")) else found
        if done:
            rest += piece
            continue
        depth += (piece == "(") - (piece == ")")
        if depth == 0:
            done = piece == ")"
        elif depth == 1 and piece == ",":
            terms.append("")
        elif (depth, piece) != (1, "(") or terms[-1]:
            terms[-1] += piece
    condition = rest.strip()[len("WHERE") :].strip()
    return [_ORDER.sub("", f" {each}").strip() for each in terms], condition


def _check(connection: Connection, table: str, conflict: Conflict) -> None:
    """Look for rows once, as the trigger will, and see that an index leads to them."""
    query = f"SELECT 1 FROM {quoted(table)} WHERE {conflict.where(lambda name: 'NULL')}"  # noqa: S608
    try:
        found = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}").all()
    except exc.DBAPIError as error:
        raise CopyError(
            f"{conflict.of} cannot be followed: {error.orig}. Copy without --follow"
        ) from error
    if not str(found[0][-1]).startswith("SEARCH"):
        raise CopyError(
            f"{conflict.of} cannot be followed: SQLite would read the whole table at each write. "
            "Copy without --follow"
        )
