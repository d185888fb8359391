"""A reflected table for another kind of database: types that hold the same values there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    Column,
    Dialect,
    ForeignKeyConstraint,
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

from .kinds import Kind, kind_of, plain
from .sqlite_schema import LOST, WRITTEN

KEY_LENGTH = 255
"""Characters of a text in a key of MySQL, which wants to know a greatest length."""
_CONSTANTS = ("CURRENT_TIMESTAMP", "CURRENT_DATE", "CURRENT_TIME", "TRUE", "FALSE", "NULL")


class NoEqual(Exception):
    """A type that the other database has nothing like; the text says which."""


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
            for column in same.columns:
                if "nextval(" in str(getattr(column.server_default, "arg", "")):
                    column.server_default = None  # a sequence of its own comes with the column
        return metadata, notes
    for table in tables:
        rebuilt = _rebuild(table, metadata, source, target, notes)
        _add_indexes(table, rebuilt, notes)
        notes += [f"{table.name}: left out {lost}" for lost in table.info.get(LOST, ())]
    return metadata, notes


def _rebuild(
    table: Table, metadata: MetaData, source: Dialect, target: Dialect, notes: list[str]
) -> Table:
    keyed = {column.name for column in table.primary_key}
    for constraint in (*table.constraints, *table.indexes):
        if isinstance(constraint, UniqueConstraint | Index | ForeignKeyConstraint):
            keyed |= {column.name for column in constraint.columns}
    columns: list[Any] = []
    for column in table.columns:
        type_ = _type_for(column, source, target, keyed=column.name in keyed)
        default, left_out = _default_of(column, type_, target)
        if left_out:
            notes.append(f"{table.name}.{column.name}: left out its {left_out}")
        columns.append(
            Column(
                column.name,
                type_,
                nullable=column.nullable,
                server_default=None if default is None else text(default.replace(":", r"\:")),
                autoincrement=column.autoincrement,
            )
        )
    rebuilt = Table(table.name, metadata, *columns)
    for constraint in sorted(table.constraints, key=lambda each: str(each.name)):
        names = [column.name for column in getattr(constraint, "columns", ())]
        if isinstance(constraint, PrimaryKeyConstraint):
            rebuilt.append_constraint(PrimaryKeyConstraint(*names))
        elif isinstance(constraint, UniqueConstraint):
            rebuilt.append_constraint(UniqueConstraint(*names, name=constraint.name))
        elif isinstance(constraint, ForeignKeyConstraint):
            rebuilt.append_constraint(_foreign_key(constraint, target))
    return rebuilt


def _add_indexes(table: Table, rebuilt: Table, notes: list[str]) -> None:
    taken = {index.name for each in rebuilt.metadata.tables.values() for index in each.indexes}
    for index in sorted(table.indexes, key=lambda each: str(each.name)):
        if any(options.get("where") is not None for options in index.dialect_options.values()):
            notes.append(f"{table.name}: left out the partial index {index.name}")
        elif len(index.columns) != len(index.expressions):
            notes.append(f"{table.name}: left out the index {index.name}, of an expression")
        else:
            columns = [rebuilt.columns[column.name] for column in index.columns]
            again = index.name in taken  # MySQL names them per table, others per database
            name = f"{table.name}_{index.name}" if again else index.name
            Index(name, *columns, unique=index.unique)


def _foreign_key(constraint: ForeignKeyConstraint, target: Dialect) -> ForeignKeyConstraint:
    waits = target.name in ("sqlite", "postgresql")  # MySQL has no constraints that wait
    return ForeignKeyConstraint(
        [column.name for column in constraint.columns],
        [each.target_fullname for each in constraint.elements],
        name=constraint.name,
        ondelete=constraint.ondelete,
        onupdate=constraint.onupdate,
        deferrable=constraint.deferrable if waits else None,
        initially=constraint.initially if waits else None,
    )


def _default_of(
    column: Column[Any], type_: TypeEngine[Any], target: Dialect
) -> tuple[str | None, str]:
    """The default, if it means the same in every database; and what of it was left out."""
    if column.computed is not None:
        return None, "being computed: it is a column like others there, with the values it has"
    default = getattr(column.server_default, "arg", None)
    if default is None:
        return None, ""
    written = str(default).strip()
    while written.startswith("(") and written.endswith(")"):
        written = written[1:-1].strip()
    literal = written.split("::")[0].strip()  # PostgreSQL writes 'new'::character varying
    if "nextval(" in literal:
        return None, ""  # what autoincrement stands for
    number = literal.strip("'")
    if target.name == "postgresql" and isinstance(type_, types.Boolean) and number in ("0", "1"):
        return ("true" if number == "1" else "false"), ""
    is_text = len(literal) > 1 and literal[0] == literal[-1] == "'" and "'" not in literal[1:-1]
    is_number = literal.lstrip("+-").replace(".", "", 1).isdecimal()
    takes_none = target.name in ("mysql", "mariadb") and isinstance(
        type_, types.Text | types.JSON | mysql.LONGTEXT
    )
    if (is_text or is_number or literal.upper() in _CONSTANTS) and not takes_none:
        if literal.upper() == "CURRENT_TIMESTAMP" and isinstance(type_, mysql.DATETIME):
            return "CURRENT_TIMESTAMP(6)", ""
        return literal, ""
    return None, f"default {written}"


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
            f"{column.table.name}.{column.name} has the type {column.type!r}, and {target.name} "
            "has nothing that is known to be like it: create the table there, with a column of "
            "another type, or name your models (--metadata)"
        )
    type_ = make(found, column, source)
    if target.name in ("mysql", "mariadb"):
        return _for_mysql(type_, keyed)
    if target.name == "sqlite" and isinstance(type_, types.BigInteger):
        return types.Integer()  # only INTEGER PRIMARY KEY gets its numbers by itself
    return type_


def _integer(found: Any, column: Column[Any], source: Dialect) -> TypeEngine[Any]:
    """As large as the source has them: 64 bits in SQLite, whatever the column is called."""
    unsigned = getattr(found, "unsigned", False)
    if isinstance(found, types.BigInteger) and unsigned:
        return types.Numeric(20, 0)
    if source.name == "sqlite" or unsigned or isinstance(found, types.BigInteger):
        return types.BigInteger()
    small = isinstance(found, types.SmallInteger | mysql.TINYINT)
    return types.SmallInteger() if small else types.Integer()


def _numeric(found: Any, column: Column[Any], source: Dialect) -> TypeEngine[Any]:
    return types.Numeric(found.precision, found.scale)


def _text(found: Any, column: Column[Any], source: Dialect) -> TypeEngine[Any]:
    length = getattr(found, "length", None)
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
