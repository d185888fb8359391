"""FastAPI and Starlette, and pages that follow the data."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Mapped, mapped_column
from starlette.requests import Request
from typing_extensions import assert_type

from qsession import Base, QSession, changed, create_async_engine, observe, qsession
from qsession.ext.fastapi import (
    Lifespan,
    QSessionMiddleware,
    ReaderDep,
    SessionDep,
    WriterDep,
    session_of,
)
from qsession.ext.starlette import request_session


class Order(Base):
    """A table."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]


app = FastAPI(lifespan=Lifespan(upgrade=True, tables=Base.metadata, drain=None))
app.add_middleware(QSessionMiddleware)
other = async_sessionmaker(create_async_engine("sqlite+aiosqlite:///other.db"))
OtherDep = Annotated[AsyncSession, session_of(other, access="read")]


@app.post("/orders")
async def order(item: str, s: SessionDep, writer: WriterDep) -> int:
    """A session of the request."""
    assert_type(s, QSession)
    assert_type(writer, QSession)
    added = Order(item=item)
    s.add(added)
    await s.flush()
    return added.id


@app.get("/orders")
async def orders(s: ReaderDep, theirs: OtherDep) -> list[str]:
    """Two databases."""
    assert_type(theirs, AsyncSession)
    return list(await s.scalars(select(Order.item)))


async def plain(request: Request) -> int:
    """A handler of Starlette."""
    async with request_session(request) as s:
        assert_type(s, QSession)
    async with request_session(request, other, access="write") as theirs:
        assert_type(theirs, AsyncSession)
    return 1


async def follow() -> AsyncIterator[str]:
    """Results, again and again."""
    watched = observe(select(Order.id, Order.item), tables=[Order])
    async for rows in watched:
        for row in rows:
            yield f"{row.id} {row[1]}"
    async for _ in observe(select(Order)).scalars():
        await changed(Order, engine=qsession.engine)


@app.get("/live")
async def live() -> StreamingResponse:
    """A stream of them."""
    return StreamingResponse(follow())


def mistakes() -> None:
    """Each line is one."""
    observe("SELECT 1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Lifespan(tables=Base)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    session_of(other, access="auto")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
