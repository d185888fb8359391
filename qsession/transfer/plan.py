"""What is done with one table: which columns, from which to which type, in batches of columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import tzinfo
from typing import Any

from sqlalchemy import Dialect, Table

from qsession.errors import CopyError
from qsession.transfer.digest import Digest
from qsession.transfer.kinds import Kind, Wanted, wanted
from qsession.transfer.problems import Problems
from qsession.transfer.reading import read_as_utc, with_utc
from qsession.transfer.values import Unfit, converter


class TablePlan:
    """How the rows of one table get from ``source`` to ``target``, as they are in each."""

    def __init__(
        self,
        source: Table,
        target: Table,
        declared: Table,
        dialects: tuple[Dialect, Dialect],
        zone: tzinfo | None,
    ) -> None:
        self.source = source
        self.target = target
        self.name = target.fullname
        self.source_dialect = dialects[0]
        self.to_file = dialects[1].name == "sqlite"
        self.names = _columns(source, target)
        self.takes = [_takes(source, target, declared, name, dialects, zone) for name in self.names]
        key = [each.name for each in source.primary_key]
        self._key = [self.names.index(name) for name in key if name in self.names]
        convert = [converter(each) for each in self.takes]
        self._from_source = _chained(convert, read_as_utc(source, self.names))
        self._from_target = _chained(convert, read_as_utc(target, self.names))

    def digest(self, rows: int = 0, total: int = 0) -> Digest:
        return Digest([each.kind for each in self.takes], rows, total)

    def convert(self, rows: Sequence[Any], first: int, problems: Problems) -> list[tuple[Any, ...]]:
        """The rows as the target takes them; those it does not take are left out and noted.

        ``first`` is the number of the first of them in its table.
        """
        return self._convert(self._from_source, rows, first, problems)

    def convert_back(self, rows: Sequence[Any], problems: Problems) -> list[tuple[Any, ...]]:
        """The same for rows that were read from the target, to compare them."""
        return self._convert(self._from_target, rows, 1, problems)

    def takes_of(self, names: Sequence[str]) -> list[Wanted]:
        """What some of the columns take."""
        return [self.takes[self.names.index(name)] for name in names]

    def convert_keys(self, names: Sequence[str], rows: Iterable[Any]) -> list[tuple[Any, ...]]:
        """Values of some columns as the target takes them, without those that it does not take."""
        converters = [self._from_source[self.names.index(name)] for name in names]
        converted = []
        for row in rows:
            with suppress(Unfit):
                pairs = zip(converters, row, strict=True)
                converted.append(tuple(convert(value) for convert, value in pairs))
        return converted

    def _convert(
        self, converters: list[Any], rows: Sequence[Any], first: int, problems: Problems
    ) -> list[tuple[Any, ...]]:
        columns: list[Sequence[Any]] = []
        bad: set[int] = set()
        for at, column in enumerate(zip(*rows, strict=True)):
            convert = converters[at]
            try:
                columns.append([convert(value) for value in column])
            except Unfit:
                columns.append(self._one_by_one(at, convert, rows, first, problems, bad))
        converted = list(zip(*columns, strict=True))
        if bad:
            return [row for number, row in enumerate(converted) if number not in bad]
        return converted

    def _one_by_one(
        self,
        at: int,
        convert: Any,
        rows: Sequence[Any],
        first: int,
        problems: Problems,
        bad: set[int],
    ) -> list[Any]:
        column = []
        for number, row in enumerate(rows):
            try:
                column.append(convert(row[at]))
            except Unfit as unfit:
                column.append(None)
                bad.add(number)
                key = {self.names[each]: row[each] for each in self._key} or first + number
                problems.add(self.name, self.names[at], key, row[at], str(unfit))
        return column


def _columns(source: Table, target: Table) -> list[str]:
    there = {column.name for column in target.columns}
    lost = [
        column.name
        for column in source.columns
        if column.name not in there and column.computed is None
    ]
    if lost:
        raise CopyError(
            f"nothing was copied: the table {target.fullname} of the target lacks the "
            f"column{'' if len(lost) == 1 else 's'} {', '.join(lost)}. Add what is missing there, "
            "or drop the table, and the copy makes it"
        )
    return [
        column.name
        for column in target.columns
        if column.computed is None and column.name in source.columns
    ]


def _takes(
    source: Table,
    target: Table,
    declared: Table,
    name: str,
    dialects: tuple[Dialect, Dialect],
    zone: tzinfo | None,
) -> Wanted:
    there, here = dialects
    column = target.columns[name]
    if there.name == here.name == "sqlite":
        return Wanted(Kind.OTHER, nullable=bool(column.nullable))
    declares = {each.name: each for each in declared.columns}  # a key may differ from its name
    takes = wanted(column, declares[name].type, here, zone)
    same_driver = (there.name, there.driver) == (here.name, here.driver)
    if takes.kind is Kind.OTHER and not same_driver:
        raise CopyError(
            f"nothing was copied: {target.fullname}.{name} has the type {column.type!r} in the "
            f"target, and qsession cannot convert {source.columns[name].type!r} to it. Give the "
            "column another type there, or name your models (--metadata)"
        )
    return takes


def _chained(convert: list[Any], as_utc: list[int]) -> list[Any]:
    chained = list(convert)
    for at in as_utc:
        chained[at] = _after_utc(convert[at])
    return chained


def _after_utc(convert: Any) -> Any:
    return lambda value: convert(with_utc(value))
