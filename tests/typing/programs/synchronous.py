"""A worker without asyncio."""

from __future__ import annotations

from sqlalchemy import Engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from typing_extensions import assert_type

from qsession import ConflictError, Stats, create_engine, drain, stats


class Base(DeclarativeBase):
    """The tables."""


class Job(Base):
    """A table."""

    __tablename__ = "jobs"
    id: Mapped[int] = mapped_column(primary_key=True)


engine = create_engine("sqlite:///app.db", queue_timeout=5, access="write")
assert_type(engine, Engine)
Base.metadata.create_all(engine)
try:
    with Session(engine) as session, session.begin():
        jobs = list(session.scalars(select(Job)))
        assert_type(jobs, list[Job])
        session.add(Job())
except ConflictError as error:
    print(error.message)
assert_type(stats(engine), Stats)
drain(engine)
