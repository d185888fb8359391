"""The ASGI application: mounting, headers, the stream, and that nothing is done for nobody."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cancelling import eventually
from fastapi import FastAPI, HTTPException
from httpx import ASGITransport, AsyncClient, Response
from server_databases import database_on
from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.exc import InvalidRequestError, SADeprecationWarning
from sqlalchemy.ext.asyncio import create_async_engine as stock_engine
from starlette.applications import Starlette
from starlette.routing import Mount

from qsession import QueuedAsyncEngine, QueueTimeout, create_async_engine, create_engine, events
from qsession.ext.dashboard import Dashboard, feed
from qsession.ext.dashboard import stream as streams
from qsession.ext.dashboard.feed import Feed
from qsession.testing import When, assert_free, cancel_at

with warnings.catch_warnings():  # a deprecation in advanced-alchemy, which Litestar imports
    warnings.simplefilter("ignore", SADeprecationWarning)
    from litestar import Litestar, asgi

HTML = "<script>alert('&amp;')</script>"
ADD = text("INSERT INTO t (v) VALUES (1)")


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[QueuedAsyncEngine]:
    """An engine with one table."""
    engine = create_async_engine(f"sqlite:///{tmp_path / 'app.db'}")
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE t (v)"))
    yield engine
    await engine.dispose()


@pytest.fixture(autouse=True)
async def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Afterwards no task and no subscription of the dashboard is left, without waiting for it."""
    monkeypatch.setattr(feed, "LINGER", 0.0)
    monkeypatch.setattr(feed, "STEP", 0.01)
    yield
    await eventually(lambda: not dashboard_tasks())
    assert not events.observers


def dashboard_tasks() -> list[asyncio.Task[Any]]:
    """The tasks that look."""
    return [each for each in asyncio.all_tasks() if each.get_name() == "qsession dashboard"]


def client(app: Any, base: str = "http://localhost") -> AsyncClient:
    """A client on this machine. `ASGITransport` takes the server's address from the URL."""

    async def on_loopback(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "server": ("127.0.0.1", 80)}, receive, send)

    return AsyncClient(transport=ASGITransport(on_loopback), base_url=base)


async def get(app: Any, path: str, base: str = "http://localhost", **kw: Any) -> Response:
    """One answer."""
    async with client(app, base) as asking:
        return await asking.get(path, **kw)


