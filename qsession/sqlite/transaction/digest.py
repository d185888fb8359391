"""Digests of results that the application has seen, to be compared before its first write.

A digest is made before the application gets the rows, because the application may change an object
that a converter made. It is small, because a transaction may read much.
"""

from __future__ import annotations

import hashlib
import marshal
import pickle
import sqlite3
from collections.abc import Iterable
from typing import Any

ROWS_AT_ONCE = 256
"""A larger number of rows is encoded in pieces."""
BYTES_KEPT = 512
"""A longer encoding is kept as a hash."""


class StreamDigest:
    """The digest of a result that is fetched in parts."""

    __slots__ = ("_description", "_hash", "_knowable", "count", "ended")

    def __init__(self, description: Any = None) -> None:
        self._description = description
        self._hash = hashlib.blake2b()
        self._knowable = True
        self.count = 0
        self.ended = False
        """Whether the application has seen the end of the rows."""

    def add(self, rows: Iterable[Any]) -> None:
        for row in rows:
            data = _encode([row])
            self._knowable = self._knowable and data is not None
            self._hash.update(data or b"")
            self.count += 1

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StreamDigest):
            return NotImplemented
        mine = self.count, self.ended, self._description
        others = other.count, other.ended, other._description
        knowable = self._knowable and other._knowable
        return knowable and mine == others and self._hash.digest() == other._hash.digest()

    __hash__ = None  # type: ignore[assignment]


def rows_seen(rows: list[Any]) -> object:
    """The digest of rows that were all fetched. Digests are equal only if the rows are equal."""
    if not rows:
        return b""
    found = hashlib.blake2b()
    for first in range(0, len(rows), ROWS_AT_ONCE):
        data = _encode(rows[first : first + ROWS_AT_ONCE])
        if data is None:
            return object()  # cannot be compared, so it counts as changed
        if len(data) <= BYTES_KEPT and len(rows) <= ROWS_AT_ONCE:
            return data
        found.update(data)
    return len(rows), found.digest()


def error_seen(error: Exception) -> object:
    """The digest of an error. Its text counts: it has the reason given by a trigger's RAISE()."""
    return type(error), str(error)


def _encode(rows: list[Any]) -> bytes | None:
    """The same bytes for equal rows, and different bytes for others; None if it cannot be done."""
    try:
        return marshal.dumps(rows, 2)  # version 2 has no back references
    except ValueError:  # a converter or a row factory made other types
        pass
    try:
        return pickle.dumps([_plain(row) for row in rows])
    except Exception:  # a class of the application may raise anything
        return None


def _plain(row: Any) -> Any:
    return tuple(row) if isinstance(row, (tuple, sqlite3.Row)) else row
