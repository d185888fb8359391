"""One copy from its beginning to its end."""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager

from sqlalchemy import URL, ForeignKeyConstraint, MetaData, Table
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from qsession.errors import CopyError
from qsession.transfer import books
from qsession.transfer import target as targets
from qsession.transfer.arrays import find_shifted
from qsession.transfer.collations import collations_of, collations_of_file, refuse_strangers
from qsession.transfer.events import Report
from qsession.transfer.following.foreign_keys import defer
from qsession.transfer.identity import refuse_the_same
from qsession.transfer.left_out import left_out
from qsession.transfer.loading import Loading
from qsession.transfer.notes import add_note
from qsession.transfer.options import Options, refuse_wrong_urls
from qsession.transfer.plan import TablePlan
from qsession.transfer.problems import shorten
from qsession.transfer.reading import count_rows, snapshot
from qsession.transfer.references import find_orphans, refuse_orphans, take_off, unenforced
from qsession.transfer.revisions import agree
from qsession.transfer.schema import (
    BOOKS,
    REVISIONS,
    Completing,
    add,
    create,
    declare,
    missing_tables,
    reflect,
    reflect_only,
    refuse_what_is_no_table,
    sort,
)
from qsession.transfer.scratch import made_in_memory
from qsession.transfer.sequences import after_commit, past_the_rows
from qsession.transfer.target import Traces, look_at_target, open_target
from qsession.transfer.wording import counted, place_of, reason_of
from qsession.urls import place_of as place_of_url
from qsession.waiting.handoff import to_end


async def run(source: URL, target: URL, options: Options) -> Report:
    """What :func:`qsession.copy` promises."""
    started = time.monotonic()
    refuse_wrong_urls(source, target)
    traces, place = Traces(), place_of_url(target)
    one = Run(options, traces)
    failed: CopyError | None = None
    try:
        async with snapshot(source) as one.source:
            one.collations = await one.source.run_sync(collations_of_file)
            if options.metadata is not None:
                one.collations |= collations_of(options.metadata)
            async with _opened(target, one) as one.target:
                if not one.looks_only(target):
                    place = place_of(one.target)
                await refuse_the_same(one.source, one.target)
                try:
                    loading = await one.load()
                    if not options.check:
                        await one.commit()
                        one.notes += await after_commit(one.target, one.later)
                except CopyError as error:
                    failed = error  # told when all is cleaned up, and it is known what is left
                except Exception as error:
                    failed = CopyError(f"the copy failed: {one.where(error)}")
                    failed.__cause__ = error
    except asyncio.CancelledError as cancelled:
        add_note(cancelled, f"{'; '.join((one.left, *traces.told()))}. Target: {place}")
        raise
    one.notes += traces.told()
    if isinstance(failed, books.SourceChanged):
        one.left = "Until then the target keeps what was copied"
    left = "; ".join((one.left, *traces.told()))
    if failed is not None:
        told = f"{failed}. {left}"
        raise CopyError(told, failed.problems, failed.counts) from failed.__cause__
    seconds = time.monotonic() - started
    return Report(
        tuple(loading.reports), tuple(one.notes), not options.check, options.verify, seconds
    )


def _opened(target: URL, one: Run) -> AbstractAsyncContextManager[AsyncConnection]:
    """The target; a check changes no file, not even its journal mode."""
    if one.looks_only(target):
        return look_at_target(target)
    return open_target(target, one.traces, one.collations)


