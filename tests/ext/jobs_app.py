"""The application of the tests of the broker: a worker of taskiq imports it in its own process."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated

from sqlalchemy import MetaData, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from taskiq import Context, TaskiqDepends

from qsession import QSession
from qsession.ext.taskiq import TableBroker, job_table
from qsession.models import NAMING_CONVENTION
from qsession.session.maker import SessionMaker


class Base(DeclarativeBase):
    """The tables of these tests."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class Effect(Base):
    """What a job has done."""

    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(primary_key=True)
    job: Mapped[int]
    pid: Mapped[int]


job_table.to_metadata(Base.metadata)
maker = SessionMaker(os.environ.get("JOBS_URL", "sqlite+aiosqlite:///never.db"))
broker = TableBroker(maker, lease=float(os.environ.get("JOBS_LEASE", "60")), poll=0.02)
Here = Annotated[Context, TaskiqDepends()]


@broker.task("once")
async def once(job: int, context: Here) -> None:
    """The effect and the acknowledgement in one transaction."""

    async def work(session: QSession) -> None:
        session.add(Effect(job=job, pid=os.getpid()))
        await broker.acknowledge(session, context)

    await maker.run(work)


@broker.task("plain")
async def plain(job: int) -> None:
    """The effect in a transaction of its own; taskiq acknowledges afterwards."""
    async with maker.begin() as session:
        session.add(Effect(job=job, pid=os.getpid()))


@broker.task("stuck")
async def stuck(job: int, context: Here) -> None:
    """The first worker that takes it has written, and never comes to its commit."""
    async with maker.begin() as session:
        first = await session.scalar(text("SELECT count(*) FROM effects WHERE job = -1")) == 0
    if first:
        async with maker.begin() as session:
            session.add(Effect(job=-1, pid=os.getpid()))
    async with maker.begin() as session:
        session.add(Effect(job=job, pid=os.getpid()))
        await broker.acknowledge(session, context)
        if first:
            await asyncio.Event().wait()


@broker.task("late")
async def late(job: int) -> None:
    """The first worker has committed its effect, and is killed before it acknowledges."""
    async with maker.begin() as session:
        done = await session.scalar(text(f"SELECT count(*) FROM effects WHERE job = {job}"))
        session.add(Effect(job=job, pid=os.getpid()))
    if not done:
        await asyncio.Event().wait()
