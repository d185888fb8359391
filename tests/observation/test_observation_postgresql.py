"""Observers on PostgreSQL, which its triggers notify."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from typing import Any, final

import pytest
from cancelling import eventually
from observing import Base, Child, Other, Parent, soon
from server_databases import database_on
from sqlalchemy import URL, delete, exc, func, insert, select, text, update
from sqlalchemy.ext.asyncio import create_async_engine as plain_engine
from sqlalchemy.orm import joinedload, selectinload
from sqlalchemy.pool import NullPool

from qsession import QueuedAsyncEngine, ReadOnlyError, create_async_engine
from qsession.observation import install_triggers, postgresql, remove_triggers
from qsession.session.maker import SessionMaker
from qsession.testing import When, cancel_at

pytestmark = pytest.mark.servers

COUNT = select(func.count()).select_from(Parent)
LISTENING = text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
    "AND query LIKE 'LISTEN%'"
)


@pytest.fixture(scope="module")
def database() -> Iterator[URL]:
    """A database for this file."""
    with database_on("postgresql") as url:
        yield url


@pytest.fixture(params=["asyncpg", "psycopg"])
async def engine(database: URL, request: Any) -> AsyncIterator[QueuedAsyncEngine]:
    """An engine on a database with tables that notify; nothing listens after the test."""
    made = create_async_engine(database.set(drivername=f"postgresql+{request.param}"))
    async with made.begin() as connection:
        await connection.execute(text("DROP SCHEMA public CASCADE"))
        await connection.execute(text("CREATE SCHEMA public"))
        await connection.run_sync(Base.metadata.create_all)
        await connection.run_sync(install_triggers, Parent, Child.__table__, "others")
    yield made
    gc.collect()
    await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()})
    await _nobody_listens(made)
    await made.dispose()


async def _nobody_listens(engine: QueuedAsyncEngine) -> None:
    async with engine.connect() as connection:
        while await connection.scalar(LISTENING):
            await connection.rollback()


@pytest.fixture
def maker(engine: QueuedAsyncEngine) -> SessionMaker:
    """Sessions on that engine."""
    return SessionMaker(bind=engine)


async def waits(rows: Any) -> asyncio.Task[Any]:
    """A task that waits for the next result."""
    waiting = asyncio.ensure_future(rows.__anext__())
    await eventually(lambda: waiting.done() or not rows._subscription._waiter.is_over)
    assert not waiting.done(), waiting
    return waiting


def observers() -> list[Any]:
    """The subscriptions of this loop."""
    found = postgresql._listeners.get(asyncio.get_running_loop(), {})
    return [each for listener in found.values() for each in listener._live()]


async def add(maker: SessionMaker, *objects: object) -> None:
    async with maker.begin() as s:
        s.add_all(objects)


async def test_each_commit(maker: SessionMaker) -> None:
    """The result comes now and after each commit, also of another engine."""
    rows = maker.observe(COUNT)
    assert await soon(anext(rows)) == [(0,)]
    for number in range(1, 4):
        await add(maker, Parent())
        assert await soon(anext(rows)) == [(number,)]
    other = plain_engine(maker.engine.url)
    async with other.begin() as connection:
        await connection.execute(delete(Parent))
    await other.dispose()
    assert await soon(anext(rows)) == [(0,)]


async def test_other_tables_and_rollbacks_do_not_count(maker: SessionMaker) -> None:
    """Neither sends the statement again."""
    rows = maker.observe(COUNT, distinct=False)
    await soon(anext(rows))
    every = maker.observe(select(1), tables=[], distinct=False)
    await soon(anext(every))
    waiting = await waits(rows)
    await add(maker, Other())
    await soon(anext(every))
    async with maker() as s:
        await s.execute(insert(Parent))
        await s.rollback()
    assert not rows._subscription.is_due  # type: ignore[union-attr]
    await add(maker, Parent())
    assert await soon(waiting) == [(1,)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "statement",
    [
        select(Parent),
        select(Other.id, select(func.count(Parent.id)).scalar_subquery()),
        select(select(Parent.id).cte("p")),
        select(Other.id).union_all(select(Parent.id)),
        select(Parent).where(Parent.id == 1).with_only_columns(Parent.name),
        text("SELECT * FROM seen"),
        text("SELECT name FROM parents WHERE id > :id").bindparams(id=0),
    ],
    ids=str,
)
async def test_the_tables_of_a_statement(maker: SessionMaker, statement: Any) -> None:
    """PostgreSQL says which they are, also behind a view and with parameters."""
    async with maker.begin() as s:
        await s.execute(text("CREATE VIEW seen AS SELECT count(*) FROM parents"))
    rows = maker.observe(statement, distinct=False)
    await soon(anext(rows))
    waiting = await waits(rows)
    await add(maker, Parent())
    await soon(waiting)  # type: ignore[arg-type]


@pytest.mark.parametrize("load", [selectinload, joinedload])
async def test_relationships(maker: SessionMaker, load: Any) -> None:
    """Those loaded eagerly count."""
    await add(maker, Parent(id=1))
    rows = maker.observe(select(Parent).options(load(Parent.children))).scalars()
    await soon(anext(rows))
    await add(maker, Child(parent_id=1, name="a"))
    (parent,) = await soon(anext(rows))
    assert [each.name for each in parent.children] == ["a"]
    async with maker.begin() as s:
        await s.execute(update(Child).values(name="b"))
    (parent,) = await soon(anext(rows))
    assert [each.name for each in parent.children] == ["b"]


async def test_partitions(maker: SessionMaker) -> None:
    """A write to a partitioned table counts for the partition, and one to a partition as well."""
    async with maker.begin() as s:
        await s.execute(text("CREATE TABLE p (k int) PARTITION BY LIST (k)"))
        for k in (1, 2):
            await s.execute(text(f"CREATE TABLE p{k} PARTITION OF p FOR VALUES IN ({k})"))
        connection = await s.connection()
        await connection.run_sync(install_triggers, "p", "p2")
    whole = maker.observe(text("SELECT count(*) FROM p"))
    part = maker.observe(text("SELECT count(*) FROM p1"))
    for rows in (whole, part):
        assert await soon(anext(rows)) == [(0,)]
    async with maker.begin() as s:
        await s.execute(text("INSERT INTO p VALUES (1)"))
    for rows in (whole, part):
        assert await soon(anext(rows)) == [(1,)]
    async with maker.begin() as s:
        await s.execute(text("INSERT INTO p2 VALUES (2)"))
    assert await soon(anext(whole)) == [(2,)]


async def test_cascades_and_truncate(maker: SessionMaker) -> None:
    """What a foreign key deletes counts, and TRUNCATE."""
    async with maker.begin() as s:
        connection = await s.connection()
        await s.execute(text("CREATE TABLE c (o int REFERENCES others ON DELETE CASCADE)"))
        await connection.run_sync(install_triggers, "c")
        await s.execute(text("INSERT INTO others VALUES (1)"))
        await s.execute(text("INSERT INTO c VALUES (1)"))
    rows = maker.observe(text("SELECT count(*) FROM c"))
    assert await soon(anext(rows)) == [(1,)]
    async with maker.begin() as s:
        await s.execute(delete(Other))
    assert await soon(anext(rows)) == [(0,)]
    parents = maker.observe(COUNT)
    await add(maker, Parent())
    assert await soon(anext(parents)) == [(1,)]
    async with maker.begin() as s:
        await s.execute(text("TRUNCATE parents CASCADE"))
    assert await soon(anext(parents)) == [(0,)]


async def test_a_table_that_does_not_notify(maker: SessionMaker) -> None:
    """The error says what to do; once it was done, the same observer goes on."""
    async with maker.begin() as s:
        await (await s.connection()).run_sync(remove_triggers, Parent)
    rows = maker.observe(COUNT)
    with pytest.raises(exc.InvalidRequestError, match=r"'parents'.*install_triggers"):
        await soon(anext(rows))
    with pytest.raises(exc.InvalidRequestError, match="install_triggers"):
        await soon(maker.changed(Parent))
    for _ in range(2):  # it may be called again
        async with maker.begin() as s:
            await (await s.connection()).run_sync(install_triggers, Parent)
    assert await soon(anext(rows)) == [(0,)]
    await add(maker, Parent())
    assert await soon(anext(rows)) == [(1,)]


async def test_triggers_are_installed_by_several_at_once(engine: QueuedAsyncEngine) -> None:
    """As by workers that start at the same time."""

    async def install() -> None:
        async with engine.begin() as connection:
            await connection.run_sync(install_triggers, Parent, Child)

    for _ in range(5):
        await asyncio.gather(*(install() for _ in range(5)))


async def test_changed(maker: SessionMaker) -> None:
    """It returns at a commit to one of its tables, and not at others."""
    change = asyncio.ensure_future(maker.changed(Parent, "children"))
    every = asyncio.ensure_future(maker.changed())

    await eventually(lambda: [each._waiter.is_over for each in observers()] == [False, False])
    await add(maker, Other())
    await soon(every)  # type: ignore[arg-type]
    assert not change.done()
    await add(maker, Child())
    await soon(change)  # type: ignore[arg-type]


async def test_one_connection_for_all(maker: SessionMaker) -> None:
    """Observers of one engine share it, and it ends with the last of them."""
    many = [maker.observe(COUNT) for _ in range(5)]
    await soon(asyncio.gather(*map(anext, many)))  # type: ignore[arg-type]
    async with maker.engine.connect() as connection:
        assert await connection.scalar(LISTENING) == 1
    assert maker.engine.stats().in_use == 0
    for rows in many[1:]:
        await rows.aclose()
    await add(maker, Parent())
    assert await soon(anext(many[0])) == [(1,)]
    many.clear()
    del rows
    gc.collect()
    await _nobody_listens(maker.engine)


async def test_the_connection_is_lost(maker: SessionMaker) -> None:
    """The observer opens another one, and reads what it may have missed."""
    rows = maker.observe(COUNT)
    await soon(anext(rows))
    await add(maker, Other())
    async with maker.engine.connect() as connection:
        await connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND query LIKE 'LISTEN%'"
            )
        )
    await eventually(lambda: rows._subscription.state.name == "LOST")  # type: ignore[union-attr]
    await add(maker, Parent())
    assert await soon(anext(rows)) == [(1,)]
    await add(maker, Parent())
    assert await soon(anext(rows)) == [(2,)]


@final
class Router:
    """Between an engine and its server. It may forget connections, and tells nobody."""

    def __init__(self, url: URL) -> None:
        self._url = url
        self._streams: list[asyncio.StreamWriter] = []
        self._forgotten: set[asyncio.Task[None]] = set()
        self._passing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Router:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        for each in self._streams:
            each.close()
        self.forget()
        await asyncio.gather(*self._forgotten, return_exceptions=True)

    @property
    def url(self) -> URL:
        host, port = self._server.sockets[0].getsockname()
        return self._url.set(host=host, port=port)

    def forget(self) -> None:
        """Let through nothing more of the connections that there are."""
        for each in self._passing:
            each.cancel()
        self._forgotten |= self._passing
        self._passing = set()

    async def _connected(self, here: Any, out: asyncio.StreamWriter) -> None:
        assert self._url.host is not None
        there, into = await asyncio.open_connection(self._url.host, self._url.port)
        self._streams += [out, into]
        for source, target in ((here, into), (there, out)):
            self._passing.add(asyncio.create_task(self._pass(source, target)))

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            target.write(data)
        target.close()


async def test_a_connection_that_is_lost_in_silence(
    engine: QueuedAsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router forgets it: neither side is told. The observer finds out, and opens another one."""
    monkeypatch.setattr(postgresql, "QUIET", 0.1)
    monkeypatch.setattr(postgresql, "ANSWER", 2.0)
    async with Router(engine.url) as router:
        maker = SessionMaker(router.url, poolclass=NullPool)
        rows = maker.observe(COUNT)
        assert await soon(anext(rows)) == [(0,)]
        router.forget()
        await add(SessionMaker(bind=engine), Parent())
        assert await soon(anext(rows)) == [(1,)]
        await rows.aclose()
        await maker.dispose()


