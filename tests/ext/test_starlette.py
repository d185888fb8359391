"""qsession.ext.starlette: the life of an application, and a plain Starlette one."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from asgi import Exchange, ask
from cancelling import Base, Item, connection_threads, eventually, rows
from project import FAMILY, Project
from sqlalchemy import event, insert, text
from sqlalchemy.ext.asyncio import async_sessionmaker
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from qsession import ConflictError, EngineDraining, QueueTimeout, create_async_engine
from qsession.ext.starlette import Lifespan, QSessionMiddleware, request_session
from qsession.session import SessionMaker, retry
from qsession.testing import When, assert_free, cancel_at


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.db"


@pytest.fixture
async def maker(path: Path) -> AsyncIterator[SessionMaker]:
    maker = SessionMaker(f"sqlite+aiosqlite:///{path}")
    yield maker
    await maker.dispose()


async def test_plain_starlette(maker, path, monkeypatch):
    """A block is committed before the answer, run again after a conflict, and reads for GET."""
    monkeypatch.setattr(retry, "_jitter", lambda _low, _high: 0)
    attempts = []

    def fail(_: object) -> None:
        raise ConflictError("as on a server")

    async def item(request: Request) -> JSONResponse:
        async with request_session(request, maker) as s:
            found = await s.get_one(Item, 1)
            if request.method == "POST":
                attempts.append(1)
                found.value += 1
                if len(attempts) == 1:
                    event.listen(s.sync_session, "before_commit", fail)
            value = found.value
        return JSONResponse(value)

    app = Starlette(
        routes=[Route("/", item, methods=["GET", "POST"])],
        middleware=[Middleware(QSessionMiddleware)],
        lifespan=Lifespan(maker=maker, tables=Base.metadata),
    )
    async with app.router.lifespan_context(app):
        async with maker.begin() as s:
            s.add(Item(id=1, value=0))
        assert (await ask(app, "POST", "/")).json() == 1
        assert (await ask(app, "GET", "/")).json() == 1
    assert len(attempts) == 2
    assert rows(path, "SELECT value FROM items") == [(1,)]


async def test_another_lifespan_is_inside(maker, path):
    """It finds the tables, its state is handed on, and its end still writes."""

    @asynccontextmanager
    async def inner(app: Any) -> AsyncIterator[dict[str, Any]]:
        async with maker.begin() as s:
            s.add(Item(id=1, value=0))
        yield {"app": app}
        async with maker.begin() as s:
            (await s.get_one(Item, 1)).value = 7

    app = Starlette()
    async with Lifespan(inner, maker=maker, tables=Base.metadata)(app) as state:
        assert state == {"app": app}
    assert rows(path, "SELECT value FROM items") == [(7,)]
    assert_free(path)


async def test_nothing_is_opened_needlessly(maker, path):
    """Without migrations and tables there is no file; a maker without an engine is left alone."""
    for each in (maker, SessionMaker(), async_sessionmaker()):
        async with Lifespan(maker=each)(None) as state:
            assert state == {}
    assert not path.exists()


async def test_tables_are_made_under_the_lock(maker, path):
    """From the first look on, so that workers that start at once do not make them twice."""
    locked = []

    def look(*_: object) -> None:
        outside = sqlite3.connect(path, timeout=0, isolation_level=None)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            outside.execute("BEGIN IMMEDIATE")
        outside.close()
        locked.append(True)

    event.listen(maker.engine.sync_engine, "after_cursor_execute", look)
    async with Lifespan(maker=maker, tables=Base.metadata)(None):
        assert len(locked) >= 2


async def test_it_migrates(tmp_path, monkeypatch):
    """The migrations of the folder are run at the start, on the engine of the maker."""
    project = Project(tmp_path)
    project.add(FAMILY)
    monkeypatch.chdir(tmp_path)
    for maker in (
        SessionMaker(project.url),
        async_sessionmaker(create_async_engine(project.url)),
    ):
        async with Lifespan(maker=maker, upgrade=True)(None):
            assert rows(project.file, "SELECT name FROM parent") == [("Ann",)]


@pytest.mark.parametrize("kind", ["ours", "plain"])
async def test_the_end_waits_for_transactions(maker, path, kind):
    """One that is open is committed; one that comes later is refused; then all is closed."""
    threads = connection_threads()
    used = maker if kind == "ours" else async_sessionmaker(maker.engine)
    lifespan = Lifespan(maker=used, tables=Base.metadata)(None)
    await lifespan.__aenter__()
    async with used() as s:
        await s.execute(insert(Item).values(value=1))
        end = asyncio.create_task(lifespan.__aexit__(None, None, None))
        await asyncio.sleep(0)
        async with used() as late:
            with pytest.raises(EngineDraining):
                await late.execute(text("SELECT 1"))
        assert not end.done()
        await s.commit()
    await end
    await eventually(lambda: connection_threads() <= threads)
    assert rows(path, "SELECT value FROM items") == [(1,)]


async def test_a_transaction_that_does_not_end(maker, path):
    """The end waits no longer than it was told, says who it is, and closes what it can."""
    with pytest.raises(QueueTimeout, match="INSERT INTO items"):
        async with maker() as s:
            async with Lifespan(maker=maker, tables=Base.metadata, drain=0)(None):
                await s.execute(insert(Item).values(value=1))
    assert maker.engine.pool.checkedin() == 0
    assert rows(path, "SELECT value FROM items") == []
    assert_free(path)


async def test_an_application_that_fails_to_start_or_to_end(maker, path):
    """Its error is raised, and the engine is closed."""
    threads = connection_threads()

    @asynccontextmanager
    async def broken(app: Any) -> AsyncIterator[None]:
        raise ZeroDivisionError
        yield

    with pytest.raises(ZeroDivisionError):
        async with Lifespan(broken, maker=maker, tables=Base.metadata)(None):
            pass
    with pytest.raises(KeyError):
        async with Lifespan(maker=maker, tables=Base.metadata)(None):
            raise KeyError
    await eventually(lambda: connection_threads() <= threads)
    assert_free(path)


async def test_a_maker_that_is_bound_to_a_connection(maker, path):
    """As in tests that roll back: it is neither drained nor closed."""
    async with maker.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with maker.engine.connect() as connection:
        await connection.begin()
        bound = SessionMaker()
        bound.configure(bind=connection, join_transaction_mode="create_savepoint")
        async with Lifespan(maker=bound)(None):
            async with bound.begin() as s:
                s.add(Item(value=1))
        async with bound() as s:
            assert (await s.execute(text("SELECT count(*) FROM items"))).scalar() == 1
        await connection.rollback()
    assert rows(path, "SELECT count(*) FROM items") == [(0,)]


@pytest.mark.parametrize("when", When)
async def test_cancelled_while_it_starts_or_ends(maker, path, when):
    """Wherever it is: nothing is locked, and the next one starts."""

    async def live() -> None:
        async with Lifespan(maker=maker, tables=Base.metadata)(None):
            async with maker.begin() as s:
                s.add(Item(value=1))

    n = 1
    while not await cancel_at(live(), n, when):
        n += 1
        await maker.dispose()
        if path.exists():
            assert_free(path)
    assert n > 5
    assert_free(path)


@pytest.mark.parametrize("with_middleware", [False, True])
async def test_a_body_that_is_received_after_a_commit(maker, path, with_middleware):
    """The look whether the client has gone loses no part of the body, however often it is done."""

    async def save(request: Request) -> JSONResponse:
        async for chunk in request.stream():
            async with request_session(request, maker) as s:
                s.add(Item(value=len(chunk)))
            async with request_session(request, maker) as s:
                s.add(Item(value=-len(chunk)))
        return JSONResponse("saved")

    app = Starlette(
        routes=[Route("/", save, methods=["POST"])],
        middleware=[Middleware(QSessionMiddleware)] if with_middleware else [],
        lifespan=Lifespan(maker=maker, tables=Base.metadata),
    )
    async with app.router.lifespan_context(app):
        exchange = await Exchange("POST", "/", [b"1", b"22", b"333"]).through(app)
        assert exchange.json() == "saved"
    assert rows(path, "SELECT value FROM items ORDER BY id") == [
        (value,) for value in (1, -1, 2, -2, 3, -3, 0, 0)
    ]


async def test_a_client_that_has_gone_before_its_body_was_received(maker, path):
    """It is noticed behind a body that the handler has not received yet, and not committed."""

    async def save(request: Request) -> JSONResponse:
        async with request_session(request, maker) as s:
            s.add(Item(value=1))
            await s.flush()
            exchange.hang_up()
        return JSONResponse("saved")

    exchange = Exchange("POST", "/", [b"1"])
    receive = exchange.receive

    async def receive_in_order() -> Any:
        if exchange.coming:
            return exchange.coming.pop(0)
        return await receive()

    exchange.receive = receive_in_order
    app = Starlette(
        routes=[Route("/", save, methods=["POST"])],
        lifespan=Lifespan(maker=maker, tables=Base.metadata),
    )
    async with app.router.lifespan_context(app):
        assert (await exchange.through(app)).status == 499
    assert rows(path, "SELECT value FROM items") == []
