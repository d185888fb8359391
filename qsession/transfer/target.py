"""The target: opened so that it refuses rather than rounds, and left as it was after a failure."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Table, delete, literal, make_url, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from qsession.errors import ConflictError, CopyError
from qsession.servers.failures import code_of
from qsession.transfer.inheritance import names_alone, own_rows
from qsession.transfer.new_file import Opened, open_or_make, refuse_to_make, remove
from qsession.transfer.notes import naming
from qsession.transfer.reading import bare, connected, open_engine, settle
from qsession.transfer.schema import Completing, reflect_only
from qsession.transfer.untouched import sqlite_file, untouched
from qsession.waiting.handoff import to_end

_ATTEMPTS, _PAUSE = 300, 0.2
"""How often the server is asked for tables that are to be dropped, and seconds in between."""
_ASKED, _MOMENT = 20, 0.05
"""The same for a file of SQLite."""
_MYSQL = {"isolation_level": "REPEATABLE READ"}
_OPTIONS: dict[str, dict[str, Any]] = {
    "sqlite": {"qsession_access": "write"},
    "postgresql": {"isolation_level": "READ COMMITTED"},
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
}
"""So that what is looked for after a lock is what others have committed, whatever the server's
default. Less would leave no lock on a table of MySQL that is empty:
https://dev.mysql.com/doc/refman/8.4/en/innodb-locks-set.html"""
# https://mariadb.com/kb/en/information-schema-engines-table/
_NO_TRANSACTIONS = text(
    "SELECT e.engine FROM information_schema.tables t "
    "JOIN information_schema.engines e ON e.engine = t.engine "
    "WHERE t.table_schema = coalesce(:schema, database()) AND t.table_name = :name "
    "AND coalesce(e.transactions, 'NO') <> 'YES'"
)
_IN_USE = 1205
"""ER_LOCK_WAIT_TIMEOUT."""


@dataclass
class Traces:
    """What a failed copy has to remove, because no rollback does."""

    tables: list[Table] = field(default_factory=list)
    """Tables that were made where DDL is no part of a transaction. In the end: those that stayed,
    as others are at work with them, or the server could not be asked to drop them."""
    file: Path | None = None
    """A file of SQLite that was not there before, and that nobody else has written to. In the end:
    one that stayed, as others have it open by then."""

    def told(self) -> list[str]:
        """What stayed, and why, for people."""
        told = []
        if self.tables:
            names = ", ".join(each.fullname for each in self.tables)
            why = "others use them, or the server did not let us drop them"
            told.append(f"this copy made the tables {names}, and they stay: {why}")
        if self.file is not None:
            told.append(f"this copy made {self.file}, and it stays: others use it")
        return told

    def keep(self) -> None:
        """From now on the copy can be resumed."""
        self.tables.clear()
        self.file = None


@contextlib.asynccontextmanager
async def look_at_target(url: URL) -> AsyncIterator[AsyncConnection]:
    """A connection to a target on SQLite that leaves it as it is, also its journal mode.

    If there is no file, an empty database in memory stands for it.
    """
    path = sqlite_file(url)
    with naming("target", url):
        if path is not None and path.exists():
            engine = open_engine(await asyncio.to_thread(untouched, url))
        else:
            refuse_to_make(path)
            engine = open_engine(make_url("sqlite+qsession://"))
    try:
        async with connected(engine, "target", url) as connection:
            await connection.execution_options(qsession_access="read")
            yield connection
    finally:
        await engine.dispose()


@contextlib.asynccontextmanager
async def open_target(
    url: URL, traces: Traces, collations: Iterable[str] = ()
) -> AsyncIterator[AsyncConnection]:
    """A connection to write on, in SQLite's queue of writers. The caller commits.

    What was not committed is rolled back, and what ``traces`` still has then is removed, to the
    end, through a cancellation. SQLite gets stand-ins for ``collations`` that it lacks.
    """
    path = sqlite_file(url)
    with naming("target", url):
        engine = open_engine(url, collations)
    opened = None if path is None else open_or_make(path)
    try:
        async with connected(engine, "target", url) as connection:
            await connection.execution_options(**_OPTIONS[connection.dialect.name])
            if opened is not None:
                await _take_turn(connection, opened, traces)
            yield connection
    finally:
        await to_end(_clean(engine, traces))
        if opened is not None:
            opened.drop_unused()


async def _take_turn(connection: AsyncConnection, opened: Opened, traces: Traces) -> None:
    """Wait until nobody else writes to a file. If it is still empty then, it is this copy's."""
    found = await connection.scalar(text("SELECT count(*) FROM sqlite_master"))
    opened.refuse_another()
    if opened.made and not found:
        traces.file = opened.file


async def _clean(engine: AsyncEngine, traces: Traces) -> None:
    try:
        with contextlib.suppress(Exception):  # the server may be gone; what stays there is told
            await _drop(engine, traces)
    finally:
        await engine.dispose()
        await _remove(traces)


