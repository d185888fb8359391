"""Replica: one standby of PostgreSQL, its connections, and what it has said of itself.

A replica replays the log of its primary. It may be down, it may hang, it may be behind, and it may
not have what a task has just committed. Then it is left out, and asked again later.

https://www.postgresql.org/docs/current/hot-standby.html
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.util import await_only, greenlet_spawn

from qsession.errors import QueueFull, QueueTimeout
from qsession.servers.position import NOTHING, REPLAYED, UNKNOWN, Position
from qsession.statistics import ReplicaStats
from qsession.waiting.handoff import running_loop

if TYPE_CHECKING:
    from qsession.servers.pool import ServerPool

logger = logging.getLogger("qsession")

HEARD = 1.0
"""Seconds after which a replica is asked for its state again, by the next task that reads."""
AGAIN = 0.05
"""Seconds for which a replica that did not fit is not asked again."""
PATIENCE = 2.0
"""Seconds within which a replica must open a connection, or answer."""
REPLICA = "qsession_replica"
"""The `Replica` to which a connection leads, in the ``info`` of the connection."""
REACHED = "qsession_reached"
"""How far that had replayed when the connection was taken, or waited for. It can only have gone on:
if the server restarts, the connection is lost."""


@dataclass(frozen=True)
class Measure:
    """What a replica has said of itself."""

    replayed: Position
    lag: float
    """Seconds."""
    at: float
    """When it was asked, by the monotonic clock."""

    def fits(self, required: Position, max_lag: float | None, now: float) -> bool:
        """Whether it has replayed so much, and cannot be further behind than allowed.

        Since it was asked it can have fallen behind by the time that has passed, and by no more.
        """
        late = self.lag + now - self.at
        return self.replayed.includes(required) and (max_lag is None or late <= max_lag)


class Verdict(Enum):
    """What to do with a replica."""

    USE = "use it"
    ASK = "ask it for its state first"
    SKIP = "use another server"


def judge(
    measure: Measure | None, required: Position, max_lag: float | None, now: float, asked: bool
) -> Verdict:
    """Whether a replica can serve a task that needs the position ``required``, as far as known.

    ``asked``: another task waits for its answer. If it hangs, one task finds that out.
    """
    if required == UNKNOWN:
        return Verdict.SKIP
    if measure is None:
        return Verdict.ASK
    age = now - measure.at
    fits = measure.fits(required, max_lag, now)
    if fits and age <= HEARD:
        return Verdict.USE
    return Verdict.ASK if not asked and (fits or age > AGAIN) else Verdict.SKIP


class Replica:
    """One replica, and its pool of connections."""

    def __init__(self, pool: ServerPool, reads: int = 0) -> None:
        self.pool = pool
        self.reads = reads
        """How often it has served."""
        self.turn = 0
        """The number of the last read that it has served, of all reads from replicas."""
        self.measure: Measure | None = None
        """None until it has answered on a connection that was opened later than the others."""
        self.failures = 0
        """How often in a row it could not be reached or did not answer. If more than 0, it is down:
        only visits ask it."""
        self._asked_at = -math.inf
        """When a task began to wait for its answer; in the past if none does."""
        self._pings = pool._pre_ping
        """Whether it is asked before each use. A ping of SQLAlchemy's would wait without limit."""
        self._dropping: set[asyncio.Future[None]] = set()
        self._visit: asyncio.Task[None] | None = None
        """Sees whether it is back."""
        pool._pre_ping = False
        pool.opening.patience = PATIENCE
        event.listen(pool, "connect", self._opened)

    def _opened(self, _: object, record: Any) -> None:
        """Listens for each new connection, which may lead to a server that was restarted.

        After a crash a standby serves readers before it has replayed again what it had. The
        connections from before are dead.
        """
        record.info[REPLICA] = self
        self.measure = None

    @property
    def load(self) -> int:
        """The number of tasks that read there, or wait for a connection."""
        return self.pool.checkedout() + self.pool.waiting

    @property
    def may_hang(self) -> bool:
        """Whether all connections are in use, and it has said nothing for so long that it would
        have been asked: none of them may come back.
        """
        since = -math.inf if self.measure is None else self.measure.at
        return self.pool.is_exhausted and time.monotonic() - since > HEARD + PATIENCE

    def take(self, required: Position, max_lag: float | None) -> PoolProxiedConnection | None:
        """A connection to it; None if another server is to be used. In a greenlet.

        Raises `QueueTimeout` and `QueueFull` if all its connections are in use.
        """
        if self._judge(required, max_lag) is Verdict.SKIP:
            return None
        if self.failures:
            self._visit_when_due()
            return None
        connection = self._connect()
        if connection is None:
            return None
        verdict = self._judge(required, max_lag)  # it may have waited for the connection
        measure = self.measure
        if verdict is Verdict.ASK or self._pings:
            measure = self._ask(connection)
            if measure is None:
                return None
        if measure is None or not measure.fits(required, max_lag, time.monotonic()):
            connection.close()
            return None
        self._note_reached(connection, measure)
        return connection

    def _judge(self, required: Position, max_lag: float | None) -> Verdict:
        now = time.monotonic()
        # The loop of a task that has asked may be gone, so the note of it is good for some time.
        asked = now - self._asked_at < PATIENCE
        return judge(self.measure, required, max_lag, now, asked)

    def _connect(self) -> PoolProxiedConnection | None:
        dbapi: Any = self.pool._dialect
        before = self.failures
        try:
            return self.pool.connect()
        except (QueueTimeout, QueueFull):
            raise
        except (dbapi.loaded_dbapi.Error, DBAPIError) as error:  # SQLAlchemy's if it is the first
            measure = self.measure
            if before or measure is None or time.monotonic() - measure.at > HEARD:
                self._is_down(error, before)
            return None  # otherwise it has just answered, and may only allow no more connections

    def _ask(self, connection: PoolProxiedConnection) -> Measure | None:
        """Ask it for its state. None if it does not answer; the connection is then dropped."""
        dbapi: Any = self.pool._dialect
        before, self._asked_at = self.failures, time.monotonic()
        # Not an eager task, which would begin in this greenlet and lose what it awaits.
        asking = asyncio.Task(self._answer(connection), loop=asyncio.get_running_loop())
        try:
            await_only(asyncio.wait([asking], timeout=PATIENCE))
            answer = _result(asking)
        except BaseException as error:
            self._drop(connection, asking)
            if not isinstance(error, (dbapi.loaded_dbapi.Error, OSError, asyncio.TimeoutError)):
                raise
            self._is_down(error, before)
            self.pool._invalidate(connection, error, _checkin=False)
            return None
        finally:
            self._asked_at = -math.inf
        if self.failures:
            self.failures = 0
            logger.warning("The replica %s can be used again", self.pool.database)
        return answer

    async def _answer(self, connection: PoolProxiedConnection) -> Measure:
        """Its state. Raises the driver's errors, after which the connection cannot be used."""
        began = time.monotonic()
        row = await greenlet_spawn(fetch_row, connection, REPLAYED)
        timeline, lsn, lag = row
        replayed = Position(timeline, lsn or 0)
        answer = Measure(replayed, math.inf if lag is None else lag, began)
        if self.measure is None or began > self.measure.at:
            self.measure = answer
        return answer

    def _drop(self, connection: PoolProxiedConnection, asking: asyncio.Task[Measure]) -> None:
        """Close a connection when the driver has let go of it.

        If psycopg still waits for its socket, the loop would take the next socket with the same
        number for it, and fail to wait for that.
        """

        def drop(asked: asyncio.Task[Measure]) -> None:
            _look_at(asked)
            dropping = asyncio.ensure_future(greenlet_spawn(connection.invalidate))
            self._dropping.add(dropping)
            dropping.add_done_callback(self._dropping.discard)

        asking.cancel()
        asking.add_done_callback(drop)

    def _is_down(self, error: Exception, before: int) -> None:
        """Leave it out from now on. It had failed ``before`` times in a row when it was tried."""
        if not self.failures:
            logger.warning(
                "The replica %s cannot be used, and other servers are read instead: %r",
                self.pool.database,
                error,
            )
        self.failures = max(self.failures, before + 1)
        self.pool.opening.fail(error, before)

    def _visit_when_due(self) -> None:
        """See whether it is back, in a task for which no other task waits."""
        if self.pool.opening.is_away or self._is_visiting:
            return
        # Not an eager task, which would begin in this greenlet and lose what it awaits.
        loop = asyncio.get_running_loop()
        self._visit = asyncio.Task(greenlet_spawn(self._see), loop=loop)
        self._visit.add_done_callback(_look_at)

    @property
    def _is_visiting(self) -> bool:
        """Whether a task of this loop does so. A task of another loop may never finish."""
        visit = self._visit
        return visit is not None and not visit.done() and visit.get_loop() is running_loop()

    def _see(self) -> None:
        connection = self._connect()
        if connection is not None and self._ask(connection) is not None:
            connection.close()

    def catch_up(self, connection: PoolProxiedConnection, required: Position) -> None:
        """Wait until it has replayed the position. In a greenlet.

        Raises `QueueTimeout`, after which the connection can be used. After the driver's errors it
        cannot: one of them says that the replica does not answer.
        """
        patience, pause = self.pool.settings.queue_timeout, 0.001
        deadline = time.monotonic() + patience
        while not connection.info[REACHED].includes(required):
            if time.monotonic() > deadline:
                raise QueueTimeout(
                    f"The replica {self.pool.database} has not replayed what this task committed "
                    f"within {patience:g} s. Take another connection: it leads to a server that "
                    "can show it."
                )
            try:
                answer = await_only(asyncio.wait_for(self._answer(connection), PATIENCE))
            except asyncio.TimeoutError as error:
                dialect: Any = self.pool._dialect
                self._is_down(error, self.failures)
                raise dialect.loaded_dbapi.OperationalError(
                    f"The replica {self.pool.database} has not answered within {PATIENCE:g} s"
                ) from error
            if answer.replayed.includes(required):
                self._note_reached(connection, answer)
                return
            await_only(asyncio.sleep(pause))
            pause = min(2 * pause, AGAIN)

    def _note_reached(self, connection: PoolProxiedConnection, measure: Measure) -> None:
        """Behind a pooler the next transaction may be on another connection, or server."""
        reached = NOTHING if self.pool.settings.pooler else measure.replayed
        connection.info[REACHED] = reached

    def fill(self) -> None:
        """Open ``min_size`` connections, unless it is down. In a greenlet."""
        connection = self.take(NOTHING, None)
        if connection is not None:
            connection.close()
            self.pool._fill()

    def leave(self) -> None:
        """Stop looking whether it is back."""
        if self._is_visiting and self._visit is not None:
            self._visit.cancel()

    def stats(self) -> ReplicaStats:
        """Its present state."""
        pool, measure = self.pool, self.measure
        lag = None if measure is None or math.isinf(measure.lag) else measure.lag
        return ReplicaStats(
            server=pool.database,
            down=bool(self.failures),
            lag=lag,
            reads=self.reads,
            waiting=pool.waiting,
            size=pool.open_connections,
            in_use=pool.checkedout(),
        )


def fetch_row(connection: PoolProxiedConnection, sql: str) -> Any:
    """The row of a query, in one message, outside a transaction. In a greenlet.

    After any error the connection can no longer be used: it may be in AUTOCOMMIT mode.
    """
    dbapi: Any = connection.dbapi_connection
    usual, dbapi.autocommit = dbapi.autocommit, True
    cursor = dbapi.cursor()
    cursor.execute(sql)
    row = cursor.fetchone()
    cursor.close()
    dbapi.autocommit = usual
    return row


def _result(asking: asyncio.Task[Measure]) -> Measure:
    if not asking.done():
        raise asyncio.TimeoutError(f"no answer within {PATIENCE:g} s")
    return asking.result()


def _look_at(task: asyncio.Task[Any]) -> None:
    """Retrieve the exception of a task that nobody awaits any more."""
    if not task.cancelled():
        task.exception()
