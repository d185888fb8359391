"""Collations that a program registers for itself, which SQLite lacks without that program.

SQLite reads no table whose index needs one (https://sqlite.org/c3ref/create_collation.html). A copy
only reads rows, so a stand-in is enough for the source. An index that is written by a stand-in
would be in the wrong order for the program, so such a target is refused.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, MetaData, text

from qsession.errors import CopyError

BUILT_IN = frozenset(("BINARY", "NOCASE", "RTRIM"))
_COLLATION = re.compile(
    r"""\bCOLLATE\s+(?:"((?:[^"]|"")+)"|'((?:[^']|'')+)'|`([^`]+)`|\[([^\]]+)\]|(\w+))""",
    re.IGNORECASE,
)
_WRITTEN = "SELECT sql FROM sqlite_master WHERE sql LIKE '%COLLATE%'"
_SORTED = text(
    "SELECT DISTINCT coalesce(x.name, 'an expression'), x.coll FROM pragma_index_list(:table) l, "
    'pragma_index_xinfo(l.name) x WHERE x."key" ORDER BY x.cid'
)


def collations_in(statement: str) -> set[str]:
    """The names of collations in a statement. One in a comment or a text is taken for one, too."""
    return {next(filter(None, found)) for found in _COLLATION.findall(statement)}


def lacking(names: Iterable[str]) -> set[str]:
    """Those that SQLite does not have by itself, in upper case: it does not tell case apart."""
    return {name.upper() for name in names} - BUILT_IN


def collations_of(metadata: MetaData) -> set[str]:
    """What the types of models name."""
    columns = (column for table in metadata.tables.values() for column in table.columns)
    return {name for each in columns if (name := getattr(each.type, "collation", None))}


def collations_of_file(connection: Connection) -> set[str]:
    """What the schema of a file of SQLite names; nothing of another database."""
    if connection.dialect.name != "sqlite":
        return set()
    return _named(sql for (sql,) in connection.execute(text(_WRITTEN)))


def stand_in(raw: sqlite3.Connection, names: Iterable[str] = ()) -> None:
    """Register collations for ``names``, and for what the schema of the file names."""
    named = _named(sql for (sql,) in raw.execute(_WRITTEN))
    for name in lacking({*names, *named}):
        with suppress(UnicodeEncodeError):  # Python before 3.11 takes ASCII only
            raw.create_collation(name, _by_code_point)


def sorted_by_strangers(connection: Connection, table: str) -> dict[str, str]:
    """The columns of a table in indexes that SQLite cannot sort by itself, with their collation."""
    rows: Any = connection.execute(_SORTED, {"table": table})
    return {name: collation for name, collation in rows if lacking([collation])}


def refuse_strangers(connection: Connection, tables: Iterable[str]) -> None:
    """Raise :class:`CopyError` for tables of a target on SQLite that this process cannot sort."""
    found = {
        f"{table}.{column}": collation
        for table in tables
        for column, collation in sorted_by_strangers(connection, table).items()
    }
    if found:
        names = ", ".join(sorted(set(found.values())))
        raise CopyError(
            f"nothing was copied: the index of {', '.join(sorted(found))} is sorted by the "
            f"collation {names}, which only the program of this file has. qsession would write "
            "the index in another order. Copy the whole file with qsession backup, or create "
            "these tables in the target first, without the collation"
        )


def _named(statements: Iterable[str]) -> set[str]:
    return set().union(*map(collations_in, statements))


def _by_code_point(one: str, other: str) -> int:
    return (one > other) - (one < other)