async def test_observers_that_have_gone_are_forgotten(maker: SessionMaker) -> None:
    """What a listener keeps does not grow with those who come and go beside one who stays."""
    rows = maker.observe(COUNT)
    await soon(anext(rows))
    (listener,) = postgresql._listeners[asyncio.get_running_loop()].values()
    for _ in range(20):
        change = asyncio.ensure_future(maker.changed(Parent))
        await eventually(lambda: len(observers()) == 2)
        await add(maker, Parent())
        await soon(change)  # type: ignore[arg-type]
        del change
    await eventually(lambda: len(listener._subscriptions) == 1)


async def test_disposed_of(maker: SessionMaker) -> None:
    """The loop ends, and `changed` raises."""
    rows = maker.observe(COUNT)
    await soon(anext(rows))
    waiting = await waits(rows)
    change = asyncio.ensure_future(maker.changed(Parent))
    await eventually(lambda: len(observers()) == 2)
    await maker.engine.dispose()
    with pytest.raises(StopAsyncIteration):
        await soon(waiting)  # type: ignore[arg-type]
    with pytest.raises(exc.InvalidRequestError, match="disposed of"):
        await soon(change)  # type: ignore[arg-type]


@pytest.mark.parametrize("turns", range(6))
async def test_disposed_of_while_it_subscribes(maker: SessionMaker, turns: int) -> None:
    """The loop ends, at the latest after the read that was under way. It is not cancelled."""
    rows = maker.observe(COUNT)
    step = asyncio.ensure_future(rows.__anext__())
    await eventually(lambda: bool(observers()))
    for _ in range(turns):
        await asyncio.sleep(0)
    await maker.engine.dispose()
    with pytest.raises(StopAsyncIteration):
        await soon(step)  # type: ignore[arg-type]
        await soon(anext(rows))


