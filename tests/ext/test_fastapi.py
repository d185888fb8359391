"""qsession.ext.fastapi: when it commits, when it rolls back, and what it runs again."""

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
import weakref
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import pytest
from anyio import create_task_group
from asgi import Exchange, ask
from cancelling import Base, Item, Mark, rows
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse
from sqlalchemy import event, exc, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession as SQLModelAsyncSession

from qsession import (
    ConflictError,
    DurabilityError,
    QSession,
    QueueFull,
    QueueTimeout,
    ReadOnlyError,
    events,
    qsession,
)
from qsession.ext.fastapi import (
    Lifespan,
    QSessionMiddleware,
    ReaderDep,
    SessionDep,
    WriterDep,
    request_session,
    session_of,
)
from qsession.session import SessionMaker, retry
from qsession.testing import When, assert_free, cancel_at, settled


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.db"


@pytest.fixture
async def app(path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FastAPI]:
    """An application on `qsession`, with one item of value 0."""
    monkeypatch.setattr(retry, "_jitter", lambda _low, _high: 0)
    qsession.configure(f"sqlite+aiosqlite:///{path}")
    app = FastAPI(lifespan=Lifespan(tables=Base.metadata))
    app.add_middleware(QSessionMiddleware)
    async with app.router.lifespan_context(app):
        async with qsession.begin() as s:
            s.add(Item(id=1, value=0))
        yield app
        await settled(qsession.engine)
        assert_free(path)
    qsession.configure(bind=None, access="write", class_=QSession)


async def somebody_adds(amount: int) -> None:
    """Another transaction, which commits."""
    async with qsession.begin() as other:
        await other.execute(text(f"UPDATE items SET value = value + {amount}"))


def locked(path: Path) -> bool:
    """Whether somebody has SQLite's write lock, seen from outside."""
    outside = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        outside.execute("BEGIN IMMEDIATE")
        outside.execute("ROLLBACK")
    except sqlite3.OperationalError:
        return True
    finally:
        outside.close()
    return False


def doom(s: AsyncSession) -> None:
    """Its commit ends in a conflict, as on a server."""

    def fail(_: object) -> None:
        raise ConflictError("as on a server")

    event.listen(s.sync_session, "before_commit", fail)


def value(path: Path) -> int:
    """The value of the item, seen from outside."""
    return int(rows(path, "SELECT value FROM items WHERE id = 1")[0][0])


async def test_many_increments_at_once(app, path):
    """Each answer is a number of its own, and the file has them all."""

    @app.post("/add")
    async def add(s: SessionDep) -> int:
        item = await s.get_one(Item, 1)
        item.value += 1
        return item.value

    answers = await asyncio.gather(*(ask(app, "POST", "/add") for _ in range(50)))
    assert sorted(each.json() for each in answers) == list(range(1, 51))
    assert value(path) == 50


async def test_the_commit_comes_before_the_answer(app, path):
    """When the first byte is sent, a connection from outside sees the change."""
    seen = []

    @app.post("/add")
    async def add(s: SessionDep) -> None:
        (await s.get_one(Item, 1)).value += 1

    class Looking(Exchange):
        async def send(self, message: Any) -> None:
            seen.append(value(path))
            await super().send(message)

    await Looking("POST", "/add").through(app)
    assert set(seen) == {1}


async def test_a_commit_that_fails_is_an_error(app, path):
    """Whatever the handler has returned: the answer is not its 201, and nothing is written."""

    @app.post("/add", status_code=201)
    async def add(s: SessionDep) -> str:
        (await s.get_one(Item, 1)).value += 1

        def fail(_: object) -> None:
            raise ConnectionError("as a disk that is full")

        event.listen(s.sync_session, "before_commit", fail)
        return "done"

    exchange = Exchange("POST", "/add")
    with pytest.raises(ConnectionError):
        await exchange.through(app)
    assert exchange.status == 500
    assert value(path) == 0


@pytest.mark.parametrize("error", [HTTPException(404), ZeroDivisionError()])
async def test_an_error_rolls_back(app, path, error):
    """An HTTPException is an answer, and rolls back nevertheless."""

    @app.post("/add")
    async def add(s: SessionDep) -> None:
        (await s.get_one(Item, 1)).value += 1
        await s.flush()
        raise error

    exchange = Exchange("POST", "/add")
    if isinstance(error, HTTPException):
        assert (await exchange.through(app)).status == 404
    else:
        with pytest.raises(ZeroDivisionError):
            await exchange.through(app)
    assert value(path) == 0


