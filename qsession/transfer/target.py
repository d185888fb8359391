"""The target: opened so that it refuses rather than rounds, and left as it was after a failure."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import URL, Table, delete, literal, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ..handoff import to_end
from .reading import bare, connected, open_engine, settle, sqlite_file
from .schema import Completing, reflect_only

_BESIDE = ("", "-journal", "-wal", "-shm", "-qsession", "-qsession-next")
_LOCK_WAIT = 60
"""Seconds to wait for the server to let go of tables that are to be dropped."""


@dataclass
class Traces:
    """What a failed copy has to remove, because no rollback does."""

    tables: list[Table] = field(default_factory=list)
    """Tables that were made where DDL is no part of a transaction."""
    file: Path | None = None
    """A file of SQLite that was not there before."""

    def keep(self) -> None:
        """From now on the copy can be resumed."""
        self.tables.clear()
        self.file = None


@contextlib.asynccontextmanager
async def open_target(url: URL, traces: Traces) -> AsyncIterator[AsyncConnection]:
    """A connection to write on, in SQLite's queue of writers. The caller commits.

    What was not committed is rolled back, and what ``traces`` still has then is removed, to the
    end, through a cancellation.
    """
    file = sqlite_file(url)
    if file is not None and not file.exists():
        traces.file = file
    engine = open_engine(url)
    try:
        async with connected(engine) as connection:
            if connection.dialect.name == "sqlite":
                await connection.execution_options(qsession_access="write")
            yield connection
    finally:
        await to_end(_clean(engine, traces))


async def _clean(engine: AsyncEngine, traces: Traces) -> None:
    try:
        await _drop(engine, traces.tables)
    finally:
        await engine.dispose()
        if traces.file is not None:
            _remove(traces.file)


def _remove(file: Path) -> None:
    for end in _BESIDE:
        Path(f"{file}{end}").unlink(missing_ok=True)


async def _drop(engine: AsyncEngine, tables: Sequence[Table]) -> None:
    if not tables:
        return
    prepare = engine.dialect.identifier_preparer
    async with engine.connect() as connection:
        await connection.exec_driver_sql(
            f"SET SESSION foreign_key_checks = 0, lock_wait_timeout = {_LOCK_WAIT}"
        )
        there = (await connection.run_sync(reflect_only, tables)).tables
        made = [each for each in tables if each.key in there]
        if await occupied(connection, made):
            return  # the COMMIT came through after all, or somebody else was quicker
        for each in made:
            await connection.exec_driver_sql(f"DROP TABLE {prepare.format_table(each)}")


async def begin(target: AsyncConnection) -> None:
    """Begin a transaction in which nothing is rounded, cut or numbered anew on its way in."""
    if target.dialect.name in ("mysql", "mariadb"):
        await target.exec_driver_sql(
            "SET SESSION foreign_key_checks = 0, sql_mode = "
            "CONCAT(@@sql_mode, ',STRICT_ALL_TABLES,NO_AUTO_VALUE_ON_ZERO')"
        )
    await settle(target)


async def occupied(target: AsyncConnection, tables: Sequence[Table]) -> list[Table]:
    """Those that have rows."""
    one = literal(1)
    return [
        each for each in tables if await target.scalar(select(one).select_from(bare(each)).limit(1))
    ]


async def empty(target: AsyncConnection, tables: Sequence[Table]) -> None:
    """Delete the rows of tables that stand in the order parents first, in this transaction."""
    prepare = target.dialect.identifier_preparer
    if target.dialect.name == "postgresql" and tables:
        names = ", ".join(prepare.format_table(each) for each in tables)
        await target.exec_driver_sql(f"TRUNCATE {names}")
        return
    for each in reversed(tables):
        await target.execute(delete(bare(each)))


async def complete(target: AsyncConnection, statements: Completing) -> None:
    """Put the foreign keys back that were off; the database checks them."""
    if target.dialect.name == "postgresql":
        await target.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
    for _, statement in statements:
        await target.exec_driver_sql(statement)
