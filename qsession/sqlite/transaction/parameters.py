"""The parameters of a statement, as a log keeps them: unchangeable, and of a known size."""

from __future__ import annotations

import sqlite3
from itertools import chain
from typing import Any

_ROWS_MEASURED = 64
_PLAIN = frozenset((int, float, str, bytes, type(None)))
"""Types of values that nobody can change, and that SQLite takes as they are."""
_AS_IT_IS = (int, float, str, bytes)
_TUPLE = frozenset((tuple,))


def frozen(parameters: Any, many: bool) -> Any:
    """The parameters as they are now, whatever the application does to them later.

    Validation has to bind the same again. What has an adapter is adapted here, once.
    """
    if not many:
        return _frozen_row(parameters)
    values = chain.from_iterable(parameters)
    if _TUPLE.issuperset(map(type, parameters)) and _PLAIN.issuperset(map(type, values)):
        return list(parameters)
    return [_frozen_row(row) for row in parameters]


def _frozen_row(row: Any) -> Any:
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
        return value  # SQLite will say what is wrong with it


def size_of(parameters: Any, many: bool) -> int:
    """About how many bytes they take: of many rows, some are measured."""
    if not many:
        return _size_of_row(parameters)
    some = parameters[:: 1 + len(parameters) // _ROWS_MEASURED]
    return sum(map(_size_of_row, some)) * len(parameters) // max(len(some), 1)


def _size_of_row(row: Any) -> int:
    size = 0
    for value in row.values() if isinstance(row, dict) else row:
        size += len(value) if isinstance(value, (str, bytes)) else 8
    return size
