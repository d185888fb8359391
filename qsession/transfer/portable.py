"""A reflected table for another kind of database: types that hold the same values there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    Column,
    Dialect,
    ForeignKeyConstraint,
    Identity,
    Index,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    UniqueConstraint,
    text,
    types,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeEngine

from qsession.transfer.defaults import default_of, keep_sequences
from qsession.transfer.foreign_keys import reference_of
from qsession.transfer.kinds import Kind, kind_of, plain, text_length
from qsession.transfer.names import referred
from qsession.transfer.sequence_options import options_of
from qsession.transfer.sqlite_schema import LOST, WRITTEN
from qsession.transfer.wording import product_of

KEY_LENGTH = 255
"""Characters of a text in a key of MySQL, which wants to know a greatest length."""


class NoEqual(Exception):
    """A type that the other database has nothing like; the text says which."""


@dataclass(frozen=True)
class _Making:
    """The tables that are made, and what is known of them as a whole."""

    source: Dialect
    target: Dialect
    metadata: MetaData
    notes: list[str]
    relations: set[str]
    """Names of tables, their types and indexes, which are one set of names in PostgreSQL."""
    references: set[str] = field(default_factory=set)
    """Names of foreign keys, which are one set in MySQL."""

    def once(self, name: Any, taken: set[str]) -> str | None:
        """The name, if it is short enough and nothing has it; None leaves it to the database."""
        on_mysql = self.target.name in ("mysql", "mariadb")
        longest = 64 if on_mysql else self.target.max_identifier_length
        if name is None or name.lower() in taken or len(name) > longest:
            return None
        taken.add(name.lower())
        return str(name)

    def another(self, name: str) -> str:
        """The name, with a number if something has it already."""
        number, found = 1, self.once(name, self.relations)
        while found is None:
            number += 1
            found = self.once(f"{name[:50]}_{number}", self.relations)
        return found


def portable(tables: list[Table], source: Dialect, target: Dialect) -> tuple[MetaData, list[str]]:
    """The same tables for ``target``, and what was left out of them, for people.

    Between databases of one kind they stay as they are. Raises :class:`NoEqual`.
    """
    metadata = MetaData()
    notes: list[str] = []
    if source.name == target.name:
        for table in tables:
            same = table.to_metadata(metadata)
            if WRITTEN in table.info:
                same.info[WRITTEN] = table.info[WRITTEN]
            keep_sequences(same, options_of(table), target)
            notes += [f"{same.name}.{lost}: left out its numbering" for lost in _unnumbered(same)]
        return metadata, notes
    names = {table.name.lower() for table in tables}
    making = _Making(source, target, metadata, notes, names)
    for table in tables:
        rebuilt = _rebuild(table, making)
        _add_indexes(table, rebuilt, making)
        notes += [f"{table.name}: left out {lost}" for lost in table.info.get(LOST, ())]
    return metadata, notes


def _unnumbered(table: Table) -> list[str]:
    """Columns with AUTO_INCREMENT that SQLAlchemy makes without, as they are not the key."""
    key = table.autoincrement_column
    return [
        each.name
        for each in table.columns
        if each.autoincrement is True and each is not key and each.server_default is None
    ]


def _rebuild(table: Table, making: _Making) -> Table:
    keyed = {column.name for column in table.primary_key}
    for constraint in (*table.constraints, *table.indexes):
        if isinstance(constraint, UniqueConstraint | Index | ForeignKeyConstraint):
            keyed |= {column.name for column in constraint.columns}
    columns: list[Any] = [
        _rebuild_column(column, making, column.name in keyed) for column in table.columns
    ]
    rebuilt = Table(table.name, making.metadata, *columns)
    for constraint in sorted(table.constraints, key=lambda each: str(each.name)):
        names = [column.name for column in getattr(constraint, "columns", ())]
        if isinstance(constraint, PrimaryKeyConstraint):
            rebuilt.append_constraint(PrimaryKeyConstraint(*names))
        elif isinstance(constraint, UniqueConstraint):
            name = making.once(constraint.name, making.relations)
            rebuilt.append_constraint(UniqueConstraint(*names, name=name))
        elif isinstance(constraint, ForeignKeyConstraint):
            _add_foreign_key(constraint, rebuilt, making)
    return rebuilt


def _rebuild_column(column: Column[Any], making: _Making, keyed: bool) -> Column[Any]:
    table, target = column.table, making.target
    type_ = _type_for(column, making.source, target, keyed)
    if isinstance(type_, types.Enum) and target.name == "postgresql":
        type_.name = making.another(str(type_.name))
    default, left_out = default_of(column, type_, making.source, target)
    autoincrement, numbers = column.autoincrement, []
    if _is_numbered(column) and not _numbers_itself(column, target):
        if target.name == "postgresql":
            numbers = [Identity()]
        else:
            autoincrement = False
            left_out = left_out or "numbering"
    if left_out:
        making.notes.append(f"{table.name}.{column.name}: left out its {left_out}")
    return Column(
        column.name,
        type_,
        *numbers,
        nullable=column.nullable,
        server_default=None if default is None else text(default.replace(":", r"\:")),
        autoincrement=autoincrement,
    )


def _is_numbered(column: Column[Any]) -> bool:
    return column.autoincrement is True or column.identity is not None


def _numbers_itself(column: Column[Any], target: Dialect) -> bool:
    """Whether it does as part of the primary key: all of it in SQLite, the first of it in MySQL."""
    if column is not column.table.autoincrement_column:
        return False
    key = list(column.table.primary_key)
    if target.name == "sqlite":
        return len(key) == 1
    return target.name == "postgresql" or key[0] is column


def _add_indexes(table: Table, rebuilt: Table, making: _Making) -> None:
    for index in sorted(table.indexes, key=lambda each: str(each.name)):
        if any(options.get("where") is not None for options in index.dialect_options.values()):
            making.notes.append(f"{table.name}: left out the partial index {index.name}")
        elif len(index.columns) != len(index.expressions):
            making.notes.append(f"{table.name}: left out the index {index.name}, of an expression")
        else:
            columns = [rebuilt.columns[column.name] for column in index.columns]
            name = making.once(index.name, making.relations)  # MySQL names them per table
            name = name or making.another(f"{table.name}_{index.name}")
            Index(name, *columns, unique=index.unique)


def _add_foreign_key(constraint: ForeignKeyConstraint, rebuilt: Table, making: _Making) -> None:
    target = making.target

    def kind(column: Column[Any]) -> Kind:
        """As far as the target tells them apart. SQLite does not; PostgreSQL compares numbers."""
        if target.name == "sqlite":
            return Kind.OTHER
        found = kind_of(_type_for(column, making.source, target, keyed=True), target)
        return Kind.NUMERIC if (target.name, found) == ("postgresql", Kind.INTEGER) else found

    found = reference_of(constraint, kind)
    if isinstance(found, str):
        columns, parent = ", ".join(constraint.column_keys), referred(constraint)
        lost = f"left out the foreign key of {columns} to {parent}: {found}"
        making.notes.append(f"{rebuilt.name}: {lost}")
        return
    waits = target.name in ("sqlite", "postgresql")  # MySQL has no constraints that wait
    rebuilt.append_constraint(
        ForeignKeyConstraint(
            found.columns,
            [f"{found.parent}.{name}" for name in found.remote],
            name=making.once(constraint.name, making.references),
            ondelete=constraint.ondelete,
            onupdate=constraint.onupdate,
            deferrable=constraint.deferrable if waits else None,
            initially=constraint.initially if waits else None,
        )
    )


def _type_for(
    column: Column[Any], source: Dialect, target: Dialect, keyed: bool
) -> TypeEngine[Any]:
    found: Any = plain(column.type)
    if isinstance(found, types.NullType):  # SQLite lets a column have none
        kind = Kind.TEXT
    elif isinstance(found, mysql.TINYINT) and found.display_width == 1:
        kind = Kind.BOOLEAN
    else:
        kind = kind_of(found, source)
    make = _MAKE.get(kind)
    if make is None:
        raise NoEqual(
            f"{column.table.name}.{column.name} has the type {column.type!r}, and qsession knows "
            f"nothing like it in {product_of(target)}. Create the table there first, with a column "
            "of another type, or name your models (--metadata)"
        )
    type_ = make(found, column, source)
    if target.name in ("mysql", "mariadb"):
        return _for_mysql(type_, keyed)
    if target.name == "sqlite" and isinstance(type_, types.Integer):
        return types.Integer()  # only INTEGER PRIMARY KEY gets its numbers by itself
    return type_


def _integer(found: Any, column: Column[Any], source: Dialect) -> TypeEngine[Any]:
    """As large as the source has them: 64 bits in SQLite, whatever the column is called."""
    unsigned = getattr(found, "unsigned", False)
    if isinstance(found, types.BigInteger) and unsigned:
        is_key = column.autoincrement is True or column.foreign_keys  # of which there are fewer
        return types.BigInteger() if is_key else types.Numeric(20, 0)
    if source.name == "sqlite" or unsigned or isinstance(found, types.BigInteger):
        return types.BigInteger()
    small = isinstance(found, types.SmallInteger | mysql.TINYINT)
    return types.SmallInteger() if small else types.Integer()


def _numeric(found: Any, column: Column[Any], source: Dialect) -> TypeEngine[Any]:
    return types.Numeric(found.precision, found.scale)


def _text(found: Any, column: Column[Any], source: Dialect) -> TypeEngine[Any]:
    length = text_length(found)
    return types.String(length) if length and not isinstance(found, types.Text) else types.Text()


def _timestamp(found: Any, column: Column[Any], source: Dialect) -> TypeEngine[Any]:
    aware = isinstance(found, mysql.TIMESTAMP) or bool(found.timezone)
    return types.DateTime(timezone=aware)


def _enum(found: Any, column: Column[Any], source: Dialect) -> TypeEngine[Any]:
    name = found.name or f"{column.table.name}_{column.name}"
    return types.Enum(*found.enums, name=name, create_constraint=False)


_Make = Callable[[Any, Column[Any], Dialect], TypeEngine[Any]]
_MAKE: dict[Kind, _Make] = {
    Kind.BOOLEAN: lambda *_: types.Boolean(create_constraint=False),
    Kind.INTEGER: _integer,
    Kind.FLOAT: lambda *_: types.Double(),
    Kind.NUMERIC: _numeric,
    Kind.TEXT: _text,
    Kind.BYTES: lambda *_: types.LargeBinary(),
    Kind.DATE: lambda *_: types.Date(),
    Kind.TIME: lambda *_: types.Time(),
    Kind.TIMESTAMP: _timestamp,
    Kind.INTERVAL: lambda *_: types.Interval(),
    Kind.JSON: lambda *_: types.JSON(),
    Kind.UUID: lambda *_: types.Uuid(),
    Kind.ENUM: _enum,
}


def _for_mysql(type_: TypeEngine[Any], keyed: bool) -> TypeEngine[Any]:
    """MySQL's defaults round: no fraction of a second, no digits after the point, 64 KiB."""
    if isinstance(type_, types.Interval):
        return types.Interval().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
    if isinstance(type_, types.DateTime):
        return mysql.DATETIME(fsp=6)
    if isinstance(type_, types.Time):
        return mysql.TIME(fsp=6)
    decimal = isinstance(type_, types.Numeric) and not isinstance(type_, types.Float)
    if decimal and getattr(type_, "precision", None) is None:
        return types.Numeric(65, 30)
    if isinstance(type_, types.LargeBinary):
        return types.VARBINARY(KEY_LENGTH) if keyed else mysql.LONGBLOB()
    if isinstance(type_, types.Text):
        return types.String(KEY_LENGTH) if keyed else mysql.LONGTEXT()
    return type_