async def test_closed_while_it_subscribes(maker: SessionMaker) -> None:
    """The loop ends, at the latest after the read that was under way. Nothing listens then."""
    rows = maker.observe(COUNT)
    step = asyncio.ensure_future(rows.__anext__())
    await eventually(lambda: bool(observers()))
    await rows.aclose()
    with pytest.raises(StopAsyncIteration):
        await soon(step)  # type: ignore[arg-type]
        await soon(anext(rows))
    assert not observers()


async def test_two_loops(maker: SessionMaker) -> None:
    """Each loop has a connection of its own, which is closed when its loop ends."""
    rows = maker.observe(COUNT)
    await soon(anext(rows))

    async def elsewhere() -> list[Any]:
        other = SessionMaker(maker.engine.url)
        observed = other.observe(COUNT)
        first = await soon(anext(observed))
        await add(other, Parent())
        second = await soon(anext(observed))
        await other.engine.dispose()
        return [first, second]

    assert await asyncio.to_thread(asyncio.run, elsewhere()) == [[(0,)], [(1,)]]
    assert await soon(anext(rows)) == [(1,)]


async def test_the_loop_ends_while_it_is_observed(maker: SessionMaker) -> None:
    """The task of the listener is cancelled with all others, and closes its connection.

    The engine is one of SQLAlchemy's own, which keeps no other connection open.
    """
    kept: list[Any] = []

    async def elsewhere() -> Any:
        engine = plain_engine(maker.engine.url, poolclass=NullPool)
        kept.append(maker.observe(COUNT, engine=engine))
        return await soon(anext(kept[0]))

    assert await asyncio.to_thread(asyncio.run, elsewhere()) == [(0,)]
    await _nobody_listens(maker.engine)


