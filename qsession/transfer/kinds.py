"""What a column of the target takes: its kind of value, and the limits that its database sets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import tzinfo
from enum import Enum, auto
from typing import Any

from sqlalchemy import Column, Dialect, TypeDecorator, types
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import TypeEngine


class Kind(Enum):
    """The kinds of values that are known in every database."""

    BOOLEAN = auto()
    INTEGER = auto()
    FLOAT = auto()
    NUMERIC = auto()
    TEXT = auto()
    BYTES = auto()
    DATE = auto()
    TIME = auto()
    TIMESTAMP = auto()
    INTERVAL = auto()
    JSON = auto()
    UUID = auto()
    ENUM = auto()
    OTHER = auto()
    """Known to one database only, or not looked at: it goes as the driver gives it."""


@dataclass(frozen=True)
class Wanted:
    """What a column takes. A limit that its database does not set is None."""

    kind: Kind
    nullable: bool = True
    native: bool = True
    """Whether the column has a type for it; else the model keeps it in another one."""
    bounds: tuple[int, int] | None = None
    """The least and the greatest integer."""
    unsigned: bool = False
    """Whether a decimal or a float is never negative."""
    single: bool = False
    """Whether a float has 32 bits only."""
    nan: bool = True
    infinity: bool = True
    precision: int | None = None
    scale: int | None = None
    binary: bool = False
    """Whether decimals are kept as floats of 64 bits, as SQLite does."""
    length: int | None = None
    """Characters of a text, bytes of a blob."""
    in_bytes: bool = False
    """Whether ``length`` counts the bytes of a text."""
    fixed: bool = False
    """Whether what is shorter than ``length`` is filled up."""
    nul: bool = True
    """Whether a text may contain the character U+0000."""
    aware: bool = False
    """Whether a timestamp is a point in time, rather than what a clock on the wall shows."""
    parts: bool = False
    """Whether an interval keeps its months, days and what is less apart, as in PostgreSQL."""
    digits: int = 6
    """Digits that are kept of the fraction of a second."""
    zone: tzinfo | None = None
    """The zone of timestamps that do not say theirs, if the user named one."""
    labels: tuple[str, ...] = ()


_KINDS: tuple[tuple[tuple[type[Any], ...], Kind], ...] = (
    ((types.Interval, postgresql.INTERVAL), Kind.INTERVAL),
    ((types.Boolean,), Kind.BOOLEAN),
    ((types.Integer, mysql.YEAR), Kind.INTEGER),
    ((types.Float,), Kind.FLOAT),
    ((types.Numeric,), Kind.NUMERIC),
    ((types.Enum,), Kind.ENUM),  # before String, which it is one of
    ((types.JSON,), Kind.JSON),
    ((types.Uuid,), Kind.UUID),
    ((types.String,), Kind.TEXT),
    ((types.LargeBinary, types.BINARY, types.VARBINARY), Kind.BYTES),
    ((mysql.TINYBLOB, mysql.MEDIUMBLOB, mysql.LONGBLOB), Kind.BYTES),
    ((types.DateTime,), Kind.TIMESTAMP),
    ((types.Date,), Kind.DATE),
    ((types.Time,), Kind.TIME),
)

_SAYS_MORE = {
    (Kind.TEXT, Kind.UUID),
    (Kind.TEXT, Kind.JSON),
    (Kind.INTEGER, Kind.BOOLEAN),
    (Kind.TIMESTAMP, Kind.INTERVAL),
}
"""What a column is, and what the model says that it holds there."""

_BITS: dict[type[Any], int] = {
    mysql.TINYINT: 8,
    types.SmallInteger: 16,
    mysql.MEDIUMINT: 24,
    types.BigInteger: 64,
}
_BYTES: dict[type[Any], int] = {
    mysql.TINYTEXT: 2**8 - 1,
    mysql.MEDIUMTEXT: 2**24 - 1,
    mysql.LONGTEXT: 2**32 - 1,
    mysql.TINYBLOB: 2**8 - 1,
    mysql.MEDIUMBLOB: 2**24 - 1,
    mysql.LONGBLOB: 2**32 - 1,
}
_TEXT_BYTES = 2**16 - 1
"""Of MySQL's TEXT and BLOB (https://dev.mysql.com/doc/refman/8.4/en/storage-requirements.html)."""


def physical(type_: TypeEngine[Any], dialect: Dialect) -> TypeEngine[Any]:
    """The type a column has in a database: variants chosen, decorators taken off."""
    type_ = type_.dialect_impl(dialect)
    while isinstance(type_, TypeDecorator) and not isinstance(type_, types.Interval):
        type_ = type_.impl_instance.dialect_impl(dialect)
    return plain(type_)


