"""One copy from its beginning to its end."""

from __future__ import annotations

import time

from sqlalchemy import URL, ForeignKeyConstraint, MetaData
from sqlalchemy.ext.asyncio import AsyncConnection

from qsession.errors import CopyError
from qsession.transfer import books
from qsession.transfer import target as targets
from qsession.transfer.arrays import find_shifted
from qsession.transfer.events import Report
from qsession.transfer.identity import refuse_the_same
from qsession.transfer.left_out import left_out
from qsession.transfer.loading import Loading, reason_of
from qsession.transfer.options import Options, refuse_wrong_urls
from qsession.transfer.plan import TablePlan
from qsession.transfer.problems import Problems
from qsession.transfer.reading import count_rows, snapshot
from qsession.transfer.references import find_orphans, refuse_orphans, take_off, unenforced
from qsession.transfer.revisions import agree
from qsession.transfer.schema import (
    BOOKS,
    REVISIONS,
    Completing,
    create,
    declare,
    missing_tables,
    reflect,
    reflect_only,
    refuse_what_is_no_table,
    sort,
)
from qsession.transfer.sequences import after_commit, past_the_rows
from qsession.transfer.target import Traces, open_target
from qsession.waiting.handoff import to_end


async def run(source: URL, target: URL, options: Options) -> Report:
    """What :func:`qsession.copy` promises."""
    started = time.monotonic()
    refuse_wrong_urls(source, target)
    traces = Traces()
    failed: Exception | None = None
    async with snapshot(source) as reading, open_target(target, traces) as writing:
        await refuse_the_same(reading, writing)
        one = _Run(reading, writing, options, traces)
        try:
            loading = await one.load()
            if not options.check:
                await one.commit()
                one.notes += await after_commit(writing, one.later)
        except Exception as error:
            failed = error  # told when all is cleaned up, and it is known what is left
    if traces.tables:
        names = ", ".join(each.fullname for each in traces.tables)
        why = "not dropped, as others use them, or the server did not let us"
        one.notes.append(f"{names}: made by this copy, and {why}")
        one.left += f"; tables that were made are {why}: {names}"
    if traces.file is not None:
        one.notes.append(f"{traces.file}: made by this copy, and not removed, as others use it")
        one.left += f"; {traces.file} was made and is not removed, as others use it"
    if isinstance(failed, books.SourceChanged):
        one.left = "Until then the target keeps what was copied"
    if isinstance(failed, CopyError):
        told = f"{failed}. {one.left}"
        raise CopyError(told, failed.problems, failed.counts) from failed.__cause__
    if failed is not None:
        raise CopyError(f"the copy failed: {reason_of(failed)}. {one.left}") from failed
    seconds = time.monotonic() - started
    return Report(
        tuple(loading.reports), tuple(one.notes), not options.check, options.verify, seconds
    )


