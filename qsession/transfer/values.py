"""One value, from what a database keeps to what a column of another one takes.

Nothing is lost: what cannot be converted exactly raises :class:`Unfit`, which says why. Where a
column says that it holds a decimal, what a float has past its 15th digit is not taken for data.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from .kinds import Kind, Wanted
from .times import Unfit, to_date, to_interval, to_time, to_timestamp

__all__ = ["Unfit", "converter"]

Convert = Callable[[Any], Any]

_WHOLE = re.compile(r"-?(?:0|[1-9]\d*)", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)
_HEX = re.compile(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_TRUE, _FALSE = {"1", "t", "true"}, {"0", "f", "false"}
_HUGE = Decimal(10) ** 40
"""Larger than any integer of a database."""
_EXACT = 2**53
"""Up to here every integer is a float."""


def converter(takes: Wanted) -> Convert:
    """The function that converts the values of one column. It raises :class:`Unfit`."""
    convert = _CONVERT[takes.kind]
    nullable = takes.nullable

    def checked(value: Any) -> Any:
        if value is not None:
            return convert(value, takes)
        if nullable:
            return None
        raise Unfit("NULL in a column that takes none")

    return checked


def to_boolean(value: Any, takes: Wanted) -> bool:
    """True and false, 1 and 0, and the same as text."""
    if isinstance(value, str):
        if value.lower() in _TRUE:
            return True
        if value.lower() in _FALSE:
            return False
    elif isinstance(value, int | float | Decimal) and value in (0, 1):
        return bool(value)
    elif value in (b"\0", b"\1"):  # BIT(1) of MySQL
        return bool(value[0])
    raise Unfit("neither true nor false, nor 1 or 0")


def to_integer(value: Any, takes: Wanted) -> int:
    """An integer; a float or a text only if it is one, and looks like one."""
    if isinstance(value, int):
        found = int(value)
    elif isinstance(value, float | Decimal) and _is_whole(value):
        if isinstance(value, float) and abs(value) > _EXACT:
            raise Unfit("a float so large that it stands for several integers")
        found = int(value)
    elif isinstance(value, float | Decimal):
        raise Unfit("a number with a fraction in a column of integers")
    elif isinstance(value, str) and len(value) < 100 and _WHOLE.fullmatch(value):
        found = int(value)
    else:
        raise Unfit(f"{_name(value)} in a column of integers")
    if takes.bounds is not None and not takes.bounds[0] <= found <= takes.bounds[1]:
        least, greatest = takes.bounds
        raise Unfit(f"out of the range from {least} to {greatest}")
    return found


def to_float(value: Any, takes: Wanted) -> float:
    """A float; integers, decimals and texts only if nothing of them gets lost."""
    if isinstance(value, float):
        found = value
    elif isinstance(value, int | Decimal) or (isinstance(value, str) and _NUMBER.fullmatch(value)):
        exact = Decimal(value)
        found = float(exact)
        same = exact.is_nan() or found == exact or Decimal(repr(found)) == exact
        if not same or (math.isinf(found) and exact.is_finite()):
            raise Unfit("more digits than a float keeps")
    else:
        raise Unfit(f"{_name(value)} in a column of floats")
    if math.isnan(found):
        if not takes.nan:
            raise Unfit("not a number (NaN), which the database does not know")
    elif math.isinf(found):
        if not takes.infinity:
            raise Unfit("infinity, which the database does not know")
    elif takes.single and _single(found) != found:
        raise Unfit("more digits than a float of 32 bits keeps")
    return found


def to_numeric(value: Any, takes: Wanted) -> Decimal:
    """A decimal, within the digits that the column has before and after its point; or NaN."""
    if takes.nan and isinstance(value, Decimal) and value.is_nan():
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise Unfit("infinity or NaN in a column of decimals")
        found = _decimal_of(value, takes.scale)
    elif isinstance(value, int | Decimal) or (isinstance(value, str) and _NUMBER.fullmatch(value)):
        found = Decimal(value)
        if not found.is_finite():
            raise Unfit("infinity or NaN in a column of decimals")
    else:
        raise Unfit(f"{_name(value)} in a column of decimals")
    digits, exponent = _extent(found)
    if takes.scale is not None and -exponent > takes.scale:
        raise Unfit(f"more than {takes.scale} digits after the point")
    if takes.precision is not None and digits > takes.precision - (takes.scale or 0):
        before = takes.precision - (takes.scale or 0)
        raise Unfit(f"more than {before} digits before the point")
    if takes.binary and not _survives_as_float(found):
        raise Unfit("more digits than the 15 that SQLite keeps of a decimal")
    return found


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
        raise Unfit(f"{_name(value)} in a column of text")
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
        raise Unfit(f"{_name(value)} in a column of blobs")
    if takes.length is not None and len(found) > takes.length:
        raise Unfit(f"longer than {takes.length} bytes")
    if takes.fixed and takes.length is not None and len(found) < takes.length:
        raise Unfit(f"shorter than {takes.length} bytes, to which the database would fill it up")
    return found


def to_json(value: Any, takes: Wanted) -> str:
    """JSON as text. SQLite may have made a number of one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Unfit(f"{_name(value)} in a column of JSON")
    text = value if isinstance(value, str) else json.dumps(value)
    escaped = not takes.nul and "\\u" in text
    try:
        found = json.loads(text, parse_constant=_refuse)
        plain = json.dumps(found, ensure_ascii=False) if escaped else ""
    except ValueError:
        raise Unfit("text that is no JSON") from None
    except RecursionError:
        raise Unfit("JSON of more levels than Python reads") from None
    if escaped:
        if "\\u0000" in plain:
            raise Unfit("JSON with the character NUL, which the database does not take")
        try:
            plain.encode()
        except UnicodeEncodeError:
            raise Unfit("JSON with half of a character that takes two") from None
    if not text.isascii():
        to_text(text, _ANY_TEXT)
    if takes.length is not None and len(text.encode()) > takes.length:
        raise Unfit(f"longer than {takes.length} bytes")
    return text


