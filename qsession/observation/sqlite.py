"""SQLiteSource: commits to a file, and the tables that statements read from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from qsession.observation.source import Sent
from qsession.sqlite.changes.program import ROOTS, is_explained, tables_of
from qsession.sqlite.driver.setup import explaining
from qsession.sqlite.pool import WriteQueuePool
from qsession.waiting.greenlets import spawn
from qsession.waiting.subscription import State, Subscription, Tables, united

TABLES = "SELECT lower(name) FROM main.sqlite_master WHERE type = 'table' AND rootpage > 0"
"""Ordinary tables. Commits to a view or to a virtual table change other tables as well."""


class SQLiteSource:
    """The commits to the file of one engine."""

    def __init__(self, engine: AsyncEngine, look_every: float) -> None:
        self._engine = engine
        self._look_every = look_every
        self._known: dict[str, Tables | None] = {}
        """The tables that each text reads."""

    async def subscribe(self) -> Subscription:
        """Open the connection that looks for commits, if nobody observes the file yet."""
        pool = cast("WriteQueuePool", self._engine.sync_engine.pool)
        subscription = Subscription(pool, self._look_every)
        await spawn(_join, pool, subscription)
        return subscription

    async def read_by(self, connection: AsyncConnection, sent: Sequence[Sent]) -> Tables | None:
        """Ask SQLite, once for each text and version of the schema."""
        new = [each for each in sent if each.sql not in self._known]
        if new:
            roots: Any = await connection.exec_driver_sql(ROOTS)
            names = dict(roots.all())
            for each in new:
                self._known[each.sql] = await self._explain(connection, each, names)
        return united(self._known[each.sql] for each in sent)

    async def _explain(
        self, connection: AsyncConnection, sent: Sent, roots: dict[int, str]
    ) -> Tables | None:
        if not is_explained(sent.sql):
            return None
        try:
            program = await connection.exec_driver_sql(explaining(sent.sql), sent.parameters)
        except exc.DBAPIError:
            return None
        return tables_of([tuple(row) for row in program], roots, writes=False)

    async def named(self, connection: AsyncConnection, names: Tables) -> Tables | None:
        """The same names, if all of them are ordinary tables."""
        found = await connection.exec_driver_sql(TABLES)
        return names if names <= set(found.scalars()) else None

    def begin(self, anything: bool) -> None:
        if anything:
            self._known.clear()

    def leave(self, subscription: Subscription) -> None:
        """End a subscription. The connection is closed after the last one."""
        subscription.end(State.OVER)
        subscription.pool.write_queue.commits.look_soon()


def _join(pool: WriteQueuePool, subscription: Subscription) -> None:
    """In a greenlet."""
    queue = pool.write_queue
    if queue.identity is None:
        pool.lease(holder=False).end()  # the first connection tells which file it is
    while not queue.commits.join(subscription):
        driver = pool.spare()
        try:
            if driver.frozen or driver.identity is None:
                raise exc.InvalidRequestError(
                    f"{pool.database!r} cannot be observed: it is in a read-only folder, so "
                    "SQLite does not report commits to it."
                )
            queue.commits.join(subscription, driver)
        finally:
            if not queue.commits.keeps(driver):  # another task was faster
                driver.terminate()