def plain(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    """The type of a reflected column, which is what the database has; of a domain, its own."""
    while isinstance(type_, postgresql.DOMAIN):
        type_ = type_.data_type
    return type_


def kind_of(type_: TypeEngine[Any], dialect: Dialect) -> Kind:
    """What a column of this type holds there."""
    if isinstance(type_, types.Interval):
        return Kind.INTERVAL  # whatever it is kept in
    if isinstance(type_, types.Float):
        return Kind.FLOAT  # of which psycopg's dialect makes a Numeric in SQLAlchemy 2.0
    found = physical(type_, dialect)
    if isinstance(found, types.Time) and found.timezone:
        return Kind.OTHER
    return next((kind for classes, kind in _KINDS if isinstance(found, classes)), Kind.OTHER)


def wanted(
    column: Column[Any], declared: TypeEngine[Any], dialect: Dialect, zone: tzinfo | None
) -> Wanted:
    """What ``column``, as it is in the target, takes; ``declared`` is what the model says of it."""
    type_ = plain(column.type)
    kind = kind_of(type_, dialect)
    meant = kind_of(declared, dialect)
    native = (kind, meant) not in _SAYS_MORE
    takes = Wanted(kind if native else meant, bool(column.nullable), native, zone=zone)
    if dialect.name == "sqlite":
        return _of_sqlite(takes)
    if dialect.name in ("mysql", "mariadb"):
        return _of_mysql(replace(takes, nan=False, infinity=False), type_)
    json = isinstance(type_, types.JSON) and not isinstance(type_, postgresql.JSONB)
    return _of_postgresql(replace(takes, nul=json), type_)


def _of_sqlite(takes: Wanted) -> Wanted:
    """SQLite stores NaN as NULL, and decimals as floats; declared lengths mean nothing to it."""
    infinity = takes.kind is Kind.FLOAT
    bounds = -(2**63), 2**63 - 1
    return replace(takes, nan=False, infinity=infinity, binary=True, bounds=bounds)


def _of_postgresql(takes: Wanted, type_: Any) -> Wanted:
    precision = getattr(type_, "precision", None)
    if takes.kind is Kind.INTEGER:
        return replace(takes, bounds=_bounds(type_))
    if takes.kind is Kind.FLOAT:
        single = isinstance(type_, types.REAL) or (precision is not None and precision <= 24)
        return replace(takes, single=single and not isinstance(type_, types.Double))
    if takes.kind is Kind.NUMERIC:
        return replace(takes, precision=precision, scale=_scale(type_), infinity=False)
    if takes.kind is Kind.TEXT:
        return replace(takes, length=type_.length, fixed=isinstance(type_, types.CHAR))
    if takes.kind in (Kind.TIMESTAMP, Kind.TIME, Kind.INTERVAL):
        aware = getattr(type_, "timezone", False)
        parts = takes.kind is Kind.INTERVAL and takes.native
        digits = 6 if precision is None else precision
        return replace(takes, aware=aware, parts=parts, digits=digits)
    if takes.kind is Kind.ENUM:
        return replace(takes, labels=tuple(type_.enums))
    return takes


def _of_mysql(takes: Wanted, type_: Any) -> Wanted:
    if takes.kind is Kind.INTEGER:
        if isinstance(type_, mysql.YEAR):
            return replace(takes, bounds=(1901, 2155))
        return replace(takes, bounds=_bounds(type_))
    if takes.kind is Kind.FLOAT:
        takes = replace(takes, single=not isinstance(type_, types.Double | mysql.DOUBLE))
        if getattr(type_, "scale", None) is None:
            return replace(takes, unsigned=_unsigned(type_))
    if takes.kind in (Kind.NUMERIC, Kind.FLOAT):  # DOUBLE(7, 2) rounds as DECIMAL(7, 2) does
        precision, scale = type_.precision, _scale(type_)
        return replace(takes, unsigned=_unsigned(type_), precision=precision, scale=scale)
    if takes.kind is Kind.ENUM:
        return replace(takes, labels=tuple(type_.enums))
    if takes.kind in (Kind.TIMESTAMP, Kind.TIME, Kind.INTERVAL):
        digits = getattr(type_, "fsp", None) or 0
        return replace(takes, digits=digits, aware=isinstance(type_, types.TIMESTAMP))
    if takes.kind in (Kind.TEXT, Kind.BYTES, Kind.JSON):
        fixed = isinstance(type_, types.CHAR | types.BINARY)
        length = text_length(type_)
        size = next((size for each, size in _BYTES.items() if isinstance(type_, each)), None)
        if size is None and isinstance(type_, types.Text | types.BLOB | types.LargeBinary):
            size = _TEXT_BYTES
        if size is not None:
            return replace(takes, length=size, in_bytes=True)
        return replace(takes, length=length, fixed=fixed)
    return takes


def text_length(type_: Any) -> int | None:
    """The greatest length of a text. That of a SET is all of its members, with commas."""
    if isinstance(type_, mysql.SET):
        return len(",".join(type_.values))
    length: int | None = getattr(type_, "length", None)
    return length


def _scale(type_: Any) -> int | None:
    """Digits after the point; a precision alone leaves none."""
    if type_.scale is None and type_.precision is not None:
        return 0
    scale: int | None = type_.scale
    return scale


def _bounds(type_: Any) -> tuple[int, int]:
    bits = next((bits for each, bits in _BITS.items() if isinstance(type_, each)), 32)
    if _unsigned(type_):
        return 0, 2**bits - 1
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def _unsigned(type_: Any) -> bool:
    return bool(getattr(type_, "unsigned", False))
