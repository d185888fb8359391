"""Recent: bounded tables of recently used keys.

Texts are stored by their hash, because a text may be megabytes long. If two texts have the same
hash, a guess may be wrong, which only costs time.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

V = TypeVar("V")

TEXTS = 1_000
"""The largest number of statement texts or call sites in a table."""


def keep(table: OrderedDict[int, V], key: int, value: V) -> None:
    """Store it as the most recently used key. Above the bound, the least recently used is dropped.

    Several threads may do this at the same time, since each step is atomic.
    """
    table[key] = value
    try:
        table.move_to_end(key)
    except KeyError:  # another thread has just dropped it
        return
    if len(table) > TEXTS:
        table.popitem(last=False)
