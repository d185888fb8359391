"""The default of a column for another kind of database: one that means the same, or none."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from sqlalchemy import Column, Dialect, Table, types
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeEngine

from qsession.transfer.kinds import Kind, wanted
from qsession.transfer.values import Unfit, converter

FIRST = "qsession_first"
THEN = "qsession_then"
"""In ``Table.info``: statements that are sent before the table is made, and after that."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)", re.ASCII)
_TEXT = re.compile(r"'((?:[^']|'')*)'", re.DOTALL)
_QUOTED = re.compile(r'"(?:[^"]|"")*"', re.DOTALL)
"""A text of SQLite in the quotes of a name: https://sqlite.org/quirks.html, 8."""
_MYSQL_TEXT = re.compile(r"'((?:[^'\\]|''|\\.)*)'", re.DOTALL)
_ESCAPED = re.compile(r"''|\\(.)", re.DOTALL)
_ESCAPES = {"0": "\0", "n": "\n", "r": "\r"}
"""What SHOW CREATE TABLE writes: https://mariadb.com/kb/en/string-literals/"""
_CAST = re.compile(r"::[\w\s\"\[\]().,]+$")
_NEXTVAL = re.compile(r"nextval\('([^']+)'::regclass\)")
_NOW = {
    "CURRENT_TIMESTAMP": (Kind.TIMESTAMP, Kind.DATE, Kind.TIME, Kind.TEXT),
    "CURRENT_DATE": (Kind.DATE, Kind.TIMESTAMP, Kind.TEXT),
    "CURRENT_TIME": (Kind.TIME, Kind.TEXT),
}
"""What columns of which kinds take."""


def keep_sequences(table: Table, options: dict[str, tuple[str, bool]], target: Dialect) -> None:
    """Let defaults of PostgreSQL stay, with their sequences, which the copy sets at its end.

    A primary key that has a sequence of its own gets a new one of its own, which counts the same.
    """
    statements: list[str] = []
    owned: list[str] = []
    prepare = target.identifier_preparer
    for column in table.columns:
        default = str(getattr(column.server_default, "arg", ""))
        own = f"nextval('{table.name}_{column.name}_seq'::regclass)"
        is_own = list(table.primary_key) == [column] and default.replace('"', "") == own
        sequences = _NEXTVAL.findall(default)
        known = [options.get(name.replace("''", "'"), ("", True)) for name in sequences]
        if is_own and all(usual for _, usual in known):
            column.server_default = None
            continue
        if sequences:
            column.autoincrement = False  # or it would be made with another sequence
        for name, (how, _) in zip(sequences, known, strict=True):
            statements.append(f"CREATE SEQUENCE IF NOT EXISTS {name} {how}".rstrip())
            if is_own:
                of = f"{prepare.format_table(table)}.{prepare.quote(column.name)}"
                owned.append(f"ALTER SEQUENCE {name} OWNED BY {of}".replace("%%", "%"))
    table.info[FIRST], table.info[THEN] = statements, owned


def default_of(
    column: Column[Any], type_: TypeEngine[Any], source: Dialect, target: Dialect
) -> tuple[str | None, str]:
    """The default for a column of ``type_``; and what of it was left out, for people."""
    if column.computed is not None:
        return None, "being computed: it is a column like others there, with the values it has"
    default = getattr(column.server_default, "arg", None)
    if default is None:
        return None, ""
    written = str(default).strip()
    while written.startswith("(") and written.endswith(")"):
        written = written[1:-1].strip()
    if "nextval(" in written and column is column.table.autoincrement_column:
        return None, ""  # what autoincrement stands for
    if source.name == "sqlite" and _QUOTED.fullmatch(written):
        written = "'{}'".format(written[1:-1].replace('""', '"').replace("'", "''"))
    literal = _without_cast(written)
    found = _for(literal, _value(literal, _is_mysql(source)), type_, target)
    return found, ("" if found else f"default {written}")


def _for(literal: str, given: Any, type_: TypeEngine[Any], target: Dialect) -> str | None:
    on_mysql = _is_mysql(target)
    if literal.upper() == "NULL":
        return "NULL"
    if on_mysql and isinstance(type_, types.Text | types.JSON | mysql.LONGTEXT | mysql.LONGBLOB):
        return None  # https://dev.mysql.com/doc/refman/8.4/en/data-type-defaults.html
    takes = wanted(Column("", type_), type_, target, None)
    if literal.upper() in _NOW:
        if takes.kind not in _NOW[literal.upper()]:
            return None
        if on_mysql:
            precise = isinstance(type_, mysql.DATETIME) and literal.upper() == "CURRENT_TIMESTAMP"
            return "CURRENT_TIMESTAMP(6)" if precise else f"({literal})"
        return literal
    if given is None:
        return None
    try:
        value = converter(takes)(given)
    except Unfit:
        return None
    if takes.kind is Kind.BOOLEAN:
        return str(value).lower() if target.name == "postgresql" else str(int(value))
    if takes.kind is Kind.UUID and target.name != "postgresql":
        return f"'{value.hex}'"
    if takes.kind is Kind.INTERVAL and target.name != "postgresql":
        return None
    if takes.kind is Kind.BYTES:
        return rf"'\x{value.hex()}'" if target.name == "postgresql" else f"X'{value.hex()}'"
    if takes.kind is Kind.JSON:
        return _quoted(value, on_mysql)
    if takes.kind in (Kind.INTEGER, Kind.NUMERIC):
        return str(value)
    return _quoted(given, on_mysql) if isinstance(given, str) else literal


def _is_mysql(dialect: Dialect) -> bool:
    return dialect.name in ("mysql", "mariadb")


def _quoted(text: str, on_mysql: bool) -> str:
    """A literal of SQL. A backslash stands for itself, but for MySQL."""
    text = text.replace("\\", "\\\\") if on_mysql else text
    return "'{}'".format(text.replace("'", "''"))


def _without_cast(written: str) -> str:
    """PostgreSQL writes ``'new'::character varying`` and ``(0)::numeric``."""
    shorter = _CAST.sub("", written).strip(" ()")
    return written if shorter == written else _without_cast(shorter)


def _value(literal: str, on_mysql: bool) -> Any:
    """What stands for itself: a number, a text, true or false, which are numbers in SQLite."""
    if literal.upper() in ("TRUE", "FALSE"):
        return int(literal.upper() == "TRUE")
    if _NUMBER.fullmatch(literal):
        return int(literal) if literal.lstrip("+-").isdecimal() else Decimal(literal)
    text = (_MYSQL_TEXT if on_mysql else _TEXT).fullmatch(literal)
    if text is None:
        return None
    return _ESCAPED.sub(_unescaped, text[1]) if on_mysql else text[1].replace("''", "'")


def _unescaped(match: re.Match[str]) -> str:
    return "'" if match[1] is None else _ESCAPES.get(match[1], match[1])
