"""Numbers: from what a database keeps to what a column of another one takes."""

from __future__ import annotations

import math
import re
import struct
from decimal import Decimal
from typing import Any

from qsession.transfer.kinds import Wanted
from qsession.transfer.times import Unfit
from qsession.transfer.wording import name_of

WHOLE = re.compile(r"-?(?:0|[1-9]\d*)", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)
_TRUE, _FALSE = {"1", "t", "true"}, {"0", "f", "false"}
_HUGE = Decimal(10) ** 40
"""Larger than any integer of a database."""
INT64 = 2**63
_NEGATIVE = "a negative number in a column that is unsigned"
_EXACT = 2**53
"""Up to here every integer is a float."""


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
    raise Unfit("neither true nor false, and neither 1 nor 0")


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
    elif isinstance(value, str) and len(value) < 100 and WHOLE.fullmatch(value):
        found = int(value)
    else:
        raise Unfit(f"{name_of(value)} in a column of integers")
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
        raise Unfit(f"{name_of(value)} in a column of floats")
    if math.isnan(found):
        if not takes.nan:
            raise Unfit("not a number (NaN), which the database does not know")
    elif math.isinf(found):
        if not takes.infinity:
            raise Unfit("infinity, which the database does not know")
    elif takes.single and _single(found) != found:
        raise Unfit("more digits than a float of 32 bits keeps")
    else:
        _check_digits(found, takes)
    return found


def _check_digits(found: float, takes: Wanted) -> None:
    """One of 32 bits, read as one of 64, shows more digits than it was written with.

    MariaDB keeps -0.09999999999999998 where it rounds -0.1 to three digits.
    """
    if takes.scale is None:
        if takes.unsigned and found < 0:
            raise Unfit(_NEGATIVE)
        return
    rounded = round(found, takes.scale)
    same = _single(rounded) == found if takes.single else f"{rounded:.15g}" == f"{found:.15g}"
    if not same:
        raise Unfit(f"more than {takes.scale} digits after the point")
    _check_extent(Decimal(repr(rounded)), takes)


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
        raise Unfit(f"{name_of(value)} in a column of decimals")
    _check_extent(found, takes)
    if takes.binary and not _survives_as_float(found):
        raise Unfit("more digits than the 15 that SQLite keeps of a decimal")
    return found


def _check_extent(found: Decimal, takes: Wanted) -> None:
    if takes.unsigned and found < 0:
        raise Unfit(_NEGATIVE)
    digits, exponent = _extent(found)
    if takes.scale is not None and -exponent > takes.scale:
        raise Unfit(f"more than {takes.scale} digits after the point")
    if takes.precision is not None and digits > takes.precision - (takes.scale or 0):
        before = takes.precision - (takes.scale or 0)
        raise Unfit(f"more than {before} digits before the point")


def _is_whole(value: float | Decimal) -> bool:
    """Whether a number is an integer of a size that any database has."""
    return math.isfinite(value) and -_HUGE < value < _HUGE and value == int(value)


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
    if value == value.to_integral_value() and abs(value) < INT64:
        return True
    return math.isfinite(float(value)) and Decimal(repr(float(value))) == value