class _Run:
    """One copy between two connections."""

    def __init__(
        self, source: AsyncConnection, target: AsyncConnection, options: Options, traces: Traces
    ) -> None:
        self.source = source
        self.target = target
        self.options = options
        self.traces = traces
        self.notes: list[str] = []
        self.later: list[str] = []
        self.begins_anew = False
        self.left = "The target is as it was"

    async def load(self) -> Loading:
        """Everything but the last COMMIT. Raises :class:`CopyError`."""
        await targets.begin(self.target)
        entries, unfinished = await self._open_books()
        plans, keys, completing = await self._prepare(entries, unfinished)
        # Only now, as MySQL commits where tables are made.
        if self.begins_anew and not self.options.check:
            self.later += await books.end(self.target)
        if entries:
            await self._refuse_strangers(plans, entries)
        else:
            await self._make_room(plans)
        loading = Loading(self.source, self.target, plans, entries, self.options)
        if unenforced(self.source.dialect, self.target.dialect):
            await find_orphans(self.source, plans, keys, loading.problems)
        await find_shifted(self.source, plans, loading.problems)
        if not (self.options.check or loading.problems):
            completing = await self._begin(plans, completing, bool(entries))
        await loading.run()
        if loading.problems:
            found = loading.problems
            raise CopyError(_told(found), found.samples, found.counts)
        if not self.options.check:
            await targets.begin(self.target)
            await targets.complete(self.target, completing)
            await refuse_orphans(self.target, plans)
            self.later += await past_the_rows(self.source, self.target, plans)
            if self.options.verify:
                await loading.verify()
            if self.options.resume:
                self.later += await books.end(self.target)
        return loading

    async def commit(self) -> None:
        """The last COMMIT. Where the connection is lost in it, nobody here knows how it ended."""
        try:
            await self.target.commit()
        except Exception:
            if self.target.invalidated:
                self.left = "It is not known whether COMMIT took effect: look into the target"
            raise
        self.traces.keep()

    async def _open_books(self) -> tuple[dict[str, books.Entry], Completing]:
        """How far an earlier copy came, and what completes the schema that it left.

        That is needed also where all begins anew: foreign keys that it took off must come back.
        """
        if not await books.are_there(self.target):
            return {}, []
        entries, unfinished = await books.load(self.target)
        if self.options.replace:
            self.begins_anew = True
            return {}, unfinished
        if not self.options.resume:
            raise CopyError(
                "nothing was copied: an earlier copy into this database is not complete. Go on "
                f"with it (--resume), or begin anew (--replace). Its progress is in {BOOKS}"
            )
        return entries, unfinished

    async def _prepare(
        self, entries: dict[str, books.Entry], unfinished: Completing
    ) -> tuple[list[TablePlan], list[ForeignKeyConstraint], Completing]:
        """The tables, made where they are missing: plans in order, foreign keys, what is left."""
        dialects = self.source.dialect, self.target.dialect
        reflected = await self.source.run_sync(reflect, self.options.metadata)
        declared, self.notes = declare(reflected, self.options.metadata, *dialects)
        copied = REVISIONS in entries
        self.notes += await agree(self.source, self.target, declared, copied)
        self.notes += await self.source.run_sync(left_out, self.options.metadata is None)
        wanted = list(declared.tables.values())
        if not wanted:
            raise CopyError("nothing was copied: there is no table to copy")
        keys = [each for table in wanted for each in table.foreign_key_constraints]
        made, completing = await self._create(declared)
        completing += [each for each in unfinished if each[0] not in made]
        there: MetaData = await self.target.run_sync(reflect_only, wanted)
        refuse_what_is_no_table(wanted, there)
        await targets.refuse_without_transactions(self.target, there.tables.values())
        ordered, _ = sort(there.tables.values())
        plans = [
            TablePlan(
                reflected.tables[table.key],
                table,
                declared.tables[table.key],
                dialects,
                self.options.zone,
            )
            for table in ordered
        ]
        keys += [each for table in ordered for each in table.foreign_key_constraints]
        return plans, keys, completing

    async def _create(self, declared: MetaData) -> tuple[set[str], Completing]:
        """Make the missing tables: their keys, and what completes them.

        On MySQL each is there for good at once. So it goes on to the end through a cancellation,
        and what is to be removed is known before any is made.
        """
        missing = await self.target.run_sync(missing_tables, declared)
        dialect = self.target.dialect.name
        making = self.target.run_sync(create, declared, missing, dialect == "postgresql")
        if dialect in ("mysql", "mariadb"):
            self.traces.tables += missing
            completing = await to_end(making)
        else:
            completing = await making
        return {table.key for table in missing}, completing

    async def _refuse_strangers(
        self, plans: list[TablePlan], entries: dict[str, books.Entry]
    ) -> None:
        """Raise :class:`CopyError` if somebody else was here since the earlier copy stopped."""
        if set(entries) != {plan.name for plan in plans}:
            raise CopyError(
                "the earlier copy was one of other tables: begin anew with replace (--replace)"
            )
        for plan in plans:
            count = await count_rows(self.target, plan.target)
            if count != entries[plan.name].rows:
                raise CopyError(
                    f"{plan.name} has {count} rows in the target, but {entries[plan.name].rows} "
                    "were copied: somebody else changed it. Begin anew with replace (--replace)"
                )

    async def _make_room(self, plans: list[TablePlan]) -> None:
        """See to it that the tables are empty, and stay so until the rows are there.

        Rows are deleted only with ``replace``: others may commit some while this waits for them.
        """
        tables, replace = [plan.target for plan in plans], self.options.replace
        writes = not self.options.check
        if writes:
            await targets.keep_out(self.target, tables, replace)
        if replace:
            if writes:
                await targets.empty(self.target, tables)
            return
        if occupied := await targets.occupied(self.target, tables, locked=writes):
            names = ", ".join(each.fullname for each in occupied)
            raise CopyError(
                f"nothing was copied: the target is not empty, there are rows in {names}. Choose "
                "another one, or have them deleted (--replace)"
            )

    async def _begin(
        self, plans: list[TablePlan], completing: Completing, going_on: bool
    ) -> Completing:
        """Take off foreign keys that no order satisfies, and begin the books."""
        if not going_on:
            late = sort(plan.target for plan in plans)[1]
            completing += await take_off(self.target, late)
        if self.options.resume:
            if not going_on:
                await books.begin(self.target, [plan.name for plan in plans], completing)
            await self.target.commit()
            self.traces.keep()
            self.left = "Go on with --resume, or begin anew with --replace"
        return completing


def _told(found: Problems) -> str:
    lines = "\n".join(f"  {line}" for line in found.lines())
    return (
        f"{found.total:,} values of {len(found.counts)} kinds do not fit into the target. Correct "
        f"them in the source, or change the column there:\n{lines}\n"
    )