async def test_an_answer_that_does_not_fit_its_model_rolls_back(app, path):
    """FastAPI finds that out after the handler has returned, and before the commit."""

    @app.post("/add")
    async def add(s: SessionDep) -> int:
        (await s.get_one(Item, 1)).value += 1
        return "no number"  # type: ignore[return-value]

    exchange = Exchange("POST", "/add")
    with pytest.raises(Exception, match="no number"):
        await exchange.through(app)
    assert exchange.status == 500
    assert value(path) == 0


async def test_the_method_says_who_writes(app, path):
    """GET and HEAD get a reader; a route may say otherwise."""

    async def write(s: QSession) -> None:
        (await s.get_one(Item, 1)).value += 1

    async def by_method(s: SessionDep) -> None:
        await write(s)

    async def reader(s: ReaderDep) -> None:
        await write(s)

    async def writer(s: WriterDep) -> None:
        await write(s)

    app.add_api_route("/by_method", by_method, methods=["GET", "HEAD", "POST", "PUT", "DELETE"])
    app.add_api_route("/reader", reader, methods=["POST"])
    app.add_api_route("/writer", writer, methods=["GET"])
    for method, where in (("GET", "/by_method"), ("HEAD", "/by_method"), ("POST", "/reader")):
        with pytest.raises(ReadOnlyError):
            await ask(app, method, where)
    assert value(path) == 0
    for method in ("POST", "PUT", "DELETE"):
        assert (await ask(app, method, "/by_method")).status == 200
    assert (await ask(app, "GET", "/writer")).status == 200
    assert value(path) == 4


async def test_a_handler_may_commit_by_itself(app, path):
    """As in tutorials: add, commit, refresh, return."""

    @app.post("/items")
    async def create(s: SessionDep) -> int:
        item = Item(value=7)
        s.add(item)
        await s.commit()
        await s.refresh(item)
        return item.id

    assert (await ask(app, "POST", "/items")).json() == 2
    assert rows(path, "SELECT value FROM items WHERE id = 2") == [(7,)]


async def test_one_request_has_one_session(app):
    """A dependency of a handler, and the handler, work in the same transaction."""

    async def item(s: SessionDep) -> Item:
        return await s.get_one(Item, 1)

    @app.post("/same")
    async def same(s: SessionDep, item: Annotated[Item, Depends(item)]) -> bool:
        return item in s

    assert (await ask(app, "POST", "/same")).json() is True


async def test_a_session_that_is_not_used_opens_nothing(tmp_path):
    """No file is made for it."""
    maker = SessionMaker(f"sqlite+aiosqlite:///{tmp_path / 'none.db'}")
    app = FastAPI(lifespan=Lifespan(maker=maker))

    @app.post("/")
    async def nothing(s: Annotated[QSession, session_of(maker)]) -> None:
        pass

    async with app.router.lifespan_context(app):
        assert (await ask(app, "POST", "/")).status == 200
    assert list(tmp_path.iterdir()) == []


async def conflicting(app: FastAPI, path: Path, amounts: list[int]) -> list[bool]:
    """A route whose transaction conflicts once for each amount that somebody else adds.

    Returns whether each attempt has had the lock when it had only read.
    """
    qsession.configure(access="auto")
    attempts: list[bool] = []

    @app.post("/add")
    async def add(body: dict[str, int], s: SessionDep) -> int:
        item = await s.get_one(Item, 1)
        attempts.append(locked(path))
        if len(attempts) <= len(amounts):
            await somebody_adds(amounts[len(attempts) - 1])
        item.value += body["by"]
        return item.value

    return attempts


async def test_a_conflict_runs_the_handler_again(app, path):
    """With its body; and the second attempt has the lock before it reads."""
    attempts = await conflicting(app, path, [10])
    told: list[events.Event] = []
    unsubscribe = events.subscribe(told.append)
    answer = await Exchange("POST", "/add", (b'{"b', b'y": ', b"5}")).through(app)
    unsubscribe()
    assert (answer.status, answer.json()) == (200, 15)
    assert attempts == [False, True]
    assert value(path) == 15
    (retried,) = (each for each in told if isinstance(each, events.Retry))
    assert (retried.database, retried.attempt) == (str(path), 1)


