"""PostgreSQLSource: notifications of triggers, and the tables that statements read."""

from __future__ import annotations

import asyncio
import json
import logging
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import Engine, event, exc, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from qsession.observation.source import Sent
from qsession.observation.triggers import CHANNEL, NAME
from qsession.waiting.greenlets import spawn
from qsession.waiting.subscription import State, Subscription, Tables, united

WATCHED = text(
    "SELECT DISTINCT lower(c.relname) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid "
    "JOIN pg_proc p ON p.oid = t.tgfoid WHERE p.proname = :name AND t.tgenabled <> 'D'"
).bindparams(name=NAME)
"""Tables that notify."""
PARTS = text(
    "SELECT lower(p.relname), lower(c.relname) FROM pg_inherits i "
    "JOIN pg_class p ON p.oid = i.inhparent JOIN pg_class c ON c.oid = i.inhrelid"
)
"""Tables with their partitions, or with those that inherit from them."""
logger = logging.getLogger("qsession")
CLOSING = 2.0
"""Seconds that the server has to close the connection."""
QUIET = 30.0
"""Seconds after which the server is asked whether it is still there. A host that has vanished, and
a router that has forgotten an idle connection, do not say so.
"""
ANSWER = 15.0
"""Seconds that it has to answer. Then the connection is lost."""


