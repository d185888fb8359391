"""What a copy tells while it runs, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class Stage(Enum):
    """What a copy is doing."""

    COPYING = "copying"
    CHECKING = "checking"  # it writes nothing, or no more
    VERIFYING = "verifying"
    FOLLOWING = "following"  # rows are changes here
    COMPARING = "comparing"
    SWITCHING = "switching"  # writers wait
    GOING_BACK = "going back"  # they still wait


@dataclass(frozen=True)
class Progress:
    """How far it is."""

    stage: Stage
    table: str
    done: int
    """Rows of all tables, in this stage."""
    total: int


Listener = Callable[[Progress], object]
"""Told after each batch, on the event loop. What it raises ends the copy."""


@dataclass(frozen=True)
class TableReport:
    """One table that was copied."""

    name: str
    rows: int
    already: int = 0
    """Rows of these that an earlier run had copied."""
    checksum: str = ""
    """Of its rows, where one was taken; the same in every kind of database."""


@dataclass(frozen=True)
class Move:
    """A source that was followed, and left."""

    rows: int | None
    """That were compared with the source, all in one state. None: an earlier run did that."""
    changes: int
    """That were applied after the first copy."""
    waited: float
    """Seconds for which writers waited at the switch."""
    notes: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Report:
    """A copy that is complete, or a check that found nothing wrong."""

    tables: tuple[TableReport, ...]
    notes: tuple[str, ...]
    """What was left out, for people."""
    written: bool
    verified: bool
    seconds: float

    @property
    def rows(self) -> int:
        return sum(each.rows for each in self.tables)
