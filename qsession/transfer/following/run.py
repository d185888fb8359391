"""A copy that follows its source, from the first snapshot to the switch."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial

from sqlalchemy import URL, Connection, exc
from sqlalchemy.ext.asyncio import AsyncConnection

from qsession.errors import CopyError
from qsession.transfer import books
from qsession.transfer import target as targets
from qsession.transfer.collations import collations_of, collations_of_file
from qsession.transfer.events import Move, Progress, Stage
from qsession.transfer.following import capture as captures
from qsession.transfer.following.capture import Capture
from qsession.transfer.following.changes import Change, Changes
from qsession.transfer.following.foreign_keys import bring_back, defer, validate
from qsession.transfer.following.leaving import Leaving
from qsession.transfer.following.source import Source, open_source
from qsession.transfer.following.switch import Switch
from qsession.transfer.notes import add_note
from qsession.transfer.options import Options, refuse_wrong_urls
from qsession.transfer.reading import snapshot
from qsession.transfer.run import Run
from qsession.transfer.schema import Completing
from qsession.transfer.sequences import after_commit
from qsession.transfer.target import Traces, open_target
from qsession.transfer.wording import place_of, reason_of
from qsession.waiting.handoff import to_end

PAUSE = 0.5
"""Seconds between two looks at the source when there was little to do."""
LITTLE = 1_000
"""Changes. With no more than these at once the target is close behind the source."""
_LESS = 0.8
"""Of the changes at the look before."""
_BEHIND = (
    "The target has rows and is behind the source, which goes on as before. Begin anew with "
    "--replace"
)
_CLOSED = (
    "The source refuses writes, and the target says that it is not complete. Run the same command "
    "again: it completes the move, and runs the command after the switch again. Or let writes into "
    "the source again with qsession copy --clean. The source then lacks what was written to the "
    "target"
)
_MOVED = "The move is complete: the target is the database, and the source refuses writes"


async def follow(
    source: URL,
    target: URL,
    options: Options,
    *,
    switch: bool = False,
    pause: float = 5,
    switched: Callable[[], Awaitable[None]] | None = None,
) -> Move:
    """Copy a file of SQLite that is in use, and take over what changes, until it is left.

    Without ``switch`` it goes on until it is cancelled. With it, as soon as the target is close
    behind, all rows of both are compared; then writers wait, while the last changes are copied and
    compared, for ``pause`` seconds at most, and while ``switched`` runs, which gives the
    application the URL of the target. From then on the source refuses writes.

    Raises :class:`CopyError` if the copy is refused or fails, or ``switched`` raises. After an
    error or a cancellation the source is as it was, and the target says that it is not complete; a
    note on the cancellation says so. A cancellation while ``switched`` runs waits for its end, and
    the move is complete if it succeeds. If ``switched`` fails and the target has been written to,
    the source stays closed. If it is killed, the source takes writes, or it is closed and the
    target has all its rows. The same command goes on, or begins anew.
    """
    _refuse_servers(source)
    if options.check or options.resume:
        raise exc.ArgumentError("--follow cannot be combined with --check or --resume")
    refuse_wrong_urls(source, target)
    one = _Follow(source, target, options)
    try:
        return await one.run(switch, pause, switched)
    except asyncio.CancelledError as cancelled:
        add_note(cancelled, f"{one.left()}. Target: {one.place}")
        raise
    except CopyError as error:
        one.taken_over = isinstance(error, books.TakenOver)
        told = f"{error.message}. {one.left()}"
        raise CopyError(told, error.problems, error.counts) from error.__cause__


async def clean(source: URL) -> bool:
    """Take out of a file what a copy that was killed, or a switch, has put there.

    Afterwards a file that was left can be written to again. Returns whether there was something.
    If not, nothing is changed, and no file stays beside it. Raises :class:`CopyError` if another
    process follows it, and errors of SQLAlchemy if it is not a file of SQLite. Cancelled: all or
    nothing is done.
    """
    _refuse_servers(source)
    refuse_wrong_urls(source, URL.create("postgresql"))
    async with snapshot(source) as reading:
        if not await reading.run_sync(captures.is_there):
            return False
    async with open_source(source, any_mode=True) as opened:
        return await opened.change(captures.remove)


def _refuse_servers(source: URL) -> None:
    if source.get_backend_name() != "sqlite":
        raise exc.ArgumentError("only a file of SQLite can be followed")


class _Follow:
    """One run of it."""

    def __init__(self, source: URL, target: URL, options: Options) -> None:
        self.source_url = source
        self.target_url = target
        self.options = options
        self.traces = Traces()
        self.place = ""
        self.notes: list[str] = []
        self.taken_over = False
        self._copying: Run | None = None
        self._copied = False
        self._closed = False
        self._complete = False
        self._leftover = ""

    def left(self) -> str:
        """What remains in both, for people."""
        if self._complete:
            told = _MOVED
        elif self._closed:
            told = _CLOSED
        elif self.taken_over:
            told = "The source goes on as before"
        elif self._copied:
            told = _BEHIND
        else:
            told = self._copying.left if self._copying else "The target is as it was"
        return ". ".join(filter(None, (told, self._leftover, *self.traces.told())))

    async def run(
        self, switch: bool, pause: float, switched: Callable[[], Awaitable[None]] | None
    ) -> Move:
        started, rows, applied = time.monotonic(), None, 0
        async with open_source(self.source_url) as source, self._cleaning(source):
            collations = await source.read(collations_of_file)
            if self.options.metadata is not None:
                collations |= collations_of(self.options.metadata)
            async with open_target(self.target_url, self.traces, collations) as target:
                self.place = place_of(target)
                try:
                    following = await self._begin(source, target, switch)
                    if following is not None:
                        if not switch:
                            await following.forever()
                        rows = await following.to_the_end()
                        following.tell(Stage.SWITCHING)
                    waited = await self._switch(source, target, following, pause, switched)
                    if following is not None:
                        applied = following.changes.applied
                    await self._validate(source, target)
                except CopyError:
                    raise
                except Exception as error:
                    raise CopyError(f"the copy failed: {self._where(source, target, error)}") from (
                        error
                    )
        seconds = time.monotonic() - started
        return Move(rows, applied, waited, tuple(self.notes), seconds)

    async def _begin(
        self, source: Source, target: AsyncConnection, switch: bool
    ) -> _Following | None:
        """The first copy, or what an earlier run has left of one. None if that was the switch."""
        token = await source.read(partial(captures.noted, name="token"))
        moved = await source.read(partial(captures.noted, name="moved"))
        entries: dict[str, books.Entry] = {}
        unfinished: Completing = []
        if await books.are_there(target):
            entries, unfinished = await books.load(target)
        await target.rollback()
        known = token is not None and entries.get(books.FOLLOW, books.Entry()).digest == token
        if moved is not None and not known:
            self._complete = True  # as far as this run is concerned
            if await books.are_there(target) and not entries:  # on MySQL, killed before this
                await after_commit(target, await books.end(target))
            raise CopyError(
                f"nothing was copied: this file has moved to {moved}. To use it again, let writes "
                "in with qsession copy --clean"
            )
        if moved is not None:
            self._closed = True
            if self.options.replace or not switch:
                raise CopyError(
                    "nothing was copied: an earlier copy has closed this file, and did not finish. "
                    "To complete the move, use --switch without --replace"
                )
            return None
        capture = await source.read(captures.find)
        if known and capture is not None and not self.options.replace:
            self._copied = True
            run = await self._plan(source, target, capture.token)
            run.deferred = unfinished
            await self._defer_again(target, run)
        else:
            capture = await source.change(partial(captures.install, metadata=self.options.metadata))
            run = await self._copy(target, capture.token, known)
        changes = Changes(source.reading, target, run.plans)
        return _Following(source, changes, capture, run, self.options)

    async def _copy(self, target: AsyncConnection, token: str, anew: bool) -> Run:
        """``anew``: what the target has is of an earlier run, and was never complete."""
        options = replace(self.options, replace=True) if anew else self.options
        run = self._copying = Run(options, self.traces, token)
        run.target = target
        async with snapshot(self.source_url) as run.source:
            await run.load()
            await run.commit()
            self._copied = True
            self.notes += run.notes + await after_commit(target, run.later)
        return run

    async def _plan(self, source: Source, target: AsyncConnection, token: str) -> Run:
        run = Run(self.options, self.traces, token)
        run.target = target
        async with source.snapshot() as run.source:
            run.plans, run.keys, _ = await run.prepare({}, [])
        await target.rollback()
        return run

    async def _defer_again(self, target: AsyncConnection, run: Run) -> None:
        """Foreign keys are back already if the earlier run was killed on the way to the switch."""
        await bring_back(target, run.deferred)
        await defer(target, [plan.target for plan in run.plans])
        await target.commit()

    async def _switch(
        self,
        source: Source,
        target: AsyncConnection,
        following: _Following | None,
        pause: float,
        switched: Callable[[], Awaitable[None]] | None,
    ) -> float:
        """Hold the writers, and leave the source; the seconds for which they waited."""
        leaving = Leaving(source, target, switched, partial(self._differing, source, target))
        async with source.hold():
            started = time.monotonic()
            switch = following.switch() if following is not None else None
            if switch is not None:
                await switch.bring_up(pause)
            try:
                await to_end(self._leave(switch, leaving))
            finally:
                self._complete = leaving.complete
                if switch is not None:
                    self.notes += switch.notes
                    self._closed = switch.closed
                self._closed = self._closed and not leaving.reopened
                self.notes += leaving.notes
        return time.monotonic() - started

    async def _leave(self, switch: Switch | None, leaving: Leaving) -> None:
        if switch is not None:
            await switch.close()
        await leaving.run()

    async def _differing(self, source: Source, target: AsyncConnection) -> list[str]:
        """Compare all rows of a source that is closed. The tables that differ."""
        if self.options.progress is not None:
            self.options.progress(Progress(Stage.GOING_BACK, "", 0, 0))
        run = await self._plan(source, target, "")
        async with source.snapshot() as reading:
            await targets.begin(target)
            _, names = await Changes(reading, target, run.plans).differing()
            await target.rollback()
        return names

    async def _validate(self, source: Source, target: AsyncConnection) -> None:
        if target.dialect.name != "postgresql":
            return
        try:
            run = await self._plan(source, target, "")
            await validate(target, [plan.target for plan in run.plans])
        except Exception as error:
            await target.rollback()
            self.notes.append(f"not done: VALIDATE CONSTRAINT. It says: {reason_of(error)}")

    @contextlib.asynccontextmanager
    async def _cleaning(self, source: Source) -> AsyncIterator[None]:
        """In the end take out of the source what was put there, unless it is needed."""
        try:
            yield
        finally:
            await to_end(self._clean(source))

    async def _clean(self, source: Source) -> None:
        try:
            if not await source.read(captures.is_there):
                return
            if self._closed and not self._complete:
                self._closed = await source.read(partial(captures.noted, name="moved")) is not None
            if self._complete:
                await source.change(partial(captures.remove, keep_closed=True))
            elif not self._closed:
                await source.change(captures.remove)
        except Exception as error:
            self._leftover = (
                "Triggers and tables called qsession_follow stay in the source "
                f"({reason_of(error)}): remove them with qsession copy --clean"
            )
            self.notes.append(self._leftover)

    def _where(self, source: Source, target: AsyncConnection, failed: Exception) -> str:
        for side, connection in (("source", source.reading), ("target", target)):
            if connection.invalidated:
                lost = place_of(connection)
                return f"the connection to the {side}, {lost}, was lost: {reason_of(failed)}"
        return reason_of(failed)


class _Following:
    """The time between the first copy and the switch."""

    def __init__(
        self, source: Source, changes: Changes, capture: Capture, run: Run, options: Options
    ) -> None:
        self.source = source
        self.changes = changes
        self.capture = capture
        self.copied = run
        self.options = options
        self._compared = False
        """Whether all rows were looked at, so that what changes is to be looked at, too."""

    async def forever(self) -> None:
        """Apply what changes, until it is cancelled."""
        while True:
            if await self.catch_up() <= LITTLE:
                await asyncio.sleep(PAUSE)

    async def to_the_end(self) -> int:
        """Come close to the source, and compare all rows on the way; how many they are."""
        await self._come_close()
        rows = await self._compare()
        await self._come_close()
        return rows

    async def _come_close(self) -> None:
        """Catch up until little is left, or it does not get less: as much comes meanwhile."""
        before = math.inf
        while LITTLE < (count := await self.catch_up()) < _LESS * before:
            before = count

    async def catch_up(self) -> int:
        """Bring the target to the latest state of the source; how many changes that were."""
        async with self.source.snapshot():
            pending = await self._apply()
        await self._forget(pending)
        self.tell(Stage.FOLLOWING)
        return sum(change.count for change in pending)

    def switch(self) -> Switch:
        run = self.copied
        return Switch(self.source, self.changes, self.capture, run.keys, run.deferred)

    def tell(self, stage: Stage) -> None:
        if self.options.progress is not None:
            applied = self.changes.applied
            self.options.progress(Progress(stage, "", applied, applied))

    async def _apply(self) -> list[Change]:
        target = self.changes.target
        await self.source.reading.run_sync(self.capture.refuse_another_schema)
        pending = await self.changes.pending(self.capture)
        if pending:
            await self.changes.apply(pending, self.capture.token)
            if self._compared:
                await self.switch().refuse_orphans(pending)
            await target.commit()
            self.changes.note(pending)
        return pending

    async def _compare(self) -> int:
        """In one snapshot, which the target is brought to."""
        target = self.changes.target
        async with self.source.snapshot():
            pending = await self._apply()
            self.tell(Stage.COMPARING)
            await targets.begin(target)
            rows = await self.changes.compare_all()
            await self.switch().refuse_orphans()
            await target.rollback()
        self._compared = True
        await self._forget(pending)
        return rows

    async def _forget(self, applied: list[Change]) -> None:
        """Delete what was applied; but the last of each table, so that ``seq`` goes on growing."""
        if not applied:
            return
        statements = [
            f"DELETE FROM {each.captured.log} WHERE seq < {each.until}"  # noqa: S608
            for each in applied
        ]

        def forget(connection: Connection) -> None:
            for statement in statements:
                connection.exec_driver_sql(statement)

        await self.source.change(forget)
