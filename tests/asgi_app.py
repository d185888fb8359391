"""A web application for the tests of servers: each request counts a row up by one.

Each worker prepares the file at its start. Where a master loads the application before it forks,
and no loop runs there, the engine is used in the master already.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from sqlalchemy.orm import Mapped, mapped_column

from qsession import Base, create_async_engine, qsession


class Hit(Base):
    """The row."""

    __tablename__ = "hits"
    id: Mapped[int] = mapped_column(primary_key=True)
    count: Mapped[int]


engine = create_async_engine(f"sqlite+aiosqlite:///{os.environ['DATABASE']}")
qsession.configure(bind=engine)


async def prepare() -> None:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with qsession() as session:
        if await session.get(Hit, 1) is None:
            session.add(Hit(id=1, count=0))
            await session.commit()


if os.environ.get("USE_AT_IMPORT"):
    asyncio.run(prepare())


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Count, and answer with the number and the process."""
    if scope["type"] == "lifespan":
        await receive()
        await prepare()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await engine.dispose()
        await send({"type": "lifespan.shutdown.complete"})
        return
    async with qsession() as session:
        hit = await session.get_one(Hit, 1)
        hit.count = number = hit.count + 1
        await session.commit()
        body = f"{number} {os.getpid()}".encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
