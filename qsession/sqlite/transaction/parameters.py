"""The parameters of a statement as a log keeps them: immutable, and of a known size."""

from __future__ import annotations

import sqlite3
from typing import Any

_PLAIN = frozenset((int, float, str, bytes, type(None)))
"""Immutable types that SQLite accepts directly."""
_AS_IT_IS = (int, float, str, bytes)


def frozen(row: Any) -> Any:
    """An immutable copy of the parameters, because validation must bind the same values again.

    A value with an adapter is adapted here, once.
    """
    if type(row) is dict:
        return {name: _frozen_value(value) for name, value in row.items()}
    if not isinstance(row, (tuple, list)):
        return row
    if isinstance(row, tuple) and _PLAIN.issuperset(map(type, row)):
        return row
    return tuple(map(_frozen_value, row))


def _frozen_value(value: Any) -> Any:
    if type(value) in _PLAIN:
        return value
    try:
        value = sqlite3.adapt(value, sqlite3.PrepareProtocol, value)
        return value if isinstance(value, _AS_IT_IS) else memoryview(value).tobytes()
    except Exception:
        return value  # SQLite raises the error for it


def size_of(row: Any) -> int:
    """The approximate size of the parameters in bytes."""
    size = 0
    for each in row.values() if isinstance(row, dict) else row:
        size += len(each) if isinstance(each, (str, bytes)) else 8
    return size