async def test_the_attempts_are_bounded(app, path):
    """Then it is a 409, and nothing was written."""
    attempts = []

    @app.post("/add")
    async def add(s: SessionDep) -> None:
        (await s.get_one(Item, 1)).value += 1
        await s.flush()
        attempts.append(s)
        doom(s)

    answer = await ask(app, "POST", "/add")
    assert (answer.status, len(attempts)) == (409, retry.ATTEMPTS)
    assert value(path) == 0


async def test_a_long_body_is_not_kept(path):
    """A conflict is a 409 at once, and nothing is held in memory for a second attempt."""

    class Message(dict[str, Any]):
        """One that tells whether somebody keeps it."""

    maker = SessionMaker(f"sqlite+aiosqlite:///{path}")
    app = FastAPI(lifespan=Lifespan(maker=maker))
    app.add_middleware(QSessionMiddleware, max_body=9)
    attempts = []

    @app.post("/")
    async def fail(request: Request, s: Annotated[QSession, session_of(maker)]) -> None:
        attempts.append((await request.body(), sum(each() is not None for each in kept)))
        if len(attempts) < 2:
            doom(s)

    for chunks, status, many in (
        ((b"0123", b"45678"), 200, 2),
        ((b"0123", b"456789"), 409, 0),
        ((b"0123", b"456789", b""), 409, 0),
    ):
        attempts.clear()
        exchange = Exchange("POST", "/", chunks)
        exchange.coming = [Message(each) for each in exchange.coming]
        kept = [weakref.ref(each) for each in exchange.coming]
        assert (await exchange.through(app)).status == status
        assert set(attempts) == {(b"".join(chunks), many)}


def makers_and_app(path: Any, kind: str, attempts: int) -> tuple[SessionMaker, Any, FastAPI]:
    """A maker of ours, that of the handlers, which may be SQLAlchemy's, and an application."""
    ours = SessionMaker(f"sqlite+aiosqlite:///{path}", access="auto")
    maker: Any = ours if kind == "ours" else async_sessionmaker(ours.engine)
    app = FastAPI(lifespan=Lifespan(maker=ours, tables=Base.metadata))
    app.add_middleware(QSessionMiddleware, attempts=attempts)
    return ours, maker, app


async def change_behind(s: AsyncSession, ours: SessionMaker, made: list[int]) -> None:
    """Change an item, which another transaction changes as well at the first attempt."""
    made.append(1)
    item = await s.get_one(Item, 1)
    if len(made) == 1:
        async with ours.begin() as other:
            await other.execute(text("UPDATE items SET value = value + 10"))
    item.value += 1


async def answer_to_add(app: FastAPI, ours: SessionMaker) -> Any:
    """What the application answers when there is one item."""
    async with app.router.lifespan_context(app):
        async with ours.begin() as s:
            s.add(Item(id=1, value=0))
        return await ask(app, "POST", "/add")


@pytest.mark.parametrize("attempts", [1, 2])
@pytest.mark.parametrize("kind", ["ours", "plain"])
async def test_a_conflict_that_a_handler_turns_into_an_answer(path, attempts, kind):
    """It is run again as well, whatever it is wrapped in; its own answer is the last resort."""
    ours, maker, app = makers_and_app(path, kind, attempts)
    made = []

    @app.post("/add")
    async def add(s: Annotated[AsyncSession, session_of(maker)]) -> None:
        await change_behind(s, ours, made)
        try:
            await s.flush()
        except exc.OperationalError as error:
            raise HTTPException(418) from error

    answer = await answer_to_add(app, ours)
    assert (answer.status, len(made)) == ((200, 2) if attempts == 2 else (418, 1))
    assert value(path) == (11 if attempts == 2 else 10)


async def test_the_conflict_of_another_session_is_not_run_again(app, path):
    """A session that the handler has opened itself: what it did before would be done twice."""
    attempts = []

    @app.post("/add")
    async def add(s: SessionDep) -> None:
        attempts.append(1)
        async with qsession.begin() as own:
            (await own.get_one(Item, 1)).value += 1
        async with qsession.begin() as own:
            (await own.get_one(Item, 1)).value += 1
            doom(own)

    assert (await ask(app, "POST", "/add")).status == 409
    assert (len(attempts), value(path)) == (1, 1)


