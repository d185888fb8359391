"""Loading: the rows of all tables, read, converted and written, a batch at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from qsession.errors import CopyError, QSessionError
from qsession.servers.failures import code_of
from qsession.transfer import books
from qsession.transfer.digest import Digest
from qsession.transfer.events import Progress, Stage, TableReport
from qsession.transfer.options import Options
from qsession.transfer.plan import TablePlan
from qsession.transfer.problems import Problems
from qsession.transfer.reading import batches, count_rows, order_of, select_rows
from qsession.transfer.target import begin
from qsession.transfer.writing import write

_REASON = 500
"""Characters that are shown of what a database says."""
_REFUSED = "42501"
"""insufficient_privilege of PostgreSQL."""
_RIGHTS = (
    "A copy needs SELECT on the tables and sequences of the source. In the target it needs SELECT, "
    "INSERT and UPDATE on the tables, SELECT and UPDATE on their sequences, CREATE on the schema "
    "where tables are missing or the copy can be resumed, TRUNCATE to replace, and to own tables "
    "that refer to themselves or to one another in a circle"
)


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
        async with contextlib.aclosing(batches(self.source, query)) as read:
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
        checksum = digest.text if digest.rows == number else ""
        self.reports.append(TableReport(plan.name, number, already, checksum))

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
                f"the target refused rows of {plan.name}: {reason_of(error)}"
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
                wrong.append(f"{plan.name} has {found.rows} rows instead of {expected.rows}")
            elif unfit or found.total != expected.total:
                wrong.append(f"{plan.name} has the checksum {found.text}, not {expected.text}")
        if wrong:
            raise CopyError(f"the target does not hold what was copied: {'; '.join(wrong)}")

    def _tell(self, plan: TablePlan, rows: int, stage: Stage | None = None) -> None:
        self._done += rows
        if self.options.progress is not None:
            doing = stage or (Stage.COPYING if self._writes else Stage.CHECKING)
            self.options.progress(Progress(doing, plan.name, self._done, self._total))


def _entry(digest: Digest) -> books.Entry:
    return books.Entry(digest.rows, digest.text)


def _refuse_changes(plan: TablePlan, entry: books.Entry, digest: Digest) -> None:
    if (digest.rows, digest.text) != (entry.rows, entry.digest):
        raise books.SourceChanged(
            f"the source has changed since the copy was begun: the first {entry.rows} rows of "
            f"{plan.source.fullname} are not those that were copied. Begin anew with replace "
            "(--replace) and resume"
        )


def reason_of(error: BaseException) -> str:
    """What a database says, without the statement and its parameters; and the rights to ask for."""
    ours = isinstance(error, QSessionError)
    said = (isinstance(error, DBAPIError) and not ours and error.orig) or error
    text = str(said) or type(said).__name__
    text = text if len(text) <= _REASON else f"{text[:_REASON]}..."
    refused = code_of(said) == _REFUSED and "row-level security" not in text
    return f"{text}. {_RIGHTS}" if refused else text
