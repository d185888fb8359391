"""Observation: the results of one statement, one after each commit that may have changed it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

from sqlalchemy import event, exc
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from qsession.engine import is_queued
from qsession.observation.frozen import frozen, same
from qsession.observation.source import Sent, Source, names_of
from qsession.waiting.subscription import State, Subscription, Tables

R = TypeVar("R")
OpenSession = Callable[[], AsyncSession]


def source_of(engine: object, look_every: float) -> Source:
    """What tells of commits on an engine.

    Raises `sqlalchemy.exc.InvalidRequestError` if nothing does.
    """
    if not isinstance(engine, AsyncEngine):
        raise exc.ArgumentError(f"engine={engine!r} is not allowed: use an AsyncEngine")
    if not 0 < look_every < math.inf:
        raise exc.ArgumentError(f"look_every={look_every!r} is not allowed: use seconds above 0")
    if is_queued(engine):
        from qsession.observation.sqlite import SQLiteSource

        return SQLiteSource(engine, look_every)
    name, driver = engine.dialect.name, engine.dialect.driver
    if name == "postgresql" and driver in ("asyncpg", "psycopg"):
        from qsession.observation.postgresql import PostgreSQLSource

        return PostgreSQLSource(engine)
    advice = (
        "create the engine with qsession.create_async_engine"
        if name == "sqlite"
        else "only SQLite, and PostgreSQL through asyncpg or psycopg, report commits"
    )
    raise exc.InvalidRequestError(f"{engine.url.drivername} cannot be observed: {advice}")


class Observation(Generic[R]):
    """The results of a statement: ``async for rows in qsession.observe(select(...))``.

    The first result comes at once. Another one follows each commit that may have changed it, of any
    program. Each result is a list of rows, read from one snapshot. So it shows what was committed
    at one moment, and later results show later moments. Commits that come while a result is read or
    used are covered by one next result; the last commit is always covered.

    While it waits, and while a result is used, it holds no connection of the pool and no snapshot.
    Objects of the ORM are detached from their session: load what you need of them eagerly.

    Cancellation: a cancelled step has no effect. The next one reads again if necessary, so
    ``asyncio.wait_for(anext(rows), 15)`` is allowed. The same holds after an error.
    The loop ends when the engine is disposed of, or after `aclose`. One task at a time may wait for
    a result; a second one gets `sqlalchemy.exc.InvalidRequestError`.
    """

    def __init__(
        self,
        source: Source,
        open_session: OpenSession,
        statement: Any,
        params: Any = None,
        tables: Sequence[object] | None = None,
        distinct: bool = True,
    ) -> None:
        self._source = source
        self._open_session = open_session
        self._statement = statement
        self._params = params
        self._names = None if tables is None else names_of(tables)
        self._distinct = distinct
        self._scalars = False
        self._subscription: Subscription | None = None
        self._last: Any = _NOTHING
        """A copy of the last result."""
        self._waits = False
        """Whether a task is in a step."""
        self._closed = False

    def __repr__(self) -> str:
        return f"<Observation {self._subscription!r}>"

    def scalars(self) -> Observation[Any]:
        """The same with the first column, or the object, of each row. Call it before the loop."""
        self._scalars = True
        return cast("Observation[Any]", self)

    def __aiter__(self) -> AsyncIterator[list[R]]:
        return self

    async def __anext__(self) -> list[R]:
        if self._waits:
            raise exc.InvalidRequestError("Another task already waits for this observation")
        self._waits = True
        try:
            while not self._closed:
                subscription = await self._due()
                if subscription is None:
                    break
                rows = await self._read(subscription)
                if rows is not None:
                    return rows
            raise StopAsyncIteration
        finally:
            self._waits = False

    async def aclose(self) -> None:
        """End it: the loop over it ends. It does not wait."""
        self._closed = True
        if self._subscription is not None:
            self._source.leave(self._subscription)

    async def __aenter__(self) -> Observation[R]:
        return self

    async def __aexit__(
        self,
        type_: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _due(self) -> Subscription | None:
        """Wait until a result must be read; None if it is over."""
        subscription = self._subscription
        if subscription is not None:
            await subscription.wait()
            if subscription.state is State.OVER:
                return None
        if subscription is None or subscription.state is State.LOST:
            subscription = self._subscription = await self._source.subscribe()
            if self._closed:
                self._source.leave(subscription)
        return None if subscription.state is State.OVER else subscription

    async def _read(self, subscription: Subscription) -> list[R] | None:
        """Read a result; None if it is equal to the last one."""
        self._source.begin(subscription.begin())
        try:
            rows, copy, tables = await self._rows()
        except BaseException:
            subscription.tell(None)  # the next step reads again
            raise
        subscription.of(tables)
        if self._distinct:
            if same(copy, self._last):
                return None
            self._last = copy
        return rows

    async def _rows(self) -> tuple[list[R], Any, Tables | None]:
        """The rows, a copy of them, and the tables that they come from. From one snapshot."""
        sent: list[Sent] = []

        def note(conn: Any, cursor: Any, sql: str, parameters: Any, *rest: Any) -> None:
            sent.append(Sent(sql, parameters))

        async with self._open_session() as session:
            connection = await session.connection()
            event.listen(connection.sync_connection, "after_cursor_execute", note)
            result = await session.execute(self._statement, self._params)
            if _must_be_unique(result):
                result = result.unique()
            rows: list[Any] = list(result.scalars() if self._scalars else result)
            copy = frozen(rows) if self._distinct else None
            tables: Tables | None = None
            if self._names is None:
                tables = await self._source.read_by(connection, tuple(sent))
            elif self._names:
                tables = await self._source.named(connection, self._names)
        return rows, copy, tables


async def changed(source: Source, open_session: OpenSession, tables: Sequence[object]) -> None:
    """Wait for the next commit that may have changed one of the tables; without any, for any."""
    names = names_of(tables)
    subscription = await source.subscribe()
    try:
        source.begin(subscription.begin())
        if names:
            async with open_session() as session:
                subscription.of(await source.named(await session.connection(), names))
        await subscription.wait()
        over = subscription.state is State.OVER
    finally:
        source.leave(subscription)
    if over:
        raise exc.InvalidRequestError("The engine was disposed of while a task waited for a commit")


def _must_be_unique(result: Any) -> bool:
    """Whether SQLAlchemy demands ``unique()``, as for collections loaded by a join."""
    return getattr(result, "_unique_filter_state", None) is not None


_NOTHING: Any = object()
