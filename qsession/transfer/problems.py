"""What was found wrong with rows: each kind of problem counted, and some rows of each named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qsession.errors import Problem
from qsession.transfer.wording import counted

SAMPLES = 5
"""Rows that are named of each kind of problem; all of them are counted."""
ORPHANED = "refers to a row of "
"""How the reason begins where a foreign key leads to nothing."""
_SHOWN = 60
"""Characters of a value that are shown."""


class Problems:
    """Counts of everything, and the first rows of each kind: its size does not grow with rows."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str, str], int] = {}
        """Rows by table, column and reason."""
        self.samples: list[Problem] = []

    def __bool__(self) -> bool:
        return bool(self.counts)

    def add(
        self, table: str, column: str, key: Mapping[str, Any] | int, value: Any, reason: str
    ) -> None:
        """Take note of one row. ``reason`` must not contain the value, or nothing adds up."""
        kind = table, column, reason
        self.counts[kind] = count = self.counts.get(kind, 0) + 1
        if count <= SAMPLES:
            self.samples.append(Problem(table, column, _name(key), shorten(value), reason))

    def count(self, table: str, column: str, reason: str, more: int) -> None:
        """Take note of ``more`` rows that are not looked at one by one."""
        kind = table, column, reason
        self.counts[kind] = self.counts.get(kind, 0) + more

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def told(self, between_files: bool, by_models: bool) -> str:
        """For people: what does not fit, and what to do."""
        fit = "does not fit" if self.total == 1 else "do not fit"
        lines = "\n".join(f"  {line}" for line in self.lines())
        return (
            f"{counted(self.total, 'value')} of {counted(len(self.counts), 'kind')} {fit} into the "
            f"target:\n{lines}\n{self._way_out(between_files, by_models)}"
        )

    def _way_out(self, between_files: bool, by_models: bool) -> str:
        """What helps against the kinds that were found."""
        reasons = {reason for _, _, reason in self.counts}
        orphans = {reason for reason in reasons if reason.startswith(ORPHANED)}
        zones = {reason for reason in reasons if "--zone" in reason}
        ways = ["Say which time zone is meant (--zone UTC)"] if zones else []
        how = ["with a column of another type"] if reasons - orphans - zones else []
        if orphans:
            how.append("without the foreign key")
        if how:
            ways.append("Correct the rows in the source")
            whole = ", or copy the file as it is (qsession backup)" if between_files else ""
            table = f"create the table in the target first, {' and '.join(how)}"
            models = "change your models too" if by_models else "name your models (--metadata)"
            ways.append(f"Or {table}, {'and' if by_models else 'or'} {models}{whole}")
        return ". ".join(ways)

    def lines(self) -> list[str]:
        """For people: each kind of problem, then rows that show it."""
        told = []
        for (table, column, reason), count in self.counts.items():
            told.append(f"{table}.{column}: {reason} ({counted(count, 'row')})")
            told += [
                f"    {each.row}: {each.value}"
                for each in self.samples
                if (each.table, each.column, each.reason) == (table, column, reason)
            ]
        return told


def shorten(value: Any) -> str:
    """A value as Python writes it, and not much more than a line of it."""
    if isinstance(value, str | bytes) and len(value) > _SHOWN:
        return f"{value[:_SHOWN]!r}... ({len(value):,} long)"
    shown = repr(value)
    return shown if len(shown) <= 2 * _SHOWN else f"{shown[: 2 * _SHOWN]}..."


def _name(key: Mapping[str, Any] | int) -> str:
    if isinstance(key, int):
        return f"row {key:,}"
    return ", ".join(f"{name}={shorten(value)}" for name, value in key.items())
