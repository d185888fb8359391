"""Bringing a target to the state of one snapshot of its source, and seeing that it is there.

All that was taken down is applied in one transaction of the target: the keys are deleted, then the
rows that the snapshot has by these keys are inserted. So no order of the changes matters, two rows
may have exchanged what is unique, and what is applied twice is as what is applied once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    and_,
    bindparam,
    collate,
    column,
    delete,
    func,
    literal,
    or_,
    select,
    table,
    text,
)
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import NullType

from qsession.errors import CopyError
from qsession.transfer import books
from qsession.transfer import target as targets
from qsession.transfer.digest import Digest
from qsession.transfer.following.capture import Capture, Captured
from qsession.transfer.following.conflicts import quoted
from qsession.transfer.plan import TablePlan
from qsession.transfer.problems import Problems
from qsession.transfer.reading import bare, batches, count_rows, select_rows
from qsession.transfer.wording import counted, place_of, reason_of
from qsession.transfer.writing import encoded, write

_KEYS_AT_ONCE = 100
"""How many rows a statement names by their keys."""


@dataclass(frozen=True)
class Change:
    """What was taken down of one table, and is not applied yet."""

    plan: TablePlan
    captured: Captured
    after: int
    """The last ``seq`` that was applied."""
    until: int
    count: int


class Changes:
    """What remains to be applied. It knows how far the target is."""

    def __init__(
        self, source: AsyncConnection, target: AsyncConnection, plans: Sequence[TablePlan]
    ) -> None:
        self.source = source
        self.target = target
        self.plans = plans
        self.applied = 0
        """Changes that the target has, since this run began."""
        self._until: dict[int, int] = {}

    async def pending(self, capture: Capture) -> list[Change]:
        """What the snapshot of ``source`` has in its tables of changes."""
        plans = {plan.source.name: plan for plan in self.plans}
        found = []
        for captured in capture.tables:
            after = self._until.get(captured.number, 0)
            log = table(captured.log, column("seq"))
            query = select(func.max(log.c.seq), func.count()).where(log.c.seq > literal(after))
            until, count = (await self.source.execute(query)).one()
            if count and captured.table in plans:
                found.append(Change(plans[captured.table], captured, after, until, count))
        return found

    async def apply(self, changes: Sequence[Change], token: str) -> None:
        """Begin a transaction of the target, which the caller ends, apply them there, and compare.

        Raises :class:`TakenOver` if the target is no longer that of the copy ``token``, and
        :class:`CopyError` if a row does not fit, if the target refuses one, or has another one in
        the end. Cancelled or failed, the transaction is to be rolled back.
        """
        await targets.begin(self.target)
        await books.note_following(self.target, token, sum(change.count for change in changes))
        try:
            for change in changes:
                await self._delete(change)
            for change in changes:
                await self._insert(change)
            if self.target.dialect.name == "postgresql":
                await self.target.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
        except CopyError:
            raise
        except Exception as error:
            raise CopyError(
                f"the target, {place_of(self.target)}, refused what has changed in the source: "
                f"{reason_of(error)}"
            ) from error

    def note(self, changes: Sequence[Change]) -> None:
        """Note that the target has committed them."""
        for change in changes:
            self._until[change.captured.number] = change.until
            self.applied += change.count

    async def compare_counts(self) -> None:
        """Raise :class:`CopyError` if a table has another number of rows than in the snapshot."""
        wrong = []
        for plan in self.plans:
            there, here = await asyncio.gather(
                count_rows(self.source, plan.source), count_rows(self.target, plan.target)
            )
            if there != here:
                wrong.append(f"{plan.name} has {counted(here, 'row')} instead of {there:,}")
        if wrong:
            raise CopyError(f"the target does not hold what the source does: {'; '.join(wrong)}")

    async def compare_all(self) -> int:
        """Read all rows of both and compare their checksums; how many rows there are.

        Raises :class:`CopyError`, which names the tables that differ.
        """
        total, wrong = await self.differing()
        if wrong:
            raise CopyError(
                f"the target does not hold what the source does: {', '.join(wrong)} differ. Did "
                "another program write to the target? Begin anew with --replace"
            )
        return total

    async def differing(self) -> tuple[int, list[str]]:
        """How many rows the source has, and the tables that the target has others of."""
        wrong, total = [], 0
        for plan in self.plans:
            there = plan.digest()
            query = select_rows(plan.source, plan.names, self.source.dialect)
            async with contextlib.aclosing(batches(self.source, query)) as read:
                async for rows in read:
                    there.add(plan.convert(rows, 1, Problems()))
            here = await self._digest(plan, select_rows(plan.target, plan.names, _of(self.target)))
            total += there.rows
            if (here.rows, here.total) != (there.rows, there.total):
                wrong.append(plan.name)
        return total, wrong

    async def _delete(self, change: Change) -> None:
        rows = bare(change.plan.target)
        if not change.captured.key:
            await self.target.execute(delete(rows))
            return
        async for _, keys in self._keys(change):
            await self.target.execute(delete(rows).where(self._named(change, keys)))

    async def _insert(self, change: Change) -> None:
        plan, problems, expected = change.plan, Problems(), change.plan.digest()
        async with contextlib.aclosing(batches(self.source, _rows(change))) as read:
            async for rows in read:
                converted = plan.convert(rows, 1, problems)
                if problems:
                    told = "\n".join(f"  {line}" for line in problems.lines())
                    raise CopyError(
                        f"the source has rows now that do not fit into the target:\n{told}",
                        problems.samples,
                        problems.counts,
                    )
                if converted:
                    expected.add(converted)
                    await write(self.target, plan.target, plan.names, plan.takes, converted)
        found = await self._found(change)
        if (found.rows, found.total) != (expected.rows, expected.total):
            raise CopyError(
                f"the target does not hold what was copied: {counted(expected.rows, 'row')} of "
                f"{plan.name} have changed, and it has {found.rows:,} of them, or other values"
            )

    async def _found(self, change: Change) -> Digest:
        """What the target has by these keys.

        A key of which the target takes two ways of writing for one, as of ``A`` and ``a``, is found
        by both. It counts for that by which it is there.
        """
        query = select_rows(change.plan.target, change.plan.names, _of(self.target))
        if not change.captured.key:
            return await self._digest(change.plan, query)
        plan, total = change.plan, change.plan.digest()
        at = [plan.names.index(name) for name in change.captured.key]
        async for converted, keys in self._keys(change):
            rows = (await self.target.execute(query.where(self._named(change, keys)))).all()
            found = plan.convert_back(rows, Problems())
            total.add(row for row in found if tuple(row[each] for each in at) in converted)
        return total

    async def _digest(self, plan: TablePlan, query: Select[Any]) -> Digest:
        """Of a whole table of the target.

        asyncpg leaves a cursor open to the end of the transaction, and a table with an open cursor
        cannot be altered. The end of a savepoint closes it.
        """
        found = plan.digest()
        inner = await self.target.begin_nested()
        async with contextlib.aclosing(batches(self.target, query)) as read:
            async for rows in read:
                found.add(plan.convert_back(rows, Problems()))
        await inner.rollback()
        return found

    async def _keys(
        self, change: Change
    ) -> AsyncGenerator[tuple[set[tuple[Any, ...]], list[tuple[Any, ...]]], None]:
        """The keys, converted, and as the target takes them, some at a time.

        One that it cannot take was never there.
        """
        takes = change.plan.takes_of(change.captured.key)
        async with contextlib.aclosing(batches(self.source, _keys(change))) as read:
            async for rows in read:
                keys = list(dict.fromkeys(change.plan.convert_keys(change.captured.key, rows)))
                for first in range(0, len(keys), _KEYS_AT_ONCE):
                    some = keys[first : first + _KEYS_AT_ONCE]
                    yield set(some), encoded(some, takes, _of(self.target).name)

    def _named(self, change: Change, keys: Sequence[tuple[Any, ...]]) -> ColumnElement[bool]:
        """The condition for rows with these keys.

        SQLite takes NULL in a primary key, and then others that differ by their case only, say.
        """
        is_file = _of(self.target).name == "sqlite"

        def same(name: str, value: Any) -> ColumnElement[bool]:
            given: Any = bindparam(None, value, type_=NullType())
            if not is_file:
                return column(name).op("=")(given)
            exactly = collate(column(name), "BINARY").op("IS")(given)
            return and_(column(name).op("IS")(given), exactly)

        names = change.captured.key
        pairs = [zip(names, key, strict=True) for key in keys]
        return or_(*(and_(*(same(*pair) for pair in key)) for key in pairs))


def _of(connection: AsyncConnection) -> Any:
    return connection.dialect


def _keys(change: Change) -> Any:
    return text(f"SELECT {_distinct(change)}")


def _distinct(change: Change) -> str:
    captured = change.captured
    return (
        f"DISTINCT {', '.join(captured.columns)} FROM {captured.log} "
        f"WHERE seq > {change.after} AND seq <= {change.until}"
    )


def _rows(change: Change) -> Any:
    plan = change.plan
    if not change.captured.key:
        return select_rows(plan.source, plan.names, plan.source_dialect)
    names = ", ".join(f"t.{quoted(name)}" for name in plan.names)
    return text(literally(f"SELECT {names} FROM {named_rows(change)}"))  # noqa: S608


def named_rows(change: Change) -> str:
    """The rows, as ``t``, that there are now by these keys, each once, found by an index.

    Compared in binary as well: where the key has a collation, a key that is written differently may
    not be among those that were deleted in the target.
    """
    captured = change.captured
    same = " AND ".join(
        f"t.{quoted(name)} IS q.{k} AND (t.{quoted(name)} COLLATE BINARY) IS q.{k}"
        for name, k in zip(captured.key, captured.columns, strict=True)
    )
    return (
        f"(SELECT {_distinct(change)}) AS q "
        f"CROSS JOIN {quoted(change.plan.source.name)} AS t ON {same}"
    )


def literally(query: str) -> str:
    """A statement for ``text()``, in which no part of a name is a parameter."""
    return query.replace(":", "\\:")