class PostgreSQLSource:
    """The commits to the database of one engine, as triggers tell of them."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._known: dict[str, Tables] = {}
        """The tables that each text reads."""
        self._listener: Listener | None = None

    async def subscribe(self) -> Subscription:
        """Listen on one connection for all observers of the pool in this loop.

        Raises `sqlalchemy.exc.OperationalError` if there is none, as for a server that restarts.
        """
        engine = self._engine.sync_engine
        loop = asyncio.get_running_loop()
        listeners = _listeners.setdefault(loop, {})
        listener = listeners.get(engine.pool)
        if listener is None:
            listener = listeners[engine.pool] = Listener(engine, loop, listeners)
        self._listener = listener
        subscription = Subscription(engine.pool, 0.0)
        listener.add(subscription)
        try:
            await asyncio.shield(listener.ready)
        except Exception as error:
            raise exc.OperationalError(f"LISTEN {CHANNEL}", None, error) from error
        return subscription

    def leave(self, subscription: Subscription) -> None:
        """End a subscription. The connection is closed after the last one."""
        subscription.end(State.OVER)
        if self._listener is not None:
            self._listener.look_soon()

    def begin(self, anything: bool) -> None:
        """A replica may not have yet what was notified. So the next read goes to the primary."""
        if anything:
            self._known.clear()
        replicas = getattr(self._engine.sync_engine, "replicas", None)
        if replicas is not None:
            replicas.position.note_commit()

    async def read_by(self, connection: AsyncConnection, sent: Sequence[Sent]) -> Tables | None:
        """Ask PostgreSQL, once for each text."""
        for each in sent:
            if each.sql not in self._known:
                plan = await connection.exec_driver_sql(
                    f"EXPLAIN (FORMAT JSON) {each.sql}", each.parameters
                )
                found = plan.scalar()  # asyncpg gives it as text
                tree = json.loads(found) if isinstance(found, str) else found
                names = frozenset(_relations(tree))
                self._known[each.sql] = await self._watched(connection, names)
        return united(self._known[each.sql] for each in sent)

    async def named(self, connection: AsyncConnection, names: Tables) -> Tables | None:
        """The same tables, if they notify."""
        return await self._watched(connection, names)

    async def _watched(self, connection: AsyncConnection, names: Tables) -> Tables:
        """The tables with their partitions and those that they are partitions of.

        Raises `sqlalchemy.exc.InvalidRequestError` if one of them does not notify.
        """
        parts = [(parent, part) for parent, part in (await connection.execute(PARTS)).all()]
        watched = set((await connection.execute(WATCHED)).scalars())
        found: set[str] = set()
        for name in names:
            above = _reached({name}, [(part, parent) for parent, part in parts])
            if not above & watched:
                raise exc.InvalidRequestError(
                    f"PostgreSQL does not report changes of the table {name!r}: call "
                    "qsession.observation.install_triggers for it, for example in a migration"
                )
            found |= above | _reached({name}, parts)
        return frozenset(found)


class Listener:
    """One connection that listens, for all observers of one pool in one loop.

    It has a task as long as anybody observes. The loop cancels it at its end, as any other.
    """

    def __init__(
        self, engine: Engine, loop: asyncio.AbstractEventLoop, listeners: dict[Any, Listener]
    ) -> None:
        self._engine: Engine = getattr(engine, "_proxied", engine)
        self._pool = engine.pool
        self._loop = loop
        self._listeners = listeners
        self._subscriptions: list[weakref.ref[Subscription]] = []
        """Changed in the loop only. Those that are over are taken out when one more is."""
        self.ready: asyncio.Future[None] = loop.create_future()
        """Done when it listens, or never will. Raises the error of opening the connection."""
        self._lost: asyncio.Future[None] = loop.create_future()
        event.listen(self._engine, "engine_disposed", self._disposed)
        self._task = asyncio.Task(self._run(), loop=loop)

    def add(self, subscription: Subscription) -> None:
        """Tell a subscription of every notification from now on."""
        self._subscriptions.append(weakref.ref(subscription, self._collected))

    def look_soon(self) -> None:
        """End, if nobody observes any more. Any thread."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._look)

    def _collected(self, _: object) -> None:
        self.look_soon()

    def _disposed(self, _: object) -> None:
        """The engine was disposed of, in whatever thread."""
        if self._engine.pool is not self._pool:
            self._end(State.OVER)
            self.look_soon()

    def _live(self) -> list[Subscription]:
        found = (each() for each in list(self._subscriptions))
        return [each for each in found if each is not None and _is_live(each)]

    def _look(self) -> None:
        self._subscriptions = [each for each in self._subscriptions if _is_live(each())]
        if not self._subscriptions:
            self._leave()
            self._task.cancel()

    def _leave(self) -> None:
        """Let the next observer open another connection."""
        if self._listeners.get(self._pool) is self:
            del self._listeners[self._pool]

    def _end(self, state: State) -> None:
        for each in self._live():
            each.end(state)

    def _notified(self, payload: str) -> None:
        for each in self._live():
            each.tell(frozenset({payload.lower()}) if payload else None)

    async def _run(self) -> None:
        try:
            connection: Any = await spawn(self._pool._creator)
            driver: Any = connection.driver_connection
            try:
                if self._engine.dialect.driver == "asyncpg":
                    await self._by_asyncpg(driver)
                else:
                    await self._by_psycopg(driver)
            finally:
                await _close(driver)
        except Exception as error:
            if not self.ready.done():
                self.ready.set_exception(error)
                self.ready.exception()  # the observers may all have gone
            else:
                logger.warning("The connection that listened for changes was lost: %r", error)
        finally:
            self._leave()
            self._end(State.LOST)
            if not self.ready.done():  # cancelled: those that wait look at their subscription
                self.ready.set_result(None)
            event.remove(self._engine, "engine_disposed", self._disposed)

    async def _by_asyncpg(self, driver: Any) -> None:
        driver.add_termination_listener(lambda _: self._lose())
        await driver.add_listener(CHANNEL, lambda *told: self._notified(told[3]))
        self.ready.set_result(None)
        while not (await asyncio.wait([self._lost], timeout=QUIET))[0]:
            await asyncio.wait_for(driver.execute("SELECT 1"), ANSWER)

    def _lose(self) -> None:
        if not self._lost.done():
            self._lost.set_result(None)

    async def _by_psycopg(self, driver: Any) -> None:
        await driver.set_autocommit(True)
        await driver.execute(f"LISTEN {CHANNEL}")
        self.ready.set_result(None)
        while True:
            async for told in driver.notifies(timeout=QUIET):
                self._notified(told.payload)
            await asyncio.wait_for(driver.execute("SELECT 1"), ANSWER)


def _is_live(subscription: Subscription | None) -> bool:
    return subscription is not None and subscription.state is State.LIVE


async def _close(driver: Any) -> None:
    with suppress(Exception):  # it may be lost already
        await asyncio.wait_for(driver.close(), CLOSING)


def _relations(plan: Any) -> Iterator[str]:
    """The names of all tables in a plan of EXPLAIN."""
    if isinstance(plan, list):
        for each in plan:
            yield from _relations(each)
    elif isinstance(plan, dict):
        if "Relation Name" in plan:
            yield plan["Relation Name"].lower()
        yield from _relations(list(plan.values()))


def _reached(start: set[str], steps: Iterable[tuple[str, str]]) -> set[str]:
    """All that is reached from ``start`` by any number of steps."""
    found, steps = set(start), list(steps)
    while more := {end for begin, end in steps if begin in found} - found:
        found |= more
    return found


_listeners: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Any, Listener]] = (
    weakref.WeakKeyDictionary()
)
