"""Recent: tables of what was used lately, with a bound.

Texts are remembered by their hash: one may be megabytes long. Where two have the same, a guess is
wrong, and a guess costs time only.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

V = TypeVar("V")

TEXTS = 1_000
"""Statement texts, or call sites, that a table remembers."""


def keep(table: OrderedDict[int, V], key: int, value: V) -> None:
    """Put it in as the one used last; past the bound, the one not used for longest is forgotten.

    Another thread may be here too: each step stands by itself.
    """
    table[key] = value
    try:
        table.move_to_end(key)
    except KeyError:  # it was just forgotten
        return
    if len(table) > TEXTS:
        table.popitem(last=False)
