"""The configuration for Litestar and advanced-alchemy: requests to a real application."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from advanced_alchemy.base import BigIntBase, metadata_registry
from advanced_alchemy.extensions.litestar import AsyncSessionConfig, SQLAlchemyAsyncConfig
from advanced_alchemy.repository import SQLAlchemyAsyncRepository
from cancelling import assert_free, rows
from litestar import Litestar, Response, get, post
from litestar.background_tasks import BackgroundTask
from litestar.di import Provide
from litestar.exceptions import ClientException, LitestarException
from litestar.response import Stream
from litestar.testing import AsyncTestClient
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped

from qsession import EngineDraining, create_async_engine
from qsession.ext.litestar import QSessionPlugin

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"  # advanced-alchemy uses what SQLAlchemy 2.1 deprecates
)
MANY = 100


class Tally(BigIntBase):
    """Something that is counted."""

    __tablename__ = "tallies"
    value: Mapped[int]


class Tallies(SQLAlchemyAsyncRepository[Tally]):
    """As applications write them."""

    model_type = Tally


class Between:
    """What happens between the reading and the writing of a request."""

    config: SQLAlchemyAsyncConfig

    async def __call__(self) -> None:
        """Nothing."""

    async def add(self) -> None:
        """Somebody else adds ten."""
        async with self.config.get_session() as other:
            await other.execute(text("UPDATE tallies SET value = value + 10"))
            await other.commit()


between = Between()
happens = [between.__call__]


@get("/")
async def look(db_session: AsyncSession) -> int:
    return (await db_session.get_one(Tally, 1)).value


@post("/add")
async def add(db_session: AsyncSession) -> int:
    tally = await db_session.get_one(Tally, 1, with_for_update=True)
    tally.value += 1
    return tally.value


@post("/slow")
async def slow(db_session: AsyncSession) -> None:
    tally = await db_session.get_one(Tally, 1)
    await happens[0]()
    tally.value += 1


@post("/repository")
async def by_repository(db_session: AsyncSession) -> None:
    repository = Tallies(session=db_session)
    tally = await repository.get(1)
    await happens[0]()
    tally.value += 1
    await repository.update(tally)


@post("/missing")
async def missing(db_session: AsyncSession) -> None:
    await Tallies(session=db_session).get(99)


@post("/error")
async def error(db_session: AsyncSession) -> None:
    (await db_session.get_one(Tally, 1)).value += 1
    await db_session.flush()
    raise ClientException("no")


@post("/answered")
async def answered(db_session: AsyncSession) -> Response[str]:
    (await db_session.get_one(Tally, 1)).value += 1
    return Response("noted", status_code=422)


async def another() -> AsyncGenerator[int, None]:
    """A second dependency that ends something."""
    yield 1


@post("/two", dependencies={"another": Provide(another)})
async def two(db_session: AsyncSession, another: int) -> None:
    tally = await db_session.get_one(Tally, 1)
    await happens[0]()
    tally.value += another


async def broken() -> AsyncGenerator[int, None]:
    """A second dependency that fails at its end."""
    yield 1
    raise LookupError


@post("/broken", dependencies={"another": Provide(broken)})
async def with_broken(db_session: AsyncSession, another: int) -> None:
    await db_session.get_one(Tally, 1)


kept: list[AsyncSession] = []
"""Sessions that the garbage collector shall not end."""


@post("/stream")
async def stream(db_session: AsyncSession) -> Stream:
    kept.append(db_session)

    async def numbers() -> AsyncIterator[str]:
        yield str((await db_session.get_one(Tally, 1)).value)
        await db_session.execute(text("UPDATE tallies SET value = value + 100"))

    return Stream(numbers())


@post("/background")
async def background(db_session: AsyncSession, how: str) -> Response[str]:
    kept.append(db_session)

    async def later() -> None:
        await db_session.execute(text("UPDATE tallies SET value = value + 100"))
        if how == "commit":
            await db_session.commit()
        if how == "raise":
            raise LookupError

    (await db_session.get_one(Tally, 1)).value += 1
    return Response("begun", background=BackgroundTask(later))


HANDLERS = [look, add, slow, by_repository, missing, error, answered, two, with_broken]
HANDLERS += [stream, background]


@pytest.fixture
def value(tmp_path: Path) -> Any:
    """What a connection from outside sees."""
    return lambda: rows(tmp_path / "app.db", "SELECT value FROM tallies")[0][0]


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[AsyncTestClient[Litestar]]:
    """A client of an application on a new file."""
    config = between.config = SQLAlchemyAsyncConfig(
        connection_string=f"sqlite+aiosqlite:///{tmp_path / 'app.db'}",
        create_engine_callable=partial(create_async_engine, queue_timeout=0.2, reads="snapshot"),
        session_config=AsyncSessionConfig(expire_on_commit=False),
    )
    app = Litestar(HANDLERS, plugins=[QSessionPlugin(config)])
    async with config.get_engine().begin() as connection:
        await connection.run_sync(metadata_registry.get(config.bind_key).create_all)
        await connection.execute(text("INSERT INTO tallies (id, value) VALUES (1, 0)"))
    happens[0] = between.__call__
    async with AsyncTestClient(app) as client:
        yield client
    await config.get_engine().dispose()  # the client's loop is another one
    assert_free(tmp_path / "app.db")


async def test_many_at_once_are_all_there_before_they_are_answered(client, value):
    """Nobody is answered with a number that is not in the file yet."""

    async def one() -> int:
        told = await client.post("/add")
        assert told.status_code == 201, told.text
        assert value() >= told.json()
        return int(told.json())

    between.config.get_engine().pool.write_queue.timeout = None
    told = await asyncio.gather(*(one() for _ in range(MANY)))
    assert sorted(told) == list(range(1, MANY + 1))
    assert (await client.get("/")).json() == value() == MANY


@pytest.mark.parametrize("path", ["/slow", "/repository", "/two"])
async def test_a_conflict_is_409(client, value, path):
    """Also where the commit finds it, behind a repository, and beside another dependency."""
    happens[0] = between.add
    told = await client.post(path)
    assert (told.status_code, value()) == (409, 10)
    assert told.json() == {"detail": "Somebody else has changed the same data: try again."}
    happens[0] = between.__call__
    assert (await client.post(path)).status_code == 201
    assert value() == 11


@pytest.mark.parametrize("path", ["/slow", "/repository"])
async def test_a_turn_that_does_not_come_is_503(client, value, path):
    """With a word on when to come again."""
    async with between.config.get_engine().begin() as holder:
        await holder.execute(text("UPDATE tallies SET value = 7"))
        told = await client.post(path)
        assert (told.status_code, told.headers["Retry-After"]) == (503, "1")
        await holder.rollback()
    assert value() == 0


async def test_errors_roll_back_and_answers_do_not(client, value):
    """An exception writes nothing; an answer that is returned is an answer, whatever its status."""
    assert (await client.post("/error")).status_code == 400
    assert value() == 0
    assert (await client.post("/answered")).status_code == 422
    assert value() == 1
    assert (await client.post("/missing")).status_code == 404
    assert (await client.post("/broken")).status_code == 500


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/stream", 0),
        ("/background?how=commit", 101),
        ("/background?how=return", 1),
        ("/background?how=raise", 1),
    ],
)
async def test_what_comes_behind_the_commit_holds_nothing(client, value, path, expected):
    """A stream and a background task may go on with the session. The request ends it."""
    with contextlib.suppress(LitestarException):  # something was sent
        await client.post(path)
    assert value() == expected
    assert between.config.get_engine().stats().in_use == 0
    assert (await client.post("/add")).json() == expected + 1
    kept.clear()


async def test_shutdown_waits_for_open_transactions(tmp_path):
    """One that has written commits, and one that begins later is refused."""
    path = tmp_path / "app.db"
    config = SQLAlchemyAsyncConfig(connection_string=f"sqlite+qsession:///{path}")
    app = Litestar([], plugins=[QSessionPlugin(config)])
    written, go = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        async with config.get_engine().begin() as connection:
            await connection.execute(text("CREATE TABLE t (i INTEGER)"))
            written.set()
            await go.wait()
            await connection.execute(text("INSERT INTO t VALUES (1)"))

    async with app.lifespan():
        working = asyncio.create_task(work())
        await written.wait()

        async def end() -> None:
            while True:
                try:
                    async with config.get_engine().connect() as connection:
                        await connection.execute(text("SELECT 1"))
                except EngineDraining:
                    break
            go.set()

        ending = asyncio.create_task(end())
    await asyncio.gather(working, ending)
    assert rows(path, "SELECT * FROM t") == [(1,)]
    assert_free(path)
