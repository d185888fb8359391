"""Foreign keys for another kind of database: what it would refuse is left out, and named.

SQLite takes a foreign key to anything, and complains when a row is written, if at all
(https://sqlite.org/foreignkeys.html, 3.1). Servers want a table that is there, columns that are a
key of it, and columns of one type.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Column, ForeignKeyConstraint, Table, UniqueConstraint

from qsession.transfer.kinds import Kind
from qsession.transfer.names import referred


@dataclass(frozen=True)
class Reference:
    """A foreign key that the other database takes."""

    columns: list[str]
    parent: str
    """The key of the table that it leads to."""
    remote: list[str]
    """In the order that the key of the parent has: MariaDB looks for an index in that order."""


def reference_of(
    constraint: ForeignKeyConstraint, kind: Callable[[Column[object]], Kind]
) -> Reference | str:
    """The foreign key for another database, or why that would refuse it.

    ``kind``: of a column as it will be there.
    """
    table = constraint.table
    parent = table.metadata.tables.get(referred(constraint))
    if parent is None:
        return "that table is not copied"
    remote = [each.target_fullname.rpartition(".")[2] for each in constraint.elements]
    pairs = dict(zip(remote, [column.name for column in constraint.columns], strict=True))
    key = next((key for key in _keys(parent) if set(key) == set(pairs)), None)
    if key is None:
        return f"{', '.join(remote)} is not a key of that table"
    for name, column in pairs.items():
        if kind(table.columns[column]) is not kind(parent.columns[name]):
            return f"{name} of that table has another type"
    return Reference([pairs[name] for name in key], parent.key, list(key))


def _keys(table: Table) -> list[list[str]]:
    """The columns of its primary key, and of what else is unique in all rows."""
    found = [[column.name for column in table.primary_key]]
    found += [
        [column.name for column in each.columns]
        for each in table.constraints
        if isinstance(each, UniqueConstraint)
    ]
    for index in table.indexes:
        partial = any(each.get("where") is not None for each in index.dialect_options.values())
        if index.unique and not partial and len(index.columns) == len(index.expressions):
            found.append([column.name for column in index.columns])
    return found
