"""A copy of a result that can be compared with a later one, whatever is done to the objects in it.

Two objects of the ORM are equal here if they are of one class, and what was loaded of them is
equal. They come from different sessions, so they are never equal by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row, inspect
from sqlalchemy.orm import InstanceState


def frozen(value: Any, _met: dict[int, int] | None = None) -> Any:
    """The copy: tuples of types and values."""
    met = {} if _met is None else _met
    if isinstance(value, Row | list | tuple):
        return tuple, tuple(frozen(each, met) for each in value)
    if isinstance(value, Mapping):
        return dict, tuple((key, frozen(each, met)) for key, each in value.items())
    if isinstance(value, bytearray):
        return bytearray, bytes(value)
    state = inspect(value, raiseerr=False)
    if not isinstance(state, InstanceState):
        return type(value), value
    if id(value) in met:  # two objects may refer to each other
        return InstanceState, met[id(value)]
    met[id(value)] = len(met)
    loaded = state.dict
    attributes = [key for key in state.mapper.attrs.keys() if key in loaded]  # noqa: SIM118
    return type(value), tuple((key, frozen(loaded[key], met)) for key in attributes)


def same(one: Any, other: Any) -> bool:
    """Whether two copies are equal. Values that cannot be compared are not."""
    try:
        return bool(one == other)
    except Exception:  # of a type of the application
        return False
