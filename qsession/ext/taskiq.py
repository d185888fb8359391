"""taskiq: a broker whose queue is a table of the application's own database.

A job can be enqueued in the transaction that needs it, and acknowledged in the transaction that has
its effect. Worker processes on one file, or on one server, take each job once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    CursorResult,
    Double,
    Executable,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    delete,
    insert,
    select,
    update,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from taskiq import AckableMessage, AsyncBroker, BrokerMessage, Context
from taskiq.exceptions import NoResultError

from qsession.errors import EngineDraining, QueueTimeout
from qsession.session.maker import SessionMaker, qsession
from qsession.waiting.handoff import to_end

logger = logging.getLogger("qsession")

job_table = Table(
    "taskiq_jobs",
    MetaData(),
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("queue", String(100), nullable=False),
    Column("task_id", String(100), nullable=False),
    Column("message", LargeBinary(2**24 - 1), nullable=False),
    Column("due", Double, nullable=False),
    Column("taken", Integer, nullable=False, default=0),
    Index("ix_taskiq_jobs_due", "queue", "due"),
)
"""The table of `TableBroker`: ``job_table.to_metadata(Base.metadata)`` beside your models.

``due`` is the time, in seconds since 1970, from which a job may be taken. Who takes it moves it by
the lease. ``taken`` counts how often it was taken.
"""


class LeaseExpired(NoResultError):
    """The job was given to another worker, or is done: this one's transaction must not commit."""

    __template__ = "The lease of the job has expired: it was given to another worker, or is done."


@dataclass(frozen=True)
class _Taken:
    """A job that this process has taken, and how often it had been taken by then."""

    id: int
    taken: int
    task_id: str
    message: bytes

    @property
    def held(self) -> tuple[ColumnElement[bool], ...]:
        """Finds the job, if nobody has taken it since."""
        return job_table.c.id == self.id, job_table.c.taken == self.taken


class TableBroker(AsyncBroker):
    """A broker whose queue is `job_table`, in the database of `maker`.

    A worker takes a job by a transaction. If it has not acknowledged the job within `lease`
    seconds, because it was killed for example, another worker takes it. So a job is done at least
    once, and a job that runs for longer than `lease` is run twice. With `acknowledge` its effects
    are there exactly once. A worker without jobs looks every `poll` seconds. `queue` is the name of
    the queue in the table. The label ``delay`` is how many seconds a job has to wait.

    ``kiq()`` is a transaction of its own, or a part of one; see `within`. It raises taskiq's
    ``SendTaskError``, whose cause is the error of the session.
    """

    def __init__(
        self,
        maker: SessionMaker = qsession,
        *,
        queue: str = "taskiq",
        lease: float = 300.0,
        poll: float = 0.25,
    ) -> None:
        super().__init__()
        self.maker = maker
        self.queue = queue
        self.lease = lease
        self.poll = poll
        self._held: dict[str, _Taken] = {}
        self._block: ContextVar[list[AsyncSession | AsyncConnection]] = ContextVar("block")
        """The session of the block of `within`; none when it has ended, for tasks begun in it."""

    @contextmanager
    def within(self, session: AsyncSession | AsyncConnection) -> Iterator[None]:
        """Jobs that are enqueued in this block belong to the transaction of `session`.

        They are there when it has committed, and never if it is rolled back. A task that was begun
        in the block, and goes on after it, enqueues in transactions of its own from then on.
        """
        block = [session]
        token = self._block.set(block)
        try:
            yield
        finally:
            block.clear()
            self._block.reset(token)

    async def acknowledge(self, session: AsyncSession | AsyncConnection, context: Context) -> None:
        """Acknowledge the job of `context` in the transaction of `session`.

        What this transaction does for the job is then done exactly once: it commits with the
        acknowledgement, or not at all. Raises `LeaseExpired` if the job was given to another worker
        or is done; let it roll back. Call it in each attempt if the transaction is run again.
        """
        taken = self._held.get(context.message.task_id)
        if taken is None:
            raise LeaseExpired
        done = await session.execute(delete(job_table).where(*taken.held))
        if cast("CursorResult[Any]", done).rowcount != 1:
            raise LeaseExpired

    async def kick(self, message: BrokerMessage) -> None:
        """Enqueue a job. A cancellation before COMMIT leaves nothing."""
        job = insert(job_table).values(
            queue=self.queue,
            task_id=message.task_id,
            message=message.message,
            due=time.time() + float(message.labels.get("delay", 0)),
        )
        block = self._block.get(None)
        await (block[0].execute(job) if block else self._alone(job))

    async def listen(self) -> AsyncGenerator[AckableMessage, None]:
        """The jobs that this worker takes. If cancelled, it gives back the one it is taking.

        An error of the database is logged, and it looks again. Raises `EngineDraining`.
        """
        while True:
            taken, started = None, time.monotonic()
            try:
                taken = await self._take()
            except QueueTimeout:  # the time in the queue was a part of the pause
                await asyncio.sleep(max(0.0, started + self.poll - time.monotonic()))
                continue
            except EngineDraining:
                raise
            except SQLAlchemyError as error:  # a server restarts, or a table is not there yet
                again = "No job could be taken; the worker tries again in %g s: %s"
                logger.warning(again, self.poll, error)
            if taken is None:
                await asyncio.sleep(self.poll)
                continue
            self._held[taken.task_id] = taken
            yield AckableMessage(data=taken.message, ack=partial(self._finish, taken))

    async def _take(self) -> _Taken | None:
        c, now = job_table.c, time.time()
        first = select(c.id).where(c.queue == self.queue, c.due <= now).order_by(c.due).limit(1)
        async with self.maker.reader() as reader:  # looking takes no turn
            if await reader.scalar(first) is None:
                return None
        first = first.with_only_columns(c.id, c.taken, c.task_id, c.message)
        taken = None
        try:
            async with self.maker.begin(isolation="READ COMMITTED") as session:
                row = (await session.execute(first.with_for_update(skip_locked=True))).first()
                if row is not None:
                    lease = update(job_table).where(c.id == row.id)
                    await session.execute(lease.values(due=now + self.lease, taken=row.taken + 1))
                    taken = _Taken(row.id, row.taken + 1, row.task_id, row.message)
        except asyncio.CancelledError:
            if taken is not None:  # it may be committed
                give_back = update(job_table).where(*taken.held).values(due=now)
                await to_end(self._alone(give_back))
            raise
        return taken

    async def _finish(self, taken: _Taken) -> None:
        if self._held.get(taken.task_id) is taken:
            del self._held[taken.task_id]
        await self._alone(delete(job_table).where(*taken.held))

    async def _alone(self, statement: Executable) -> None:
        async with self.maker.begin(isolation="READ COMMITTED") as session:
            await session.execute(statement)
