"""`copy`: one copy from its beginning to its end."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import URL, ForeignKeyConstraint, MetaData, make_url
from sqlalchemy.ext.asyncio import AsyncConnection

from ..errors import CopyError
from . import books
from . import target as targets
from .events import Listener, Report
from .loading import Loading, reason_of
from .options import Options, refuse_wrong_urls, zone_of
from .plan import TablePlan
from .reading import count_rows, snapshot
from .references import find_orphans, take_off, unenforced
from .revisions import agree
from .schema import BOOKS, create_missing, declare, load_metadata, reflect, sort, virtual_tables
from .sequences import past_the_rows
from .target import Traces, open_target


async def copy(
    source: str | URL,
    target: str | URL,
    *,
    metadata: Any = None,
    resume: bool = False,
    replace: bool = False,
    verify: bool = False,
    check: bool = False,
    zone: str | None = None,
    progress: Listener | None = None,
) -> Report:
    """What :func:`qsession.copy` promises."""
    started = time.monotonic()
    source, target = make_url(source), make_url(target)
    given = None if metadata is None else load_metadata(metadata)
    options = Options(given, resume, replace, verify, check, zone_of(zone), progress)
    refuse_wrong_urls(source, target)
    traces = Traces()
    async with snapshot(source) as reading, open_target(target, traces) as writing:
        run = _Run(reading, writing, options, traces)
        try:
            loading = await run.load()
            if not check:
                await writing.commit()
                traces.keep()
        except CopyError as error:
            raise CopyError(f"{error}. {run.left}", error.problems) from error.__cause__
        except Exception as error:
            raise CopyError(f"the copy failed: {reason_of(error)}. {run.left}") from error
    seconds = time.monotonic() - started
    return Report(tuple(loading.reports), tuple(run.notes), not check, verify, seconds)


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
        self.left = "The target is as it was"

    async def load(self) -> Loading:
        """Everything but the last COMMIT. Raises :class:`CopyError`."""
        await targets.begin(self.target)
        going_on = await self._find_books()
        plans, keys, completing = await self._prepare()
        entries: dict[str, books.Entry] = {}
        if going_on:
            entries, completing = await self._go_on(plans)
        else:
            await self._make_room(plans)
        loading = Loading(self.source, self.target, plans, entries, self.options)
        if unenforced(self.source.dialect, self.target.dialect):
            await find_orphans(self.source, plans, keys, loading.problems)
        if not (self.options.check or loading.problems):
            completing = await self._begin(plans, keys, completing, going_on)
        await loading.run()
        if loading.problems:
            raise CopyError(_told(loading), loading.problems)
        if not self.options.check:
            await targets.begin(self.target)
            await targets.complete(self.target, completing)
            await past_the_rows(self.source, self.target, plans)
            if self.options.verify:
                await loading.verify()
            if self.options.resume:
                await books.end(self.target)
        return loading

    async def _find_books(self) -> bool:
        """Whether an earlier copy is to be resumed."""
        there = await books.are_there(self.target)
        if there and self.options.replace:
            await books.end(self.target)
            return False
        if there and not self.options.resume:
            raise CopyError(
                "nothing was copied: an earlier copy into this database is not complete. Go on "
                f"with it (--resume), or begin anew (--replace). Its progress is in {BOOKS}"
            )
        return there

    async def _prepare(self) -> tuple[list[TablePlan], list[ForeignKeyConstraint], list[str]]:
        """The tables, made where they are missing: plans in order, foreign keys, what is left."""
        dialects = self.source.dialect, self.target.dialect
        reflected = await self.source.run_sync(reflect)
        declared, self.notes = declare(reflected, self.options.metadata, *dialects)
        self.notes += await agree(self.source, self.target, declared)
        for name in await self.source.run_sync(virtual_tables):
            self.notes.append(f"{name}: not copied, as it is a virtual table or part of one")
        wanted = list(declared.tables.values())
        keys = [each for table in wanted for each in table.foreign_key_constraints]
        late = self.target.dialect.name == "postgresql"
        made, completing = await self.target.run_sync(create_missing, declared, late)
        if late is False and self.target.dialect.name != "sqlite":
            self.traces.tables += [table for table in wanted if table.key in made]
        there: MetaData = await self.target.run_sync(reflect, wanted)
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

    async def _go_on(self, plans: list[TablePlan]) -> tuple[dict[str, books.Entry], list[str]]:
        """Where the earlier copy stopped. Raises :class:`CopyError` if somebody was here since."""
        entries, completing = await books.load(self.target)
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
        return entries, completing

    async def _make_room(self, plans: list[TablePlan]) -> None:
        tables = [plan.target for plan in plans]
        occupied = await targets.occupied(self.target, tables)
        if occupied and not self.options.replace:
            names = ", ".join(each.fullname for each in occupied)
            raise CopyError(
                f"nothing was copied: the target is not empty, there are rows in {names}. Choose "
                "another one, or have them deleted (--replace)"
            )
        if not self.options.check:
            await targets.empty(self.target, tables)

    async def _begin(
        self,
        plans: list[TablePlan],
        keys: list[ForeignKeyConstraint],
        completing: list[str],
        going_on: bool,
    ) -> list[str]:
        """Take off foreign keys that no order satisfies, and begin the books."""
        if not going_on:
            late = sort(plan.target for plan in plans)[1]
            for drop, put_back in await take_off(self.target, late):
                await self.target.exec_driver_sql(drop)
                completing.append(put_back)
        if self.options.resume:
            if not going_on:
                await books.begin(self.target, [plan.name for plan in plans], completing)
            await self.target.commit()
            self.traces.keep()
            self.left = "Go on with --resume, or begin anew with --replace"
        return completing


def _told(loading: Loading) -> str:
    found = loading.problems
    lines = "\n".join(f"  {line}" for line in found.lines())
    return (
        f"{found.total:,} values of {len(found.counts)} kinds do not fit into the target. Correct "
        f"them in the source, or change the column there:\n{lines}\n"
    )
