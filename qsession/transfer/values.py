"""One value, from what a database keeps to what a column of another one takes.

Nothing is lost: what cannot be converted exactly raises :class:`Unfit`, which says why. Where a
column says that it holds a decimal, what a float has past its 15th digit is not taken for data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from qsession.transfer.kinds import Kind, Wanted
from qsession.transfer.numerics import (
    INT64,
    WHOLE,
    to_boolean,
    to_float,
    to_integer,
    to_numeric,
)
from qsession.transfer.times import Unfit, to_date, to_interval, to_time, to_timestamp
from qsession.transfer.wording import name_of

__all__ = ["Unfit", "converter"]

Convert = Callable[[Any], Any]

_HEX = re.compile(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def converter(takes: Wanted) -> Convert:
    """The function that converts the values of one column. It raises :class:`Unfit`."""
    convert = _CONVERT[takes.kind]
    nullable = takes.nullable

    def checked(value: Any) -> Any:
        if value is not None:
            return convert(value, takes)
        if nullable:
            return None
        raise Unfit("NULL in a column that is NOT NULL")

    return checked


def to_text(value: Any, takes: Wanted) -> str:
    """A text; numbers, dates and UUIDs as they are written."""
    if isinstance(value, str):
        found = value
    elif isinstance(value, bool):
        raise Unfit("a boolean in a column of text")
    elif isinstance(value, int | float | Decimal):
        found = repr(value) if isinstance(value, float) else str(value)
    elif isinstance(value, UUID):
        found = value.hex if takes.length == 32 else str(value)
    elif isinstance(value, datetime):
        found = value.isoformat(" ")
    elif isinstance(value, date | time):
        found = value.isoformat()
    else:
        raise Unfit(f"{name_of(value)} in a column of text")
    if not takes.nul and "\0" in found:
        raise Unfit("a text with the character NUL, which the database does not take")
    try:
        size = len(found.encode()) if takes.in_bytes or not found.isascii() else len(found)
    except UnicodeEncodeError:
        raise Unfit("a text that is not valid UTF-8") from None
    if takes.length is not None and (size if takes.in_bytes else len(found)) > takes.length:
        raise Unfit(f"longer than {takes.length} {'bytes' if takes.in_bytes else 'characters'}")
    return found.rstrip(" ") if takes.fixed else found


def to_bytes(value: Any, takes: Wanted) -> bytes:
    """Bytes; a text that SQLite kept in a column of blobs becomes its UTF-8."""
    if isinstance(value, str):
        found = value.encode(errors="surrogateescape")
    elif isinstance(value, bytes | bytearray | memoryview):
        found = bytes(value)
    else:
        raise Unfit(f"{name_of(value)} in a column of blobs")
    if takes.length is not None and len(found) > takes.length:
        raise Unfit(f"longer than {takes.length} bytes")
    if takes.fixed and takes.length is not None and len(found) < takes.length:
        raise Unfit(f"shorter than {takes.length} bytes: the database would pad it")
    return found


def to_json(value: Any, takes: Wanted) -> str:
    """JSON as text. SQLite may have made a number of one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Unfit(f"{name_of(value)} in a column of JSON")
    text = value if isinstance(value, str) else json.dumps(value)
    escaped = not takes.nul and "\\u" in text
    try:
        found = json.loads(text, parse_constant=_refuse)
        plain = json.dumps(found, ensure_ascii=False) if escaped else ""
    except ValueError:
        raise Unfit("text that is not JSON") from None
    except RecursionError:
        raise Unfit("JSON that is nested too deeply for Python") from None
    if escaped:
        if "\\u0000" in plain:
            raise Unfit("JSON with the character NUL, which the database does not take")
        try:
            plain.encode()
        except UnicodeEncodeError:
            raise Unfit("JSON with half of a surrogate pair") from None
    if not text.isascii():
        to_text(text, _ANY_TEXT)
    if takes.length is not None and len(text.encode()) > takes.length:
        raise Unfit(f"longer than {takes.length} bytes")
    if takes.binary and takes.native and type(found) in (int, float):
        _check_affinity(text.strip())
    return text


def _check_affinity(number: str) -> None:
    """SQLite makes a number of JSON that is one: https://sqlite.org/datatype3.html, 3."""
    exact = Decimal(number)
    whole = WHOLE.fullmatch(number) is not None and abs(exact) < INT64
    if not (whole or Decimal(repr(float(exact))) == exact):
        raise Unfit("JSON that is a number with more digits than SQLite keeps")


def to_uuid(value: Any, takes: Wanted) -> UUID:
    """A UUID, from 32 hexadecimal digits, with dashes or without, or from 16 bytes."""
    if isinstance(value, UUID):
        return value
    if isinstance(value, str) and _HEX.fullmatch(value):
        return UUID(value)
    if isinstance(value, bytes) and len(value) == 16:
        return UUID(bytes=value)
    raise Unfit("not a UUID")


def to_label(value: Any, takes: Wanted) -> str:
    """One of the labels of an enum; a target without enums takes any text."""
    if not isinstance(value, str):
        raise Unfit(f"{name_of(value)} in a column of an enum")
    if takes.labels and value not in takes.labels:
        raise Unfit(f"not one of the labels {', '.join(takes.labels)}")
    return value


def as_it_is(value: Any, takes: Wanted) -> Any:
    """What the driver gives, unless it is a text that no driver takes back."""
    return to_text(value, _ANY_TEXT) if isinstance(value, str) else value


_ANY_TEXT = Wanted(Kind.TEXT)


_CONVERT: dict[Kind, Callable[[Any, Wanted], Any]] = {
    Kind.BOOLEAN: to_boolean,
    Kind.INTEGER: to_integer,
    Kind.FLOAT: to_float,
    Kind.NUMERIC: to_numeric,
    Kind.TEXT: to_text,
    Kind.BYTES: to_bytes,
    Kind.DATE: to_date,
    Kind.TIME: to_time,
    Kind.TIMESTAMP: to_timestamp,
    Kind.INTERVAL: to_interval,
    Kind.JSON: to_json,
    Kind.UUID: to_uuid,
    Kind.ENUM: to_label,
    Kind.OTHER: as_it_is,
}


def _refuse(constant: str) -> Any:
    raise ValueError(constant)
