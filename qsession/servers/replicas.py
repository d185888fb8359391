"""Replicas: which server a transaction that only reads goes to, and what its task has to see there.

The replica with the fewest readers is next, and each in its turn. If none can serve, the primary
does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.engine.base import OptionEngine
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.util import greenlet_spawn

from qsession.errors import QueueTimeout
from qsession.servers.isolation import ACCESS, ISOLATION
from qsession.servers.position import REPLAYED, UNKNOWN, WRITTEN, Position, RequiredPosition
from qsession.servers.replica import REPLICA, Replica, fetch_row
from qsession.statistics import ReplicaStats

if TYPE_CHECKING:
    from qsession.servers.pool import ServerPool


class Replicas:
    """The replicas of one engine, and what its tasks have committed."""

    def __init__(
        self,
        primary: ServerPool,
        servers: Sequence[tuple[str, Callable[..., Any]]],
        max_lag: float | None,
    ) -> None:
        self._servers = servers
        self.max_lag = max_lag
        self.position = RequiredPosition()
        self._turns = itertools.count(1)
        self.all = [Replica(primary.beside(*server)) for server in servers]

    def renew(self, primary: ServerPool) -> None:
        """Begin with new pools, beside the present one of the primary."""
        pairs = zip(self.all, self._servers, strict=True)
        self.all = [Replica(primary.beside(*server), old.reads) for old, server in pairs]

    def take(self) -> PoolProxiedConnection | None:
        """A connection to a replica that can serve the current task; None if there is none.

        Of those with the fewest readers, each in its turn; one that may hang comes last. In a
        greenlet. Raises `QueueTimeout` and `QueueFull` if all connections to it are in use.
        """
        required = self.position.required
        for replica in sorted(self.all, key=lambda it: (it.may_hang, it.load, it.turn)):
            connection = replica.take(required, self.max_lag)
            if connection is not None:
                replica.reads += 1
                replica.turn = next(self._turns)
                return connection
        return None

    def learn(self, primary: PoolProxiedConnection) -> None:
        """Ask the primary how far its log goes, if the current task has committed. In a greenlet.

        Raises the driver's errors, after which the connection can no longer be used.
        """
        commit = self.position.last_commit
        if commit is not None and commit.position == UNKNOWN:
            commit.position = Position(*fetch_row(primary, WRITTEN))

    def stats(self) -> tuple[ReplicaStats, ...]:
        """The present state of each, in the order of ``read_urls``."""
        return tuple(each.stats() for each in self.all)

    def dispose(self) -> None:
        """Close the idle connections now, and the others when they come back."""
        for each in self.all:
            each.leave()
            each.pool.dispose()
            each.pool.retire()

    async def fill(self) -> None:
        """Open ``min_size`` connections to each that is not down."""
        for each in self.all:
            await greenlet_spawn(each.fill)


class ReplicatedEngine(Engine):
    """An engine whose transactions that only read go to replicas.

    SQLAlchemy calls `connect` for the connection of a transaction.
    """

    replicas: Replicas

    def connect(self) -> Connection:
        """As in SQLAlchemy. With ``qsession_access="read"`` to a replica, if one can serve."""
        return self.connect_for({})

    def connect_for(self, options: Mapping[str, Any]) -> Connection:
        """A connection for a transaction with these execution options, besides the engine's own.

        What only reads gets one to a replica, or to the primary if no replica can serve. In a
        greenlet.
        """
        if not _goes_to_replica({**self.get_execution_options(), **options}):
            return super().connect()
        connection = self.replicas.take()
        if connection is None:
            return self.connect_to_learn()
        return self._connection_cls(self, connection=connection)

    def connect_to_learn(self) -> Connection:
        """A connection to the primary, which tells how far the replicas have to be next time."""
        connection = super().connect()
        try:
            self.replicas.learn(connection.connection)
        except BaseException as error:
            try:
                connection._handle_dbapi_exception(error, WRITTEN, (), None, None)
            finally:
                connection.invalidate()
                connection.close()
        return connection

    def for_session(self, options: Mapping[str, Any]) -> BoundFor:
        """What a session has to connect by for a transaction with these execution options."""
        return BoundFor(self, options)

    def dispose(self, close: bool = True) -> None:
        """As in SQLAlchemy, also for the connections to replicas."""
        super().dispose(close)
        if close:
            self.replicas.dispose()
        self.replicas.renew(cast("ServerPool", self.pool))


class _DerivedEngine(OptionEngine, ReplicatedEngine):
    """What `execution_options` of such an engine returns."""

    @property
    def replicas(self) -> Replicas:  # type: ignore[override]
        """Those of the engine it is derived from."""
        return cast("ReplicatedEngine", self._proxied).replicas


ReplicatedEngine._option_cls = _DerivedEngine


class BoundFor:
    """Stands for an engine in a session of SQLAlchemy, for transactions with these options."""

    def __init__(self, engine: ReplicatedEngine, options: Mapping[str, Any]) -> None:
        self.connect = partial(engine.connect_for, options)


def _goes_to_replica(options: Mapping[str, Any]) -> bool:
    """Whether a replica may serve a transaction with these execution options.

    No replica offers SERIALIZABLE.
    """
    level = options.get("isolation_level") or options.get(ISOLATION) or ""
    return options.get(ACCESS) == "read" and level != "SERIALIZABLE"


def read_from_replicas(engine: Engine, replicas: Replicas) -> None:
    """Make an engine of SQLAlchemy's use these replicas."""
    engine.__class__ = ReplicatedEngine
    cast("ReplicatedEngine", engine).replicas = replicas
    for commit in ("commit", "commit_twophase"):
        event.listen(engine, commit, _note_commit)
    for begin in ("begin", "begin_twophase"):
        event.listen(engine, begin, _catch_up)
    event.listen(engine, "before_cursor_execute", _note_statement)


def _note_commit(connection: Connection, *_: object) -> None:
    """Listens for each COMMIT, before it is sent: it may take effect, whatever happens next."""
    if connection.get_execution_options().get(ACCESS) != "read":
        cast("ReplicatedEngine", connection.engine).replicas.position.note_commit()


def _note_statement(connection: Connection, *_: object) -> None:
    """Listens for each statement: in AUTOCOMMIT it may commit, and sees what is committed."""
    if connection._is_autocommit_isolation():
        _note_commit(connection)
        _catch_up(connection)


def _catch_up(connection: Connection, *_: object) -> None:
    """Listens for the beginning of each transaction.

    Most connections to a replica are taken for one transaction, which the replica can serve. If a
    task keeps its connection, and commits elsewhere in between, the replica has to catch up.
    """
    if connection.closed or connection.invalidated:
        return
    replica: Replica | None = connection.info.get(REPLICA)
    if replica is None:
        return
    engine = cast("ReplicatedEngine", connection.engine)
    if engine.replicas.position.required == UNKNOWN:
        engine.connect_to_learn().close()
    try:
        replica.catch_up(connection.connection, engine.replicas.position.required)
    except QueueTimeout:
        raise
    except BaseException as error:
        try:
            connection._handle_dbapi_exception(error, REPLAYED, (), None, None)
        finally:
            connection.invalidate()