class Run:
    """One copy between two connections, which are set when they are open."""

    source: AsyncConnection
    target: AsyncConnection
    plans: list[TablePlan]
    keys: list[ForeignKeyConstraint]
    deferred: Completing
    """Of a source that is followed: what brings the foreign keys of the target back."""

    def __init__(self, options: Options, traces: Traces, token: str | None = None) -> None:
        self.options = options
        self.token = token
        """Of a source that is followed: the books stay, and say that the target is behind it."""
        self.traces = traces
        self.collations: set[str] = set()
        self.notes: list[str] = []
        self.later: list[str] = []
        self.begins_anew = False
        self.unmade: set[str] = set()
        """Tables that are missing in a target that is only looked at."""
        self.left = "The target is as it was"

    async def load(self) -> Loading:
        """Everything but the last COMMIT. Raises :class:`CopyError`."""
        await targets.begin(self.target)
        entries, unfinished = await self._open_books()
        plans, keys, completing = await self.prepare(entries, unfinished)
        self.keys = keys
        # Only now, as MySQL commits where tables are made.
        if self.begins_anew and not self.options.check:
            dropping = await books.end(self.target)
            self.later += [] if self.token else dropping
        if entries:
            await self._refuse_strangers(plans, entries)
        else:
            await self._make_room(plans)
        if self.options.check:
            await self.target.rollback()  # from here on nobody has to wait for it
        loading = Loading(self.source, self.target, plans, entries, self.options)
        if unenforced(self.source.dialect, self.target.dialect):
            await find_orphans(self.source, plans, keys, loading.problems)
        await find_shifted(self.source, plans, loading.problems)
        if not (self.options.check or loading.problems):
            completing = await self._begin(plans, completing, bool(entries))
        await loading.run()
        if loading.problems:
            found = loading.problems
            between_files = self.source.dialect.name == self.target.dialect.name == "sqlite"
            raise CopyError(
                found.told(between_files, self.options.metadata is not None),
                found.samples,
                found.counts,
            )
        if not self.options.check:
            await targets.begin(self.target)
            await targets.complete(self.target, completing)
            await refuse_orphans(self.target, plans)
            self.later += await past_the_rows(self.source, self.target, plans)
            if self.options.verify:
                await loading.verify()
            if self.options.resume:
                self.later += await books.end(self.target)
            if self.token:
                await self._stay_behind(self.token, plans, loading)
        return loading

    async def _stay_behind(self, token: str, plans: list[TablePlan], loading: Loading) -> None:
        self.plans = plans
        self.deferred = await defer(self.target, [plan.target for plan in plans])
        rows = sum(each.rows for each in loading.reports)
        await books.begin_following(self.target, token, rows, self.deferred)

    async def commit(self) -> None:
        """The last COMMIT. Where the connection is lost in it, nobody here knows how it ended."""
        before = self.left
        self.left = "It is not known whether COMMIT took effect: look into the target"
        try:
            await self.target.commit()
        except Exception:
            if not self.target.invalidated:
                self.left = before
            raise
        self.traces.keep()
        self.left = "The copy is complete, and stays in the target"

    async def _open_books(self) -> tuple[dict[str, books.Entry], Completing]:
        """How far an earlier copy came, and what completes the schema that it left.

        That is needed also where all begins anew: foreign keys that it took off must come back.
        """
        there = await books.are_there(self.target)
        if not there and self.token:
            await self._make_books()
        if not there:
            return {}, []
        entries, unfinished = await books.load(self.target)
        if self.token and not entries:  # it was killed before there was a row, on MySQL
            return {}, []
        if self.options.replace:
            self.begins_anew = True
            if books.FOLLOW in entries:  # before any of these foreign keys is taken off
                await targets.complete(self.target, unfinished)
                return {}, []
            return {}, unfinished
        if not self.options.resume:
            raise CopyError(
                "nothing was copied: an earlier copy into this database is not complete. Go on "
                "with it (--resume), or begin anew (--replace). Its progress is in the table "
                f"{BOOKS}"
            )
        return entries, unfinished

    async def _make_books(self) -> None:
        """Make their table before the rows, as MySQL commits what was done so far with it."""
        if self.target.dialect.name in ("mysql", "mariadb"):
            self.traces.tables.append(books.books)
            await to_end(self.target.run_sync(books.books.create, checkfirst=True))

    async def prepare(
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
        missing = await self.target.run_sync(missing_tables, declared)
        keys = [each for table in missing for each in table.foreign_key_constraints]
        there, completing = await self._there(declared, missing)
        made = {table.key for table in missing}
        completing += [each for each in unfinished if each[0] not in made]
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

    def where(self, failed: Exception) -> str:
        """The reason of a failure, and the side where a connection was lost."""
        for side, connection in (("source", self.source), ("target", self.target)):
            if connection.invalidated:
                place = place_of(connection)
                return f"the connection to the {side}, {place}, was lost: {reason_of(failed)}"
        return reason_of(failed)

    def looks_only(self, target: URL) -> bool:
        """Whether a target is not even opened to be written."""
        return self.options.check and target.get_backend_name() == "sqlite"

    async def _there(self, declared: MetaData, missing: list[Table]) -> tuple[MetaData, Completing]:
        """The tables as they are in the target, the missing ones made; and what completes them."""
        completing: Completing = []
        on_sqlite = self.target.dialect.name == "sqlite"
        made = MetaData()
        try:
            if missing and not self.looks_only(self.target.engine.url):
                completing = await self._create(declared, missing)
            elif missing:
                self.unmade = {each.fullname for each in missing}
                made = await asyncio.to_thread(made_in_memory, declared, missing, self.collations)
        except DBAPIError as error:
            statement = shorten(" ".join(str(error.statement).split()))
            raise CopyError(
                f"nothing was copied: the target, {place_of(self.target)}, refused {statement}: "
                f"{reason_of(error)}. Create the table there first"
            ) from error
        wanted = list(declared.tables.values())
        there: MetaData = await self.target.run_sync(reflect_only, wanted)
        if on_sqlite:
            await self.target.run_sync(refuse_strangers, [each.name for each in wanted])
        add(there, made)
        return there, completing

    async def _create(self, declared: MetaData, missing: list[Table]) -> Completing:
        """Make tables: the statements that complete them when the rows are there.

        On MySQL each is there for good at once. So it goes on to the end through a cancellation,
        and what is to be removed is known before any is made.
        """
        dialect = self.target.dialect.name
        making = self.target.run_sync(create, declared, missing, dialect == "postgresql")
        if dialect not in ("mysql", "mariadb"):
            return await making
        self.traces.tables += missing
        return await to_end(making)

    async def _refuse_strangers(
        self, plans: list[TablePlan], entries: dict[str, books.Entry]
    ) -> None:
        """Raise :class:`CopyError` if somebody else was here since the earlier copy stopped."""
        if set(entries) != {plan.name for plan in plans}:
            raise CopyError(
                "the earlier copy was one of other tables. Begin anew (--replace --resume)"
            )
        for plan in plans:
            count = await count_rows(self.target, plan.target)
            if count != entries[plan.name].rows:
                raise CopyError(
                    f"{plan.name} has {counted(count, 'row')} in the target, and this copy wrote "
                    f"{entries[plan.name].rows:,}: somebody else changed the table. Begin anew "
                    "(--replace --resume)"
                )

    async def _make_room(self, plans: list[TablePlan]) -> None:
        """See to it that the tables are empty, and stay so until the rows are there.

        Rows are deleted only with ``replace``: others may commit some while this waits for them.
        """
        replace = self.options.replace
        tables = [plan.target for plan in plans if plan.name not in self.unmade]
        writes = not self.options.check
        if writes:
            await targets.keep_out(self.target, tables, replace)
        if replace:
            if writes:
                await targets.empty(self.target, tables)
            return
        if occupied := await targets.occupied(self.target, tables, locked=writes):
            names = ", ".join(each.fullname for each in occupied)
            ways = "Choose another target, or have these rows deleted (--replace)"
            if self.options.check:
                ways = "To check as if they were deleted, add --replace: they stay"
            raise CopyError(
                f"nothing was copied: the target is not empty, there are rows in {names}. {ways}"
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
            self.left = (
                "The target keeps what was copied so far. Go on with --resume, or begin anew with "
                "--replace --resume"
            )
        return completing