async def _remove(traces: Traces) -> None:
    """Ask for the file a while, as threads of the engine may have it open a moment longer."""
    for _ in range(_ASKED):
        if traces.file is None or remove(traces.file):
            traces.file = None
            return
        await asyncio.sleep(_MOMENT)


async def _drop(engine: AsyncEngine, traces: Traces) -> None:
    """Drop the tables that were made, unless others work with them or have rows there.

    A DROP TABLE waits for transactions that use the table, and goes through after their COMMIT,
    whatever they wrote. LOCK TABLES waits in the same way, so rows are looked for after it.
    """
    if not traces.tables:
        return
    prepare = engine.dialect.identifier_preparer
    async with connected(engine) as connection:
        await connection.exec_driver_sql("SET SESSION foreign_key_checks = 0")
        there = (await connection.run_sync(reflect_only, traces.tables)).tables
        traces.tables = [each for each in traces.tables if each.key in there]
        names = [prepare.format_table(each) for each in traces.tables]
        if not (names and await _lock(connection, names)):
            return
        if await occupied(connection, traces.tables):
            return  # the COMMIT came through after all, or somebody else was quicker
        await connection.exec_driver_sql(f"DROP TABLE {', '.join(names)}")
        traces.tables.clear()


async def _lock(connection: AsyncConnection, names: Sequence[str]) -> bool:
    """Lock tables of MySQL until the connection ends; False if others keep them for too long.

    It asks time and again instead of waiting in the server's line, which would hold up all that
    come behind. A copy in the middle of its rows is one of them, and it would lose by a deadlock.
    """
    least = 0 if getattr(connection.dialect, "is_mariadb", False) else 1
    await connection.exec_driver_sql(f"SET SESSION lock_wait_timeout = {least}")
    locking = f"LOCK TABLES {', '.join(f'{name} WRITE' for name in names)}"
    for _ in range(_ATTEMPTS):
        try:
            await connection.exec_driver_sql(locking)
        except (ConflictError, OperationalError) as error:
            if code_of(error.__cause__ or error) != _IN_USE:
                raise
            await asyncio.sleep(_PAUSE)
        else:
            return True
    return False


async def begin(target: AsyncConnection) -> None:
    """Begin a transaction in which nothing is rounded, cut or numbered anew on its way in."""
    if target.dialect.name in ("mysql", "mariadb"):
        await target.exec_driver_sql("SET SESSION foreign_key_checks = 0")
    await settle(target)


async def refuse_without_transactions(target: AsyncConnection, tables: Iterable[Table]) -> None:
    """Raise :class:`CopyError` for tables of MySQL whose engine cannot roll back, as MyISAM."""
    if target.dialect.name not in ("mysql", "mariadb"):
        return
    wrong = []
    for each in tables:
        of = {"schema": each.schema, "name": each.name}
        if (engine := await target.scalar(_NO_TRANSACTIONS, of)) is not None:
            wrong.append(f"{each.fullname} ({engine})")
    if wrong:
        raise CopyError(
            f"nothing was copied: the engines of {', '.join(wrong)} have no transactions, so the "
            "copy could not be undone. Convert the tables: ALTER TABLE ... ENGINE = InnoDB"
        )


async def keep_out(target: AsyncConnection, tables: Sequence[Table], replace: bool) -> None:
    """Wait for those who write to the tables, and let nobody write until the transaction ends.

    ``replace``: nobody may read either, as TRUNCATE asks for that, and two locks one after the
    other would be a deadlock. MySQL locks what :func:`occupied` looks at; SQLite has one writer.
    """
    if target.dialect.name == "postgresql":
        mode = "ACCESS EXCLUSIVE" if replace else "SHARE ROW EXCLUSIVE"
        names = names_alone(target.dialect, tables)
        await target.exec_driver_sql(f"LOCK TABLE {names} IN {mode} MODE")


async def occupied(
    target: AsyncConnection, tables: Sequence[Table], *, locked: bool = False
) -> list[Table]:
    """Those that have rows. ``locked``: what MySQL finds, or does not find, stays so."""
    locks = locked and target.dialect.name in ("mysql", "mariadb")
    found = []
    for each in tables:
        rows = bare(each)
        query = own_rows(select(literal(1)).select_from(rows), rows, each).limit(1)
        if await target.scalar(query.with_for_update() if locks else query):
            found.append(each)
    return found


async def empty(target: AsyncConnection, tables: Sequence[Table]) -> None:
    """Delete the rows of tables that stand in the order parents first, in this transaction."""
    if target.dialect.name == "postgresql":
        await target.exec_driver_sql(f"TRUNCATE {names_alone(target.dialect, tables)}")
        return
    for each in reversed(tables):
        await target.execute(delete(bare(each)))


async def complete(target: AsyncConnection, statements: Completing) -> None:
    """Put the foreign keys back that were off; the database checks them."""
    if target.dialect.name == "postgresql":
        await target.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
    for _, statement in statements:
        await target.exec_driver_sql(statement)
