"""Loading: the rows of all tables, read, converted and written, a batch at a time."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncConnection

from qsession.errors import CopyError
from qsession.transfer import books
from qsession.transfer.digest import Digest
from qsession.transfer.events import Progress, Stage, TableReport
from qsession.transfer.options import Options
from qsession.transfer.plan import TablePlan
from qsession.transfer.problems import Problems
from qsession.transfer.reading import batches, count_rows, order_of, select_rows
from qsession.transfer.target import begin
from qsession.transfer.wording import counted, place_of, reason_of
from qsession.transfer.writing import write


class Loading:
    """One pass over the tables. It stops writing at the first problem, and goes on looking."""

    def __init__(
        self,
        source: AsyncConnection,
        target: AsyncConnection,
        plans: Sequence[TablePlan],
        entries: Mapping[str, books.Entry],
        options: Options,
    ) -> None:
        self.source = source
        self.target = target
        self.plans = plans
        self.entries = entries
        self.options = options
        self.problems = Problems()
        self.reports: list[TableReport] = []
        self._digests: list[Digest] = []
        self._done = 0
        self._total = 0

    @property
    def _writes(self) -> bool:
        return not (self.options.check or self.problems)

    async def run(self) -> None:
        """Copy table after table. Cancelled, the transaction is the caller's to roll back."""
        for plan in self.plans:
            with _reading(self.source, plan):
                self._total += await count_rows(self.source, plan.source)
        for plan in self.plans:
            await self._copy(plan)

    async def _copy(self, plan: TablePlan) -> None:
        """One table. Rows without an order cannot be resumed in the middle: all or none are there.

        What an earlier run has copied is read again and has to be the same, then the rest follows.
        So the target ends as the source is now, whatever happened to it in between.
        """
        resume = self.options.resume
        order = order_of(plan.source, self.source.dialect) if resume else []
        entry = self.entries.get(plan.name, books.Entry())
        already, number, digest = entry.rows, 0, plan.digest()
        if self._writes and not order:
            await begin(self.target)
        query = select_rows(plan.source, plan.names, self.source.dialect, order)
        self._tell(plan, 0)
        async with contextlib.aclosing(self._batches(plan, query)) as read:
            async for rows in read:
                old = len(rows) if already and not order else min(len(rows), already - number)
                if old > 0:
                    digest.add(plan.convert(rows[:old], number + 1, self.problems))
                    number += old
                    if order and number == already:
                        _refuse_changes(plan, entry, digest)
                if new := rows[max(0, old) :]:
                    converted = plan.convert(new, number + 1, self.problems)
                    number += len(new)
                    if resume or self.options.verify:
                        digest.add(converted)
                    if self._writes:
                        entry = await self._write(plan, converted, entry, digest, bool(order))
                self._tell(plan, len(rows))
        if number < already or (already and not order):
            _refuse_changes(plan, entry, digest)
        elif resume and not order and number and self._writes:
            await books.note(self.target, plan.name, entry, _entry(digest))
            await self.target.commit()
        self._digests.append(digest)
        taken = resume or self.options.verify
        checksum = digest.text if taken and digest.rows == number else ""
        self.reports.append(TableReport(plan.name, number, already, checksum))

    async def _batches(
        self, plan: TablePlan, query: Select[Any]
    ) -> AsyncGenerator[list[Any], None]:
        async with contextlib.aclosing(batches(self.source, query)) as read:
            while True:
                with _reading(self.source, plan):
                    rows = await anext(read, None)
                if rows is None:
                    return
                yield rows

    async def _write(
        self,
        plan: TablePlan,
        rows: list[tuple[Any, ...]],
        entry: books.Entry,
        digest: Digest,
        commits: bool,
    ) -> books.Entry:
        try:
            if not commits:
                await write(self.target, plan.target, plan.names, plan.takes, rows)
                return entry
            now = _entry(digest)
            await begin(self.target)
            await books.note(self.target, plan.name, entry, now)
            await write(self.target, plan.target, plan.names, plan.takes, rows)
            await self.target.commit()
            return now
        except CopyError:
            raise
        except Exception as error:
            raise CopyError(
                f"the target, {place_of(self.target)}, refused rows of {plan.name}: "
                f"{reason_of(error)}"
            ) from error

    async def verify(self) -> None:
        """Read the target again. Raises :class:`CopyError`, which names the tables that differ."""
        self._done = 0
        wrong = []
        for plan, expected in zip(self.plans, self._digests, strict=True):
            found, unfit = plan.digest(), Problems()
            query = select_rows(plan.target, plan.names, self.target.dialect)
            self._tell(plan, 0, Stage.VERIFYING)
            async with contextlib.aclosing(batches(self.target, query)) as read:
                async for rows in read:
                    found.add(plan.convert_back(rows, unfit))
                    self._tell(plan, len(rows), Stage.VERIFYING)
            if found.rows + unfit.total != expected.rows:
                rows_found = counted(found.rows, "row")
                wrong.append(f"{plan.name} has {rows_found} instead of {expected.rows:,}")
            elif unfit or found.total != expected.total:
                wrong.append(f"{plan.name} has the checksum {found.text}, not {expected.text}")
        if wrong:
            raise CopyError(f"the target does not hold what was copied: {'; '.join(wrong)}")

    def _tell(self, plan: TablePlan, rows: int, stage: Stage | None = None) -> None:
        self._done += rows
        if self.options.progress is not None:
            doing = stage or (Stage.COPYING if self._writes else Stage.CHECKING)
            self.options.progress(Progress(doing, plan.name, self._done, self._total))


@contextlib.contextmanager
def _reading(source: AsyncConnection, plan: TablePlan) -> Iterator[None]:
    """Name the table in what the source says: a function that it lacks, a right, damage."""
    try:
        yield
    except Exception as error:  # asyncpg's cursor raises its own
        raise CopyError(
            f"the table {plan.source.fullname} of the source, {place_of(source)}, cannot be read: "
            f"{reason_of(error)}"
        ) from error


def _entry(digest: Digest) -> books.Entry:
    return books.Entry(digest.rows, digest.text)


def _refuse_changes(plan: TablePlan, entry: books.Entry, digest: Digest) -> None:
    if (digest.rows, digest.text) != (entry.rows, entry.digest):
        raise books.SourceChanged(
            f"the source has changed since the copy began: the first {counted(entry.rows, 'row')} "
            f"of {plan.source.fullname} are not those that were copied. Begin anew with --replace "
            "--resume"
        )
