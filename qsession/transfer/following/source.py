"""The file that is followed: one connection to read from, one to write by, and a lock beside it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, exc
from sqlalchemy.ext.asyncio import AsyncConnection

from qsession.errors import CopyError
from qsession.sqlite.processes.lock_file import LockFile, follow_name
from qsession.transfer.following.capture import take
from qsession.transfer.notes import naming
from qsession.transfer.reading import connected, open_engine
from qsession.transfer.untouched import mode_of, sqlite_file
from qsession.waiting.handoff import to_end

T = TypeVar("T")
PATIENCE = 3600
"""Seconds to wait for a writer, unless the URL says otherwise: a copy that gives up begins anew."""
RENEWED = 0.02
"""Seconds after which it is shown again that the holder of the turn is at work."""


class Source:
    """Two connections of one engine, in the write queue of the file."""

    def __init__(self, reading: AsyncConnection, writing: AsyncConnection) -> None:
        self.reading = reading
        self.writing = writing

    async def read(self, function: Callable[[Connection], T]) -> T:
        """Run a function in a snapshot of its own."""
        async with self.snapshot():
            return await self.reading.run_sync(function)

    @contextlib.asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncConnection]:
        """One state of the file, on the connection to read from."""
        try:
            yield self.reading
        finally:
            await to_end(self.reading.rollback())

    async def change(self, function: Callable[[Connection], T]) -> T:
        """Run a function in a transaction that has the lock from its first statement on."""
        try:
            result = await self.writing.run_sync(function)
            await self.writing.commit()
        except BaseException:
            await to_end(self.writing.rollback())
            raise
        return result

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncIterator[AsyncConnection]:
        """Let nobody else write: all wait, at their turn or for SQLite's lock.

        Yields the connection that may write. In the end what it has not committed is rolled back.
        """
        writing, working = self.writing, None
        try:
            await writing.exec_driver_sql("PRAGMA synchronous=FULL")  # for `commit_and_hold`
            await writing.run_sync(take)
            working = asyncio.create_task(self._show_work())
            yield writing
        finally:
            if working is not None:
                working.cancel()
            await to_end(writing.rollback())

    async def commit_and_hold(self) -> None:
        """Commit what was written in `hold`, to the disk, and go on holding.

        Processes with qsession wait at their turn, which stays here. SQLite's lock is free for a
        moment: another program that asks for it just then gets it. This waits for it in turn.
        """
        raw = await self.writing.get_raw_connection()
        driver: Any = raw.driver_connection
        # COMMIT comes first: https://docs.python.org/3/library/sqlite3.html, "executescript".
        await driver.executescript("BEGIN IMMEDIATE")

    async def _show_work(self) -> None:
        """Or processes with qsession would take the turn for stalled, and go on without it."""
        pool: Any = self.writing.engine.pool
        while True:
            pool.write_queue.turn.renew()
            await asyncio.sleep(RENEWED)


@contextlib.asynccontextmanager
async def open_source(url: URL, *, any_mode: bool = False) -> AsyncIterator[Source]:
    """Raises :class:`CopyError` for a file that is not in WAL mode, or that is followed already.

    ``any_mode``: a file in another mode is switched to WAL.
    """
    file = sqlite_file(url)
    assert file is not None
    with naming("source", url):  # before the lock file is made, which stays
        if mode_of(file) != "wal" and not any_mode:
            raise CopyError(
                "nothing was copied: the source is not in WAL mode, so nobody could write to it "
                "while it is read. Switch it (PRAGMA journal_mode=WAL), or copy without --follow"
            )
    with _alone(file):
        with naming("source", url):
            if "queue_timeout" not in url.query:
                url = url.update_query_dict({"queue_timeout": str(PATIENCE)})
            engine = open_engine(url)
        try:
            async with (
                connected(engine, "source", url) as reading,
                connected(engine, "source", url) as writing,
            ):
                await reading.execution_options(qsession_access="read")
                await writing.execution_options(qsession_access="write")
                yield Source(reading, writing)
        finally:
            await engine.dispose()


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    path = os.path.realpath(file)
    try:
        lock: Any = LockFile(follow_name(path), os.stat(path))
    except OSError as error:
        raise exc.ArgumentError(f"{str(file)!r} cannot be written to: {error.strerror}") from error
    try:
        if not lock.try_lock():
            raise CopyError("nothing was copied: another process follows this file, or cleans it")
        yield
    finally:
        lock.close()