class Stream:
    """A client of the stream, whose hands a test moves."""

    def __init__(self, dashboard: Dashboard) -> None:
        self.got: list[dict[str, Any]] = []
        self.may_read = asyncio.Event()
        self.may_read.set()
        self.leaves = asyncio.Event()
        self.reads = 0
        scope = {
            "type": "http", "http_version": "1.1", "method": "GET", "path": "/stream",
            "root_path": "", "headers": [(b"host", b"localhost"), (b"connection", b"keep-alive")],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
        }  # fmt: skip
        self.call = dashboard(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.reads += 1
        await self.may_read.wait()
        self.got.append(message)

    def begin(self) -> asyncio.Task[None]:
        """The request, in a task."""
        return asyncio.create_task(self.call)

    @property
    def states(self) -> list[dict[str, Any]]:
        """The figures that came."""
        bodies = [each.get("body", b"") for each in self.got]
        return [json.loads(each[6:]) for each in bodies if each.startswith(b"data: ")]

    @property
    def ended(self) -> bool:
        """Whether the answer came to its end."""
        return bool(self.got) and self.got[-1].get("more_body") is False


def feeds(dashboard: Dashboard) -> list[Feed]:
    """What looks, for each loop."""
    return list(dashboard._feeds.values())


async def test_the_figures_of_an_engine(engine: QueuedAsyncEngine) -> None:
    """They are the same in JSON as in the stream, and are those of ``stats()``."""
    dashboard = Dashboard(engine)
    answer = await get(dashboard, "/state.json")
    assert answer.headers["content-type"] == "application/json"
    (told,) = answer.json()["databases"]
    assert told["name"] == "app.db"
    assert told["totals"]["commits"] == engine.stats().commits == 1
    assert told["connections"]["open"] == engine.stats().size
    assert told["processes"][0]["here"]

    stream = Stream(dashboard)
    task = stream.begin()
    await eventually(lambda: len(stream.states) == 1)
    stream.leaves.set()
    await task
    assert stream.states[0]["databases"][0].keys() == told.keys()
    headers = dict(stream.got[0]["headers"])
    assert headers[b"content-type"] == b"text/event-stream"
    assert headers[b"cache-control"] == b"no-store"


async def test_the_holder_and_those_behind_it(engine: QueuedAsyncEngine) -> None:
    """The task, the statement and the line of the holder; the statements of those who wait."""
    async with engine.begin() as holder:
        await holder.execute(text(f"INSERT INTO t VALUES (1) /* {HTML} */"))

        async def waits() -> None:
            async with engine.begin() as connection:
                await connection.execute(ADD)

        task = asyncio.create_task(waits(), name=HTML)
        await eventually(lambda: engine.stats().waiting == 1)
        answer = await get(Dashboard(engine), "/state.json")
        (told,) = answer.json()["databases"]
        (held,) = told["holders"]
        assert HTML in held["statement"]
        assert held["wrote"]
        assert any("in test_the_holder_and_those_behind_it" in each for each in held["stack"])
        (waiting,) = told["line"]
        assert (waiting["task"], waiting["statement"]) == (f"task {HTML!r}", ADD.text)
        assert told["waiting"] == 1
    await task


async def test_what_costs_time_is_listed_by_place(
    engine: QueuedAsyncEngine, tmp_path: Path
) -> None:
    """A long hold, a refusal; only those of this database, and while somebody looks."""
    other = create_async_engine(f"sqlite:///{tmp_path / 'other.db'}")
    impatient = create_async_engine(f"sqlite:///{tmp_path / 'app.db'}", queue_timeout=0.01)

    async def add(engine: QueuedAsyncEngine) -> None:
        async with engine.begin() as connection:
            await connection.execute(ADD)

    async with other.begin() as connection:
        await connection.execute(text("CREATE TABLE t (v)"))
    await add(engine)  # nobody looks
    stream = Stream(Dashboard(engine, slow=0.0, interval=0.1))
    task = stream.begin()
    await eventually(lambda: bool(stream.states))
    async with engine.begin() as connection:
        await connection.execute(ADD)
        with pytest.raises(QueueTimeout):
            await asyncio.create_task(add(impatient))
    await add(engine)
    await add(other)
    await eventually(lambda: len(stream.states[-1]["databases"][0]["slow"]) >= 2)
    stream.leaves.set()
    await task
    slow = stream.states[-1]["databases"][0]["slow"]
    assert {each["kind"] for each in slow} == {"held", "timeout"}
    assert sum(each["times"] for each in slow if each["kind"] == "held") <= 2
    assert all(each["statement"] == ADD.text for each in slow)
    await impatient.dispose()
    await other.dispose()


def mounts(dashboard: Dashboard) -> dict[str, Any]:
    """Applications that have it at /in/qsession."""
    inner, fast = FastAPI(), FastAPI()
    inner.mount("/qsession", dashboard)
    fast.mount("/in", inner)

    @asgi("/in/qsession", is_mount=True, copy_scope=True)
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        await dashboard(scope, receive, send)

    return {
        "fastapi": fast,
        "starlette": Starlette(routes=[Mount("/in", routes=[Mount("/qsession", dashboard)])]),
        "litestar": Litestar([handler], openapi_config=None),
    }


@pytest.mark.parametrize("framework", ["fastapi", "starlette", "litestar"])
async def test_it_works_where_it_is_mounted(engine: QueuedAsyncEngine, framework: str) -> None:
    """All parts are there, and the place without a slash leads to the one with it."""
    mounted = mounts(Dashboard(engine))[framework]
    async with client(mounted) as asking:
        page = await asking.get("/in/qsession", follow_redirects=True)
        assert page.status_code == 200
        assert "<title>qsession</title>" in page.text
        assert str(page.url) == "http://localhost/in/qsession/"
        for part in ("page.css", "page.js", "icon.svg", "state.json"):
            assert (await asking.get(f"/in/qsession/{part}")).status_code == 200
        assert (await asking.get("/in/qsession/page.py")).status_code == 404
        assert (await asking.get("/in/qsession/../page/page.js")).status_code == 404


async def test_a_mount_that_is_told_by_root_path_alone(engine: QueuedAsyncEngine) -> None:
    """Without a slash, the answer leads into the folder by a relative address."""
    scope = {
        "type": "http", "method": "GET", "path": "/a/b c", "root_path": "/a/b c", "headers": [],
    }  # fmt: skip
    got: list[Any] = []

    async def send(message: Any) -> None:
        got.append(message)

    await Dashboard(engine)(scope, send, send)
    assert got[0]["status"] == 307
    assert (b"location", b"./b%20c/") in got[0]["headers"]


async def test_headers_let_nothing_in_from_elsewhere(engine: QueuedAsyncEngine) -> None:
    """Each answer has the policy, and the files need nothing that it forbids."""
    dashboard = Dashboard(engine)
    for path in ("/", "/page.css", "/page.js", "/icon.svg", "/state.json", "/nothing"):
        answer = await get(dashboard, path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers
        if path in ("/", "/page.css", "/page.js"):
            outside = answer.text.replace("http://www.w3.org/2000/svg", "")
            assert "://" not in outside
            assert "innerHTML" not in outside
            assert " style=" not in outside
            assert " on" + "click=" not in outside


async def test_only_what_reads_is_answered(engine: QueuedAsyncEngine) -> None:
    """HEAD gets no body, also from the stream; other methods are refused."""
    async with client(Dashboard(engine)) as asking:
        for path in ("/", "/state.json", "/stream"):
            answer = await asking.head(path)
            assert (answer.status_code, answer.content) == (200, b"")
        answer = await asking.post("/state.json")
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


async def test_elsewhere_it_is_refused_with_a_page(engine: QueuedAsyncEngine) -> None:
    """The page says why and what to do, and escapes what the client has sent."""
    dashboard = Dashboard(engine)
    answer = await get(dashboard, "/", headers={"host": "<b>evil"})
    assert answer.status_code == 403
    assert "asked for the host &lt;b&gt;evil" in answer.text
    assert "password=" in answer.text
    for part in ("/state.json", "/stream", "/page.js"):
        answer = await get(dashboard, part, headers={"x-forwarded-for": "127.0.0.1"})
        assert answer.status_code == 403
        assert answer.text.startswith("The request came through a proxy")
    assert not feeds(dashboard)


async def test_a_password_is_asked_for_and_lets_in(engine: QueuedAsyncEngine) -> None:
    """By the browser's own dialog, also for requests that come by a proxy."""
    dashboard = Dashboard(engine, password="correct horse battery")
    headers = {"x-forwarded-for": "203.0.113.9", "host": "app.example"}
    answer = await get(dashboard, "/state.json", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic ")
    auth = ("", "correct horse battery")
    assert (await get(dashboard, "/state.json", headers=headers, auth=auth)).status_code == 200


async def test_the_authentication_of_the_application(engine: QueuedAsyncEngine) -> None:
    """What its function raises is its own answer; one that wraps the dashboard opens it."""

    def refuses(scope: Any) -> bool:
        raise HTTPException(418, "no session")

    application = FastAPI()
    application.mount("/q", Dashboard(engine, auth=refuses))
    application.mount("/open", Dashboard(engine, public=True))
    assert (await get(application, "/q/")).status_code == 418
    assert (await get(application, "/open/", "http://app.example")).status_code == 200


async def test_a_slow_client_costs_nothing(engine: QueuedAsyncEngine) -> None:
    """While it does not read, one message waits, and the others get theirs."""
    dashboard = Dashboard(engine, interval=0.1)
    slow, quick = Stream(dashboard), Stream(dashboard)
    tasks = [slow.begin(), quick.begin()]
    await eventually(lambda: bool(slow.states))
    slow.may_read.clear()
    await eventually(lambda: len(quick.states) >= len(slow.states) + 5)
    (looking,) = feeds(dashboard)
    assert slow.reads - len(slow.got) <= 1
    before = looking.version
    slow.may_read.set()
    await eventually(lambda: slow.states[-1]["at"] >= quick.states[-2]["at"])
    assert len(slow.states) < before
    for each in (slow, quick):
        each.leaves.set()
    await asyncio.gather(*tasks)


async def test_a_client_that_has_gone_is_forgotten_while_it_is_sent_to(
    engine: QueuedAsyncEngine,
) -> None:
    """Also if the server's ``send`` never returns, or raises."""
    dashboard = Dashboard(engine)
    stuck, broken = Stream(dashboard), Stream(dashboard)
    stuck.may_read.clear()

    async def fails(message: Any) -> None:
        raise OSError("the client has gone")

    broken_call = dashboard(
        {"type": "http", "http_version": "1.1", "method": "GET", "path": "/stream",
         "headers": [(b"host", b"localhost"), (b"connection", b"keep-alive")],
         "client": ("::1", 1), "server": ("::1", 80)},
        broken._receive, fails,
    )  # fmt: skip
    broken.call.close()
    task = stuck.begin()
    await eventually(lambda: stuck.reads == 1)
    stuck.leaves.set()
    await task
    await broken_call
    assert [each.watching for each in feeds(dashboard)] == [0]


async def test_nothing_is_done_while_nobody_looks(engine: QueuedAsyncEngine) -> None:
    """No task, no subscription before the first and after the last; one task for all between."""
    dashboard = Dashboard(engine, engine)
    assert not dashboard_tasks()
    streams = [Stream(dashboard) for _ in range(3)]
    tasks = [each.begin() for each in streams]
    await eventually(lambda: all(each.states for each in streams))
    assert len(dashboard_tasks()) == len(events.observers) == 1
    assert len(streams[0].states[0]["databases"]) == 2
    for each in streams:
        each.leaves.set()
    await asyncio.gather(*tasks)
    await eventually(lambda: not dashboard_tasks())
    assert not events.observers


async def test_streams_are_bounded(
    engine: QueuedAsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In number, and in time: one whose time is over ends in order, and may ask again."""
    monkeypatch.setattr(streams, "STREAMS", 1)
    dashboard = Dashboard(engine)

    async def look() -> Stream:
        stream = Stream(dashboard)
        task = stream.begin()
        await eventually(lambda: bool(stream.states))
        answer = await get(dashboard, "/stream")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        stream.leaves.set()
        await task
        return stream

    assert not (await look()).ended  # it has gone
    with monkeypatch.context() as changed:
        changed.setattr(streams, "STREAM_LIFE", 0.0)
        short = Stream(dashboard)
        await short.begin()
        assert short.ended
    await look()


async def test_a_client_that_reads_nothing_ends_as_well(
    engine: QueuedAsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even the end of the stream cannot be sent."""
    monkeypatch.setattr(streams, "STREAM_LIFE", 0.05)
    monkeypatch.setattr(streams, "FAREWELL", 0.05)
    stuck = Stream(Dashboard(engine))
    stuck.may_read.clear()
    await stuck.begin()
    assert not stuck.got


async def test_streams_end_when_the_server_stops(
    engine: QueuedAsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They end in order, and no more is told afterwards."""
    dashboard = Dashboard(engine)
    stream = Stream(dashboard)
    task = stream.begin()
    await eventually(lambda: bool(stream.states))
    monkeypatch.setattr(feed, "server_stops", lambda: True)
    await task
    assert stream.ended
    assert (await get(dashboard, "/state.json")).status_code == 503
    late = Stream(dashboard)
    await late.begin()
    assert late.ended
    assert not late.states


async def test_a_database_that_fails_is_shown_as_such(
    engine: QueuedAsyncEngine, tmp_path: Path
) -> None:
    """The others are shown, and it is looked at again."""
    path = tmp_path / "later.db"
    dashboard = Dashboard(path, engine)
    failed, well = (await get(dashboard, "/state.json")).json()["databases"]
    assert "FileNotFoundError" in failed["failed"]
    assert well["name"] == "app.db"
    later = create_async_engine(f"sqlite:///{path}")
    async with later.begin() as connection:
        await connection.execute(text("CREATE TABLE t (v)"))
    await eventually(lambda: not dashboard_tasks())
    found, _ = (await get(dashboard, "/state.json")).json()["databases"]
    assert found["name"] == "later.db"
    assert found["totals"]["commits"] == 1
    await later.dispose()


async def test_what_can_be_shown(tmp_path: Path) -> None:
    """A file, engines of both kinds, a function that returns one later, a database in memory."""
    url = f"sqlite:///{tmp_path / 'a.db'}"
    made: list[Any] = [create_async_engine(url), create_engine(url)]
    made.append(create_async_engine("sqlite://"))
    async with made[2].begin() as connection:
        await connection.execute(text("CREATE TABLE t (v)"))
    async with made[0].begin() as connection:
        await connection.execute(text("CREATE TABLE t (v)"))
    later: list[Any] = []
    dashboard = Dashboard(*made, lambda: later[0], tmp_path / "a.db")
    later.append(made[0])
    told = (await get(dashboard, "/state.json")).json()["databases"]
    assert [each.get("kind") for each in told] == ["sqlite"] * 5
    assert told[2]["totals"]["commits"] == 1
    assert told[4]["totals"]["commits"] == told[0]["totals"]["commits"] == 1
    await made[0].dispose()
    made[1].dispose()
    await made[2].dispose()


@pytest.mark.servers
@pytest.mark.parametrize("kind", ["postgresql", "mysql"])
def test_an_engine_on_a_server(kind: str) -> None:
    """The queue is that for connections; nobody holds a ticket."""

    async def look(url: URL) -> None:
        engine = create_async_engine(url, max_size=1)
        dashboard = Dashboard(engine)
        async with engine.begin() as connection:
            await connection.execute(text("SELECT 1"))
            task = asyncio.create_task(engine.fill())
            await eventually(lambda: engine.stats().waiting == 1)
            (told,) = (await get(dashboard, "/state.json")).json()["databases"]
        await task
        assert (told["kind"], told["waiting"], told["holders"]) == (kind, 1, [])
        assert told["connections"] == {"open": 1, "in_use": 1}
        await engine.dispose()

    with database_on(kind) as url:
        asyncio.run(look(url))


async def test_without_the_socket_this_process_is_shown(
    engine: QueuedAsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QSESSION_STATUS=off hides a process from others, not from itself."""
    monkeypatch.setattr("qsession.ext.dashboard.database.engines_on", lambda path: iter(()))
    (told,) = (await get(Dashboard(engine), "/state.json")).json()["databases"]
    assert told["totals"]["commits"] == 1
    assert told["processes"][0]["here"]


async def test_what_makes_no_sense_is_refused_at_once() -> None:
    """No database, an engine of SQLAlchemy's own, an interval that would be no rest."""
    with pytest.raises(ValueError, match="an engine"):
        Dashboard()
    with pytest.raises(InvalidRequestError):
        Dashboard(stock_engine("sqlite+aiosqlite://"))
    with pytest.raises(ValueError, match="interval"):
        Dashboard("app.db", interval=0)


@pytest.mark.parametrize("when", list(When))
async def test_a_request_that_is_cancelled_leaves_nothing(
    engine: QueuedAsyncEngine, tmp_path: Path, when: When
) -> None:
    """At each of its awaits: nobody watches afterwards, and the file is free."""
    for path in ("/state.json", "/stream"):
        for n in range(1, 12):
            dashboard = Dashboard(engine, interval=0.1)
            stream = Stream(dashboard)
            call = stream.call
            if path == "/state.json":
                stream.call.close()
                call = get(dashboard, path)
            else:
                asyncio.get_running_loop().call_later(0.15, stream.leaves.set)
            over = await cancel_at(call, n, when)
            assert [each.watching for each in feeds(dashboard)] in ([], [0])
            await eventually(lambda: not dashboard_tasks())
            if over:
                break
    assert not events.observers
    assert_free(tmp_path / "app.db")


def test_two_loops_have_a_feed_each(tmp_path: Path) -> None:
    """One dashboard may be used by one loop after the other, as in tests."""
    path = tmp_path / "a.db"
    path.touch()
    dashboard = Dashboard(path)
    for _ in range(2):
        answer = asyncio.run(get(dashboard, "/state.json"))
        assert answer.status_code == 200
    assert not events.observers


async def test_it_takes_part_in_the_lifespan_and_refuses_websockets() -> None:
    """So it can be served alone."""
    dashboard = Dashboard("app.db")
    asked = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    answers: list[Any] = []

    async def receive() -> Any:
        return next(asked)

    async def send(message: Any) -> None:
        answers.append(message["type"])

    await dashboard({"type": "lifespan"}, receive, send)
    assert answers == ["lifespan.startup.complete", "lifespan.shutdown.complete"]

    async def connects() -> Any:
        return {"type": "websocket.connect"}

    await dashboard({"type": "websocket"}, connects, send)
    assert answers[-1] == "websocket.close"
