"""A checksum of rows that is the same in every database, and does not depend on their order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from decimal import Decimal
from hashlib import blake2b
from typing import Any

from qsession.transfer.kinds import Kind

_SIZE = 16


class Digest:
    """How many rows, and the sum of their hashes, 128 bits each.

    It finds accidents; it is not made to withstand somebody who wants two tables to look alike.
    """

    __slots__ = ("_canonical", "rows", "total")

    def __init__(self, kinds: Sequence[Kind], rows: int = 0, total: int = 0) -> None:
        canonical = [(at, _CANONICAL[kind]) for at, kind in enumerate(kinds) if kind in _CANONICAL]
        self._canonical = canonical
        self.rows = rows
        self.total = total

    def add(self, rows: Iterable[Sequence[Any]]) -> None:
        """Take in converted rows; nothing of them is kept."""
        total = self.total
        for row in rows:
            values = list(row)
            for at, canonical in self._canonical:
                if values[at] is not None:
                    values[at] = canonical(values[at])
            encoded = repr(values).encode(errors="surrogatepass")
            total += int.from_bytes(blake2b(encoded, digest_size=_SIZE).digest(), "big")
            self.rows += 1
        self.total = total % 2 ** (8 * _SIZE)

    @property
    def text(self) -> str:
        return f"{self.total:0{2 * _SIZE}x}"


def _decimal(value: Decimal) -> str:
    """One form of each number. Not all digits in full: an exponent may be enormous."""
    sign, digits, exponent = value.as_tuple()
    significant = "".join(map(str, digits)).lstrip("0")
    kept = significant.rstrip("0")
    if not kept or not isinstance(exponent, int):
        return "0" if value.is_finite() else str(value)
    return f"{'-' if sign else ''}{kept}e{exponent + len(significant) - len(kept)}"


def _float(value: float) -> float:
    return value + 0.0  # there is one zero


def _timestamp(value: datetime | str) -> str:
    if isinstance(value, str):
        return value  # infinity
    return (value if value.tzinfo is None else value.astimezone(timezone.utc)).isoformat()


def _json(text: str) -> str:
    """Keys sorted, the last of equal ones kept, numbers by value.

    All levels are left to the json module. A function here that calls itself would need more of
    the stack than `values.to_json`, and fail where that has found nothing wrong.
    """
    return json.dumps(json.loads(text, parse_float=_number, parse_int=_number), sort_keys=True)


def _number(text: str) -> str:
    return f"\0{_decimal(Decimal(text))}"  # no text is taken for it by accident


_CANONICAL: dict[Kind, Callable[[Any], Any]] = {
    Kind.FLOAT: _float,
    Kind.NUMERIC: _decimal,
    Kind.TIMESTAMP: _timestamp,
    Kind.JSON: _json,
    Kind.UUID: str,
    Kind.DATE: str,
    Kind.TIME: str,
}
