"""What samples come to: medians, ratios within a round, tables, bars and goals."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]
"""A sample as it stands in a file of results."""


@dataclass
class Table:
    """A table that can be printed or written into a page."""

    title: str
    head: list[str]
    rows: list[list[str]] = field(default_factory=list)

    def markdown(self) -> str:
        lines = [self.head, ["---", *("---:" for _ in self.head[1:])], *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@dataclass
class Bars:
    """A chart of horizontal bars: a name and a value for each."""

    title: str
    unit: str
    bars: list[tuple[str, float]]


@dataclass
class Goal:
    """Something to reach, and what was measured."""

    what: str
    wanted: str
    measured: str
    reached: bool


@dataclass
class Report:
    """What a comparison says for itself."""

    tables: list[Table]
    bars: list[Bars] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that `q` of all are not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def ratio(ours: list[Row], theirs: list[Row], value: Callable[[Row], float]) -> float:
    """The median, over the rounds, of our value divided by theirs in the same round."""
    others = {row["round"]: value(row) for row in theirs}
    pairs = [(value(row), others[row["round"]]) for row in ours if others.get(row["round"])]
    return median(mine / theirs for mine, theirs in pairs) if pairs else float("nan")


def select(rows: list[Row], **wanted: Any) -> list[Row]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def unique(values: Iterable[Any]) -> list[Any]:
    """The values in the order of their first appearance, each once."""
    return list(dict.fromkeys(values))


def times(number: float) -> str:
    """A ratio as text."""
    return "" if number != number else f"{number:.2f}" if number < 9.95 else f"{number:.0f}"


def at_least(what: str, wanted: float, measured: float) -> Goal:
    return Goal(what, f"≥ {wanted:g} x", f"{times(measured)} x", measured >= wanted)


def at_most(what: str, wanted: float, measured: float) -> Goal:
    return Goal(what, f"≤ {wanted:g} x", f"{times(measured)} x", measured <= wanted)