def to_uuid(value: Any, takes: Wanted) -> UUID:
    """A UUID, from 32 hexadecimal digits, with dashes or without, or from 16 bytes."""
    if isinstance(value, UUID):
        return value
    if isinstance(value, str) and _HEX.fullmatch(value):
        return UUID(value)
    if isinstance(value, bytes) and len(value) == 16:
        return UUID(bytes=value)
    raise Unfit("no UUID")


def to_label(value: Any, takes: Wanted) -> str:
    """One of the labels of an enum; a target without enums takes any text."""
    if not isinstance(value, str):
        raise Unfit(f"{_name(value)} in a column of an enum")
    if takes.labels and value not in takes.labels:
        raise Unfit(f"none of the labels {', '.join(takes.labels)}")
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


def _name(value: Any) -> str:
    names = {str: "text", bytes: "a blob", float: "a float", int: "an integer", bool: "a boolean"}
    return names.get(type(value), f"a {type(value).__name__}")


def _is_whole(value: float | Decimal) -> bool:
    """Whether a number is an integer of a size that any database has."""
    return math.isfinite(value) and -_HUGE < value < _HUGE and value == int(value)


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _single(value: float) -> float:
    try:
        narrow: float = struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.inf
    return narrow


def _decimal_of(value: float, scale: int | None) -> Decimal:
    """The decimal that was meant: 0.30000000000000004 is 0.3 where two digits are kept."""
    exact = Decimal(repr(value))
    if scale is None or -_extent(exact)[1] <= scale:
        return exact
    rounded = Decimal(f"{value:.15g}")
    return rounded if -_extent(rounded)[1] <= scale else exact


def _extent(value: Decimal) -> tuple[int, int]:
    """Digits before the point, and the exponent of the last digit that is not zero."""
    _, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    count = len(digits)
    while count > 1 and digits[count - 1] == 0:
        count -= 1
        exponent += 1
    return (0, 0) if digits[:count] == (0,) else (max(0, count + exponent), min(0, exponent))


def _survives_as_float(value: Decimal) -> bool:
    if value == value.to_integral_value() and abs(value) < 2**63:
        return True
    return math.isfinite(float(value)) and Decimal(repr(float(value))) == value