async def with_query(app: FastAPI, where: str, query: str) -> Exchange:
    exchange = Exchange("POST", where)
    exchange.scope["query_string"] = query.encode()
    return await exchange.through(app)


@pytest.mark.parametrize("attempts", [1, 2])
@pytest.mark.parametrize("then", ["return", "raise"])
@pytest.mark.parametrize("kind", ["ours", "plain"])
async def test_a_conflict_that_a_handler_swallows(path, attempts, then, kind):
    """It may not end in 200 with nothing written, and another error does not hide it."""
    ours, maker, app = makers_and_app(path, kind, attempts)
    made = []

    @app.post("/add")
    async def add(s: Annotated[AsyncSession, session_of(maker)]) -> str:
        await change_behind(s, ours, made)
        with contextlib.suppress(exc.SQLAlchemyError):
            await s.flush()
            return "written"
        if then == "raise":
            raise HTTPException(418)
        return "ignored"

    answer = await answer_to_add(app, ours)
    refused = 409 if then == "return" else 418
    assert (answer.status, len(made)) == ((200, 2) if attempts == 2 else (refused, 1))
    assert value(path) == (11 if attempts == 2 else 10)


async def test_an_applications_own_answer_to_database_errors(app, path):
    """A handler of exceptions does not hide a conflict from the middleware."""
    await conflicting(app, path, [10])

    @app.exception_handler(exc.SQLAlchemyError)
    async def answer(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse("our own", 500)

    assert (await ask(app, "POST", "/add", {"by": 5})).json() == 15
    assert value(path) == 15


async def test_no_second_run_behind_a_commit(app, path):
    """What a handler has committed would be done twice. A savepoint is no commit."""
    attempts = []

    @app.post("/add")
    async def add(savepoint: bool, s: SessionDep) -> None:
        attempts.append(1)
        (await s.get_one(Item, 1)).value += 1
        if savepoint:
            async with s.begin_nested():
                s.add(Mark(run=1))
        else:
            await s.commit()
        if len(attempts) == 1:
            doom(s)

    assert (await with_query(app, "/add", "savepoint=no")).status == 409
    assert (len(attempts), value(path)) == (1, 1)
    attempts.clear()
    assert (await with_query(app, "/add", "savepoint=yes")).status == 200
    assert (len(attempts), value(path)) == (2, 2)


async def test_two_databases_of_one_request(app, path, tmp_path):
    """One is committed, the other conflicts: a second run would write twice to the first."""
    other = SessionMaker(f"sqlite+aiosqlite:///{tmp_path / 'b.db'}")
    async with other.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)

    @app.post("/both")
    async def both(s: SessionDep, t: Annotated[QSession, session_of(other)]) -> None:
        t.add(Mark(run=1))
        doom(s)

    assert (await ask(app, "POST", "/both")).status == 409
    assert rows(tmp_path / "b.db", "SELECT count(*) FROM marks") == [(1,)]
    await other.dispose()


async def test_a_route_of_an_application_that_is_mounted(app, path):
    """A router changes the scope; the second attempt finds its way nevertheless."""
    inner = FastAPI()
    app.mount("/sub", inner)
    attempts = await conflicting(inner, path, [10])
    exchange = Exchange("POST", "/sub/add", (b'{"by": 5}',))
    assert (await exchange.through(app)).json() == 15
    assert attempts == [False, True]
    assert exchange.scope["root_path"] == "/sub"


async def test_each_attempt_begins_with_the_scope_of_the_first(path):
    """What an attempt has noted there, such as its route, does not lead the next one astray."""
    maker = SessionMaker(f"sqlite+aiosqlite:///{path}")
    seen = []

    async def inside(scope: Any, receive: Any, send: Any) -> None:
        seen.append(dict(scope))
        scope["endpoint"] = inside
        async with request_session(Request(scope, receive), maker) as s:
            doom(s)

    exchange = await Exchange("POST", "/").through(QSessionMiddleware(inside, attempts=3))
    assert (exchange.status, exchange.scope["endpoint"]) == (409, inside)
    assert len(seen) == 3
    for each in seen:
        del each["qsession.attempt"]
    assert seen[0] == seen[1] == seen[2]
    assert "endpoint" not in seen[0]


