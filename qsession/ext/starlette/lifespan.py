"""`Lifespan`: what happens to the database when an application starts and ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from qsession.engine import drain, is_queued
from qsession.migrate import upgrade as upgrade_schema
from qsession.session.maker import SessionMaker, qsession


class Lifespan:
    """The ``lifespan=`` of an application: prepares the database, and closes it at the end.

    At the start, `upgrade` runs the Alembic migrations, and `tables` creates the tables that are
    missing. Any number of workers may start at once. Without these two, nothing is opened. Then
    `inner`, another lifespan, has its turn. At the end `inner` ends first. Then the engine of
    `maker` accepts no new transactions, waits `drain` seconds for those that are open (None:
    without a limit), and is disposed of, in any case. Raises `QueueTimeout`, which names the
    transaction, if it is still open then; and the errors of `qsession.upgrade`.

    A maker without an engine, or one that is bound to a connection, as in tests, is left alone.
    """

    def __init__(
        self,
        inner: Callable[[Any], AbstractAsyncContextManager[Any]] | None = None,
        *,
        maker: async_sessionmaker[Any] = qsession,
        upgrade: bool = False,
        tables: MetaData | None = None,
        drain: float | None = 10.0,
    ) -> None:
        self._inner = inner
        self._maker = maker
        self._upgrade = upgrade
        self._tables = tables
        self._drain = drain

    @asynccontextmanager
    async def __call__(self, app: Any) -> AsyncIterator[Mapping[str, Any]]:
        """As Starlette calls it: what `inner` yields is the state of the requests."""
        try:
            if self._upgrade:
                await upgrade_schema(engine=self._engine)
            if self._tables is not None:
                async with self._engine.connect() as connection:
                    await connection.execution_options(qsession_locks=True)  # others start, too
                    async with connection.begin():
                        await connection.run_sync(self._tables.create_all)
            if self._inner is None:
                yield {}
            else:
                async with self._inner(app) as state:
                    yield state or {}
        finally:
            await self._close()

    @property
    def _engine(self) -> AsyncEngine:
        if isinstance(self._maker, SessionMaker):
            return self._maker.engine
        engine: AsyncEngine = self._maker.kw["bind"]
        return engine

    async def _close(self) -> None:
        engine = self._maker.kw["bind"]
        if not isinstance(engine, AsyncEngine):
            return
        try:
            if is_queued(engine):
                await drain(engine, self._drain)
        finally:
            await (self._maker if isinstance(self._maker, SessionMaker) else engine).dispose()
