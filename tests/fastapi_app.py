"""An application of FastAPI for the tests of servers: requests count rows up by one."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import Mapped, mapped_column

from qsession import Base, qsession
from qsession.ext.fastapi import Lifespan, QSessionMiddleware, SessionDep


class Hit(Base):
    """A row."""

    __tablename__ = "hits"
    id: Mapped[int] = mapped_column(primary_key=True)
    count: Mapped[int] = mapped_column(default=0)


qsession.configure(f"sqlite+aiosqlite:///{os.environ['DATABASE']}")


@asynccontextmanager
async def rows(app: FastAPI) -> AsyncIterator[None]:
    """The rows are there, whichever worker is the first."""
    async with qsession.begin() as s:
        all_of_them = [{"id": number} for number in (1, 2, 3, 4)]
        await s.execute(insert(Hit).values(all_of_them).on_conflict_do_nothing())
    yield


app = FastAPI(lifespan=Lifespan(rows, tables=Base.metadata))
app.add_middleware(QSessionMiddleware)


@app.get("/hits/{number}")
async def hits(number: int, s: SessionDep) -> int:
    return (await s.get_one(Hit, number)).count


@app.post("/hits/{number}")
async def hit(number: int, s: SessionDep) -> dict[str, int]:
    """Read, change, write."""
    row = await s.get_one(Hit, number)
    row.count += 1
    return {"count": row.count, "pid": os.getpid()}


@app.post("/auto/{number}")
async def auto(number: int, s: SessionDep) -> dict[str, int]:
    """The same in access auto, where a task that waits in between may meet a conflict."""
    await s.connection(execution_options={"qsession_access": "auto"})
    row = await s.get_one(Hit, number)
    await asyncio.sleep(0)
    row.count += 1
    return {"count": row.count, "pid": os.getpid()}


@app.post("/hold/{name}")
async def hold(name: str, request: Request, s: SessionDep) -> None:
    """Writes, says so by a file, and waits until the client has gone."""
    (await s.get_one(Hit, 3)).count += 1
    await s.flush()
    Path(name).touch()  # noqa: ASYNC240
    while not await request.is_disconnected():
        await asyncio.sleep(0.001)