async def test_middlewares_around(app, path):
    """They see one request and one answer; what they hang on the state of the request stays."""
    seen = []
    await conflicting(app, path, [10])

    @app.middleware("http")
    async def around(request: Request, call_next: Any) -> Any:
        request.state.user = "ann"
        answer = await call_next(request)
        seen.append((answer.status_code, request.state.user))
        return answer

    assert (await ask(app, "POST", "/add", {"by": 5})).json() == 15
    assert seen == [(200, "ann")]


async def test_a_middleware_inside_of_ours(path):
    """Starlette's BaseHTTPMiddleware hands on bodies, disconnections and conflicts."""
    maker = SessionMaker(f"sqlite+aiosqlite:///{path}")
    app = FastAPI(lifespan=Lifespan(maker=maker, tables=Base.metadata))
    attempts = []

    @app.middleware("http")
    async def inside(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    app.add_middleware(QSessionMiddleware)

    @app.post("/add")
    async def add(body: list[int], s: Annotated[QSession, session_of(maker)]) -> list[int]:
        attempts.append(1)
        s.add(Mark(run=1))
        if len(attempts) == 1:
            doom(s)
        return body

    async with app.router.lifespan_context(app):
        assert (await ask(app, "POST", "/add", [1, 2])).json() == [1, 2]
        assert rows(path, "SELECT count(*) FROM marks") == [(1,)]


async def test_a_turn_that_does_not_come(app, path):
    """503, and the client shall wait for as long as its request has waited, at least a second."""
    qsession.configure(f"sqlite+aiosqlite:///{path}", queue_timeout=1.6, max_waiting=1)

    @app.post("/add")
    async def add(s: SessionDep) -> None:
        (await s.get_one(Item, 1)).value += 1

    async with qsession.begin() as holder:
        await holder.execute(text("UPDATE items SET value = 7"))
        late = asyncio.create_task(ask(app, "POST", "/add"))
        while not qsession.engine.stats().waiting:
            await asyncio.sleep(0)
        full = await asyncio.create_task(ask(app, "POST", "/add"))
        assert (full.status, full.headers["retry-after"]) == (503, "1")
        answer = await late
        assert answer.status == 503
        assert 2 <= int(answer.headers["retry-after"]) <= 30
        assert (await asyncio.create_task(ask(app, "GET", "/openapi.json"))).status == 200
        await holder.rollback()
    assert (await ask(app, "POST", "/add")).status == 200


async def test_an_engine_that_drains(app):
    """503: another worker, or the next one, will have it."""

    @app.post("/add")
    async def add(s: SessionDep) -> None:
        (await s.get_one(Item, 1)).value += 1

    await qsession.engine.drain()
    answer = await ask(app, "POST", "/add")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")


@pytest.mark.parametrize("others", [[], [ZeroDivisionError]])
async def test_tasks_of_a_handler_whose_turn_does_not_come(app, path, others):
    """What a task group makes of it is 503 as well, unless another error is in it."""

    async def fail(error: type[Exception]) -> None:
        raise error("as they do")

    @app.post("/add")
    async def add(s: SessionDep) -> None:
        async with create_task_group() as tasks:
            for error in (QueueTimeout, QueueFull, *others):
                tasks.start_soon(fail, error)

    answering = ask(app, "POST", "/add")
    if others:
        with pytest.raises(Exception, match="unhandled errors in a TaskGroup"):
            await answering
    else:
        assert (await answering).status == 503


async def test_a_commit_that_the_disk_has_not_confirmed(app, path):
    """500: it is in the file, so nothing may invite the client to send it again."""
    attempts = []

    @app.post("/add")
    async def add(s: SessionDep) -> None:
        attempts.append(1)
        (await s.get_one(Item, 1)).value += 1

        def fail(_: object) -> None:
            raise DurabilityError("as a disk that fails")

        event.listen(s.sync_session, "after_commit", fail)

    exchange = Exchange("POST", "/add")
    with pytest.raises(DurabilityError):
        await exchange.through(app)
    assert (exchange.status, len(attempts), value(path)) == (500, 1, 1)


async def test_a_client_that_has_gone(app, path):
    """Nothing is committed for it, and what would follow the answer does not happen."""
    exchange = Exchange("POST", "/add")
    told = []

    @app.post("/add")
    async def add(s: SessionDep, tasks: BackgroundTasks) -> None:
        (await s.get_one(Item, 1)).value += 1
        await s.flush()
        tasks.add_task(told.append, "mail")
        exchange.hang_up()

    await exchange.through(app)
    assert (exchange.status, value(path), told) == (499, 0, [])


async def test_a_client_that_is_still_there(app, path):
    """A body that the handler has not read is not taken for a disconnection, nor waited for."""

    @app.post("/add")
    async def add(s: SessionDep) -> None:
        (await s.get_one(Item, 1)).value += 1

    assert (await Exchange("POST", "/add", (b"a", b"b", b"c")).through(app)).status == 200
    assert value(path) == 1


@pytest.mark.parametrize("when", When)
async def test_cancelled_at_each_await(app, path, when):
    """What was acknowledged is in the file, whole; anything else is there whole or not at all."""
    acknowledged = set()

    @app.post("/{run}")
    async def add(run: int, s: SessionDep) -> None:
        await s.get_one(Item, 1)
        s.add(Mark(run=run))
        await s.flush()
        s.add(Mark(run=run))

    for n in count(1):
        exchange = Exchange("POST", f"/{n}")
        ended = await cancel_at(exchange.through(app), n, when)
        if exchange.status == 200:
            acknowledged.add(n)
        await settled(qsession.engine)
        assert_free(path)
        if ended:
            break
    found = dict(rows(path, "SELECT run, count(*) FROM marks GROUP BY run"))
    assert set(found.values()) == {2}
    assert acknowledged <= set(found)
    assert n in acknowledged


@pytest.mark.parametrize("kind", ["ours", "plain"])
async def test_a_stream_and_a_background_task(app, path, kind):
    """They open sessions of their own; that of the request is closed for good."""
    refused = []
    maker: Any = qsession if kind == "ours" else async_sessionmaker(qsession.engine)

    async def later(s: AsyncSession) -> None:
        try:
            await s.get(Item, 1)
        except exc.InvalidRequestError as error:
            refused.append(str(error))
        await somebody_adds(1)

    @app.get("/stream")
    async def stream(
        s: Annotated[AsyncSession, session_of(maker)], tasks: BackgroundTasks
    ) -> StreamingResponse:
        tasks.add_task(later, s)

        async def numbers() -> AsyncIterator[str]:
            for _ in range(3):
                async with qsession.reader() as own:
                    yield str((await own.get_one(Item, 1)).value)

        return StreamingResponse(numbers())

    assert (await ask(app, "GET", "/stream")).body == b"000"
    assert "closed" in refused[0]
    assert value(path) == 1


@pytest.mark.parametrize("version", ["2.3", "2.4"])
@pytest.mark.parametrize("error", [ConflictError, ZeroDivisionError])
async def test_a_stream_that_fails_is_not_run_again(app, error, version):
    """Something was sent already: the server has to break the connection. The error is that of the
    stream, also where Starlette has it come of a group that it is in, as behind uvicorn (2.3).
    """
    attempts = []

    @app.get("/stream")
    async def stream(s: SessionDep) -> StreamingResponse:
        attempts.append(1)

        async def numbers() -> AsyncIterator[str]:
            yield "1"
            raise error("as on a server")

        return StreamingResponse(numbers())

    exchange = Exchange("GET", "/stream")
    exchange.scope["asgi"]["spec_version"] = version
    with pytest.raises(error, match="as on a server"):
        await exchange.through(app)
    assert (exchange.status, exchange.body, attempts) == (200, b"1", [1])


async def test_an_answer_inside_of_the_block(app, path):
    """It was sent before the commit, against all advice: a conflict breaks the connection."""
    attempts = []

    async def inside(scope: Any, receive: Any, send: Any) -> None:
        attempts.append(1)
        async with request_session(Request(scope, receive)) as s:
            await JSONResponse("done")(scope, receive, send)
            doom(s)

    with pytest.raises(ConflictError):
        await Exchange("POST", "/").through(QSessionMiddleware(inside))
    assert len(attempts) == 1


async def test_websockets(app, path):
    """They pass through, with sessions of their own; one for hours is refused."""
    sent = []
    coming = [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": "5"}]

    @app.websocket("/add")
    async def add(socket: WebSocket) -> None:
        await socket.accept()
        await somebody_adds(int(await socket.receive_text()))
        await socket.send_text("done")

    @app.websocket("/hours")
    async def hours(socket: WebSocket, s: SessionDep) -> None:
        pass

    async def receive() -> Any:
        return coming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {**Exchange("GET", "/add").scope, "type": "websocket", "subprotocols": []}
    await app(dict(scope), receive, send)
    assert sent[1]["text"] == "done"
    assert value(path) == 5
    with pytest.raises(RuntimeError, match="for each message"):
        await app({**scope, "path": "/hours"}, receive, send)


async def test_a_maker_of_plain_sessions(app, path):
    """Reads are a snapshot, and the attempt after a conflict takes the lock first."""
    plain = async_sessionmaker(qsession.engine)
    attempts = []

    @app.get("/add")
    @app.post("/add")
    async def add(request: Request, s: Annotated[AsyncSession, session_of(plain)]) -> int:
        item = await s.get_one(Item, 1)
        if request.method == "POST":
            attempts.append(locked(path))
        if len(attempts) == 1:
            await somebody_adds(10)
        item.value += 1
        return item.value

    assert (await ask(app, "POST", "/add")).json() == 11
    assert attempts == [False, True]
    assert value(path) == 11
    with pytest.raises(ReadOnlyError):
        await ask(app, "GET", "/add")


class WithExec(QSession, SQLModelAsyncSession):  # type: ignore[misc]
    """A session of qsession with SQLModel's exec()."""


@pytest.mark.parametrize("kind", ["joined", "SQLModel's own"])
async def test_sqlmodel(app, path, kind):
    """exec() works, in a session of either kind."""
    maker: Any = async_sessionmaker(qsession.engine, class_=SQLModelAsyncSession)
    if kind == "joined":
        maker = SessionMaker(f"sqlite+aiosqlite:///{path}", class_=WithExec)

    @app.post("/add")
    async def add(s: Annotated[SQLModelAsyncSession, session_of(maker)]) -> int:
        item = (await s.exec(select(Item))).one()
        item.value += 1
        return item.value

    assert (await ask(app, "POST", "/add")).json() == 1
    assert value(path) == 1
    if kind == "joined":
        await maker.dispose()


TYPED = '''
"""What users write."""

from contextlib import asynccontextmanager
from typing import Annotated
from collections.abc import AsyncGenerator

from fastapi import FastAPI, Request
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from qsession import QSession, create_async_engine, qsession
from qsession.ext.fastapi import (
    Lifespan, QSessionMiddleware, ReaderDep, SessionDep, WriterDep, request_session, session_of,
)

plain = async_sessionmaker(create_async_engine("sqlite+aiosqlite:///a.db"))
PlainDep = Annotated[AsyncSession, session_of(plain)]


@asynccontextmanager
async def mine(app: FastAPI) -> AsyncGenerator[dict[str, int], None]:
    yield {"answer": 42}


app = FastAPI(lifespan=Lifespan(mine, maker=qsession, upgrade=True))
app.add_middleware(QSessionMiddleware, attempts=3, max_body=1000)


@app.get("/")
async def read(r: ReaderDep, s: SessionDep, w: WriterDep, p: PlainDep) -> int:
    session: QSession = s
    other: AsyncSession = p
    await session.execute(text("SELECT 1"))
    await other.execute(text("SELECT 1"))
    return int(await r.scalar(text("SELECT 1")) or await w.scalar(text("SELECT 2")) or 0)


async def endpoint(request: Request) -> None:
    async with request_session(request) as s:
        one: QSession = s
    async with request_session(request, plain, access="read") as t:
        two: AsyncSession = t
    print(one, two)
'''


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_types_in_the_code_of_users(tmp_path, checker):
    """Both type checkers are content, in their strictest mode."""
    (tmp_path / "users.py").write_text(TYPED)
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    words = {"mypy": ["--strict"], "pyright": ["--pythonpath", sys.executable]}[checker]
    done = subprocess.run(
        [sys.executable, "-m", checker, *words, "users.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