@pytest.mark.parametrize("when", [When.ASKED, When.ANSWERED])
async def test_cancelled_anywhere(maker: SessionMaker, when: When) -> None:
    """Nothing is held afterwards, and the same observer goes on."""
    for n in range(1, 200):
        rows = maker.observe(COUNT, distinct=False)

        async def steps(rows: Any = rows) -> None:
            await anext(rows)
            await add(maker, Parent())
            await anext(rows)

        over = await cancel_at(steps(), n, when)
        await eventually(lambda: maker.engine.stats().in_use == 0)
        if rows._subscription is not None:
            rows._subscription.tell(None)
        async with maker.reader() as s:
            now = await s.scalar(COUNT)
        assert await soon(anext(rows)) == [(now,)]
        await rows.aclose()
        if over:
            break
    else:
        pytest.fail("it never came to an end")


async def test_no_server(unused_tcp_port: int) -> None:
    """The error is one of SQLAlchemy, as that of a session, with the error of the driver in it."""
    for driver in ("asyncpg", "psycopg"):
        maker = SessionMaker(f"postgresql+{driver}://u@127.0.0.1:{unused_tcp_port}/x")
        for wait in (maker.observe(COUNT).__anext__, maker.changed):
            with pytest.raises(exc.OperationalError, match=str(unused_tcp_port)) as told:
                await soon(wait())
            assert isinstance(told.value.orig, Exception)
        await maker.engine.dispose()


async def test_it_only_reads(maker: SessionMaker) -> None:
    """A statement that writes is refused."""
    with pytest.raises((ReadOnlyError, exc.DBAPIError)):
        await soon(anext(maker.observe(insert(Parent))))


async def test_a_replica(engine: QueuedAsyncEngine) -> None:
    """Each result is read from the primary: a replica may not have yet what was notified."""
    both = create_async_engine(engine.url, read_urls=[engine.url])
    maker = SessionMaker(bind=both)
    async with maker.reader() as s:
        await s.scalar(COUNT)
    (before,) = both.stats().replicas
    assert before.reads == 1  # it would serve
    rows = maker.observe(COUNT)
    assert await soon(anext(rows)) == [(0,)]
    await add(SessionMaker(bind=engine), Parent())
    assert await soon(anext(rows)) == [(1,)]
    assert [each.reads for each in both.stats().replicas] == [1]
    await rows.aclose()
    await both.dispose()
