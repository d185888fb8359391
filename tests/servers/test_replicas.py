"""Replicas: what only reads goes to them, and sees what its task has written."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pages import ran
from replica_cluster import ADD, PORT, ROWS, Cluster, elsewhere, port, until
from sqlalchemy import event, text
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from qsession import (
    ConflictError,
    QueuedAsyncEngine,
    QueueTimeout,
    ReadOnlyError,
    create_async_engine,
    create_engine,
    create_pool,
)
from qsession.servers import replica
from qsession.servers.position import REPLAYED
from qsession.session.maker import SessionMaker
from qsession.testing import When, cancel_at

OTHERS = (
    "SELECT count(*) FROM pg_stat_activity "
    "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
)
NOBODY = "postgresql://nobody@127.0.0.1:1/none"

servers = pytest.mark.servers
drivers = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])


@servers
@drivers
async def test_readers_go_to_the_replicas(cluster: Cluster, driver: str) -> None:
    """Each gets its share, a writer goes to the primary, and a reader that writes is refused."""
    engine = cluster.engine(driver)
    maker = SessionMaker(bind=engine)
    found = Counter([await port(maker) for _ in range(20)])
    assert found == dict.fromkeys(cluster.ports, 10)
    async with maker() as s:
        assert await s.scalar(PORT) == cluster.primary.port
    async with maker.reader() as s:
        with pytest.raises(ReadOnlyError):
            await s.execute(ADD)
    stats = engine.stats()
    assert sum(each.reads for each in stats.replicas) == 21
    assert [each.size for each in stats.replicas] == [1, 1]
    assert stats.size == 1


@servers
async def test_a_busy_replica_is_spared(cluster: Cluster) -> None:
    """The next reader goes to the one that fewer readers use."""
    maker = SessionMaker(bind=cluster.engine())
    async with maker.reader() as first:
        busy = await first.scalar(PORT)
        assert {await port(maker) for _ in range(6)} == set(cluster.ports) - {busy}


@servers
@drivers
async def test_each_way_to_read(cluster: Cluster, driver: str) -> None:
    """The access of a session, of an engine, of options of an engine, and of a pool."""
    engine = cluster.engine(driver)
    by_option = engine.execution_options(qsession_access="read")
    async with SessionMaker(bind=engine)(access="read") as s:
        assert await s.scalar(PORT) in cluster.ports
        assert await s.scalar(text("SHOW transaction_isolation")) == "repeatable read"
        async with s.begin_nested():
            assert await s.scalar(PORT) in cluster.ports
        async with s.begin_nested():
            assert await s.scalar(PORT) in cluster.ports
        assert await s.scalar(text("SHOW transaction_read_only")) == "on"
    for bind in (by_option, cluster.engine(driver, access="read")):
        async with AsyncSession(bind) as plain:
            assert await plain.scalar(PORT) in cluster.ports
            await plain.commit()
            assert await plain.scalar(PORT) in cluster.ports
        async with bind.begin() as connection:
            assert await connection.scalar(PORT) in cluster.ports
    async with create_pool(
        cluster.primary.url(driver), read_urls=[each.url(driver) for each in cluster.standbys]
    ) as pool:
        assert await elsewhere(pool.fetchval(PORT.text)) == cluster.primary.port
        async with pool.transaction(readonly=True) as connection:
            assert await connection.fetchval(PORT.text) in cluster.ports
            assert await connection.fetchval("SHOW transaction_isolation") == "repeatable read"
    async with create_pool(
        cluster.primary.url(driver),
        access="read",
        read_urls=[each.url(driver) for each in cluster.standbys],
    ) as pool:
        assert await pool.fetchval(PORT.text) in cluster.ports
        async with pool.transaction() as connection:
            assert await connection.fetchval(PORT.text) in cluster.ports


@servers
@drivers
async def test_serializable_readers_go_to_the_primary(cluster: Cluster, driver: str) -> None:
    """No standby offers it."""
    engine = cluster.engine(driver)
    async with SessionMaker(bind=engine).reader(isolation="SERIALIZABLE") as s:
        assert await s.scalar(PORT) == cluster.primary.port
        assert await s.scalar(text("SHOW transaction_isolation")) == "serializable"
    strict = engine.execution_options(qsession_access="read", isolation_level="SERIALIZABLE")
    async with strict.connect() as connection:
        assert await connection.scalar(PORT) == cluster.primary.port
    async with create_pool(
        cluster.primary.url(driver), read_urls=[each.url(driver) for each in cluster.standbys]
    ) as pool:
        async with pool.transaction(readonly=True, isolation="serializable") as transaction:
            assert await transaction.fetchval(PORT.text) == cluster.primary.port


@servers
async def test_a_connection_stays_where_it_is(cluster: Cluster) -> None:
    """The server is chosen when the connection is taken; an option that comes later moves none."""
    async with cluster.engine().connect() as connection:
        await connection.execution_options(qsession_access="read")
        assert await connection.scalar(PORT) == cluster.primary.port
        with pytest.raises(ReadOnlyError):
            await connection.execute(ADD)


@servers
@drivers
async def test_reading_costs_no_message_more(
    cluster: Cluster, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the task has not written, each replica is asked once in a while."""
    monkeypatch.setattr(replica, "HEARD", 1000)
    asked = []
    row = replica.fetch_row
    monkeypatch.setattr(replica, "fetch_row", lambda *args: asked.append(args[1]) or row(*args))
    maker = SessionMaker(bind=cluster.engine(driver))
    for _ in range(50):
        await port(maker)
    assert asked == [REPLAYED] * 2
    reading = maker.engine.execution_options(qsession_access="read")
    async with reading.connect() as connection:
        for each in maker.engine.sync_engine.replicas.all:
            each.measure = None  # as if another task opened a connection
        assert await connection.scalar(PORT) in cluster.ports
    assert asked == [REPLAYED] * 2


@servers
@drivers
async def test_a_task_reads_what_it_has_written(
    cluster: Cluster, driver: str, at_once: None
) -> None:
    """Also in the tasks that it starts. Others read what the replica has."""
    maker = SessionMaker(bind=cluster.engine(driver))

    async def rows() -> tuple[int, int]:
        async with maker.reader() as s:
            return await s.scalar(ROWS) or 0, await s.scalar(PORT) or 0

    assert (await rows())[1] in cluster.ports
    cluster.pause()
    try:
        async with maker.begin() as s:
            await s.execute(ADD)
        for _ in range(3):
            assert await rows() == (1, cluster.primary.port)
        assert await asyncio.create_task(rows()) == (1, cluster.primary.port)
        for _ in range(3):
            count, where = await elsewhere(rows())
            assert count == 0
            assert where in cluster.ports
    finally:
        cluster.resume()
    cluster.catch_up()
    assert {await rows() for _ in range(4)} == {(1, each) for each in cluster.ports}


@servers
@drivers
@pytest.mark.parametrize("pooler", [False, True])
async def test_behind_a_pooler_each_transaction_is_checked(
    cluster: Cluster, driver: str, pooler: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the task has written. The pooler may connect to the replica anew, after a crash of it."""
    monkeypatch.setattr(replica, "HEARD", 1000)
    maker = SessionMaker(bind=cluster.engine(driver, pooler=pooler))
    async with maker.begin() as s:
        await s.execute(ADD)
    cluster.catch_up()
    assert await port(maker) == cluster.primary.port
    assert {await port(maker) for _ in range(4)} == set(cluster.ports)
    asked = []
    row = replica.fetch_row
    monkeypatch.setattr(replica, "fetch_row", lambda *args: asked.append(args[1]) or row(*args))
    assert {await port(maker) for _ in range(4)} == set(cluster.ports)
    assert asked == [REPLAYED] * (4 if pooler else 0)
    assert await elsewhere(port(maker)) in cluster.ports
    assert asked == [REPLAYED] * (4 if pooler else 0)


@servers
async def test_what_a_child_learns_its_parent_knows(cluster: Cluster) -> None:
    """The primary is asked once for a commit, although its readers are other tasks."""
    maker = SessionMaker(bind=cluster.engine())
    async with maker.begin() as s:
        await s.execute(ADD)
    cluster.catch_up()
    assert await asyncio.create_task(port(maker)) == cluster.primary.port
    assert await asyncio.create_task(port(maker)) in cluster.ports
    assert await port(maker) in cluster.ports


@servers
@drivers
@pytest.mark.parametrize("way", ["engine", "plain session", "autocommit", "pool", "cancelled"])
async def test_each_way_to_write_counts(
    cluster: Cluster, driver: str, way: str, at_once: None
) -> None:
    """A commit of any kind, also one of which the task has not heard."""
    engine = cluster.engine(driver)
    maker = SessionMaker(bind=engine)
    await port(maker)
    cluster.pause()
    try:
        if way == "engine":
            async with engine.begin() as connection:
                await connection.execute(ADD)
        elif way == "plain session":
            async with AsyncSession(engine) as session:
                await session.execute(ADD)
                await session.commit()
        elif way == "autocommit":
            each = engine.execution_options(isolation_level="AUTOCOMMIT")
            async with each.connect() as connection:
                await connection.execute(ADD)
        elif way == "pool":
            urls = [each.url(driver) for each in cluster.standbys]
            async with create_pool(cluster.primary.url(driver), read_urls=urls) as pool:
                await pool.execute(ADD.text)
                async with pool.transaction(readonly=True) as transaction:
                    assert await transaction.fetchval(ROWS.text) == 1
            return
        else:
            await elsewhere(_cancelled_in_commit(engine, maker))
            return
        async with maker.reader() as s:
            assert await s.scalar(ROWS) == 1
    finally:
        cluster.resume()


async def _cancelled_in_commit(engine: QueuedAsyncEngine, maker: SessionMaker) -> None:
    """The COMMIT is sent, and the task is cancelled before it is answered."""
    async with engine.connect() as connection:
        await connection.execute(ADD)

        @event.listens_for(engine.sync_engine, "commit")
        def cancel(_: object) -> None:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)

        with pytest.raises(asyncio.CancelledError):
            await connection.commit()
    async with maker.reader() as s:
        primary = await s.scalar(PORT)
    assert primary == engine.url.port


@servers
@drivers
async def test_a_connection_that_is_kept_catches_up(cluster: Cluster, driver: str) -> None:
    """If its task commits elsewhere in between, its next transaction waits for the replica."""
    engine = cluster.engine(driver, queue_timeout=0.2)
    patient = cluster.engine(driver)
    for each, ends in ((engine, False), (patient, True)):
        reading = each.execution_options(qsession_access="read")
        async with reading.connect() as connection:
            before = await connection.scalar(ROWS)
            await connection.rollback()
            cluster.pause()
            try:
                async with each.begin() as writing:
                    await writing.execute(ADD)
                if ends:
                    later = asyncio.create_task(asyncio.to_thread(cluster.resume))
                    assert await connection.scalar(ROWS) == before + 1
                    await later
                else:
                    with pytest.raises(QueueTimeout, match="has not replayed"):
                        await connection.scalar(ROWS)
            finally:
                cluster.resume()
        cluster.catch_up()


@servers
@drivers
async def test_readers_need_no_primary(cluster: Cluster, driver: str) -> None:
    """Not even the first one of a program."""
    urls = [each.url(driver) for each in cluster.standbys]
    engine = create_async_engine(f"postgresql+{driver}://nobody@127.0.0.1:1/none", read_urls=urls)
    maker = SessionMaker(bind=engine)
    assert {await port(maker) for _ in range(4)} == set(cluster.ports)
    async with AsyncSession(engine.execution_options(qsession_access="read")) as s:
        assert await s.scalar(PORT) in cluster.ports
    with pytest.raises(DBAPIError):
        async with maker() as s:
            await s.scalar(PORT)
    assert await port(maker) in cluster.ports
    await engine.dispose()


@servers
async def test_a_full_replica_makes_readers_wait(cluster: Cluster) -> None:
    """It is load, and does not go to the primary."""
    engine = cluster.engine(max_size=1, queue_timeout=0.05)
    maker = SessionMaker(bind=engine)
    async with maker.reader() as one, maker.reader() as other:
        assert {await one.scalar(PORT), await other.scalar(PORT)} == set(cluster.ports)
        with pytest.raises(QueueTimeout):
            await port(maker)
    assert await port(maker) in cluster.ports


@servers
@drivers
async def test_listeners_hear_of_replicas(cluster: Cluster, driver: str) -> None:
    """Those of the engine and of its pool, whenever they were added."""
    engine = cluster.engine(driver)
    maker = SessionMaker(bind=engine)
    heard: Counter[str] = Counter()
    for name in ("connect", "checkout", "before_cursor_execute", "do_connect"):
        event.listen(
            engine.sync_engine, name, lambda *_, name=name, **__: heard.update([name]) or None
        )
    assert {await port(maker) for _ in range(2)} == set(cluster.ports)
    assert heard == {"connect": 2, "checkout": 2, "do_connect": 2, "before_cursor_execute": 2}
    await engine.dispose()
    assert {await port(maker) for _ in range(2)} == set(cluster.ports)
    assert heard == {"connect": 4, "checkout": 4, "do_connect": 4, "before_cursor_execute": 4}


@servers
async def test_dispose_closes_and_fill_opens(cluster: Cluster) -> None:
    """The connections to replicas count as well. One that is out is closed when it comes back."""
    engine = cluster.engine(min_size=2)
    await engine.fill()
    assert [each.size for each in engine.stats().replicas] == [2, 2]
    mine = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"

    async def connections() -> list[str]:
        return [each.tell(mine) for each in cluster.standbys]

    reading = engine.execution_options(qsession_access="read")
    async with reading.connect() as connection:
        assert await connection.scalar(PORT) in cluster.ports
        await engine.dispose()
        assert [each.size for each in engine.stats().replicas] == [0, 0]
        assert await connection.scalar(PORT) in cluster.ports

    async def gone() -> bool:
        return await connections() == ["1", "1"]  # psql itself

    await until(gone)
    assert sum(each.reads for each in engine.stats().replicas) >= 1


@servers
@drivers
async def test_a_cancelled_reader_leaves_nothing(cluster: Cluster, driver: str) -> None:
    """At each of its suspensions, in a new engine and in a used one, before and after a commit."""

    async def work(engine: QueuedAsyncEngine) -> None:
        maker = SessionMaker(bind=engine)
        async with maker.begin() as s:
            await s.execute(ADD)
        for _ in range(3):
            await port(maker)

    for when in (When.ASKED, When.ANSWERED):
        n, ended = 1, False
        while not ended:
            engine = create_async_engine(
                cluster.primary.url(driver),
                read_urls=[each.url(driver) for each in cluster.standbys],
                max_size=2,
            )
            ended = await cancel_at(work(engine), n, when)

            async def free(engine: QueuedAsyncEngine = engine) -> bool:
                stats = engine.stats()
                return not stats.in_use + sum(each.in_use for each in stats.replicas)

            await until(free)
            await work(engine)
            await engine.dispose()
            n += 1
        assert n > 20


@servers
@drivers
async def test_the_first_readers_come_at_once(cluster: Cluster, driver: str) -> None:
    """From two tasks and two more loops: the first connection of all tells what server it is."""
    engine = cluster.engine(driver)

    async def read() -> set[int]:
        maker = SessionMaker(bind=engine)
        return {await port(maker) for _ in range(10)}

    threads = [asyncio.to_thread(asyncio.run, read()) for _ in range(2)]
    found = await asyncio.gather(read(), read(), *threads)
    assert set().union(*found) == set(cluster.ports)


@servers
@drivers
async def test_a_loop_that_ended(cluster: Cluster, driver: str) -> None:
    """Its connections are closed with the engine, also if it was closed without running again."""
    engine = cluster.engine(driver, pool_size=1, max_overflow=0)
    maker = SessionMaker(bind=engine)
    other = asyncio.new_event_loop()

    async def read() -> None:
        for _ in cluster.ports:
            await port(maker)

    await asyncio.to_thread(other.run_until_complete, read())
    await read()  # with connections of its own, in place of those
    other.close()
    used = engine.sync_engine.replicas.all  # which nothing collects
    await engine.dispose()

    async def closed() -> bool:
        return not any(int(each.tell(OTHERS)) for each in cluster.standbys)

    await until(closed)
    assert len(used) == 2


@servers
@drivers
async def test_the_page_does_what_it_says(cluster: Cluster, driver: str, tmp_path: Path) -> None:
    """docs/howto/replicas.md, as one program."""
    urls = [each.url(driver) for each in cluster.standbys]
    env = {"DATABASE_URL": cluster.primary.url(driver), "READ_URLS": " ".join(urls)}
    printed = await ran("replicas.md", tmp_path, **env)
    assert printed.count("s behind") == 2


@pytest.mark.parametrize(
    ("url", "kw", "message"),
    [
        ("sqlite+aiosqlite:///a.db", {"read_urls": [NOBODY]}, "are for PostgreSQL"),
        ("sqlite+aiosqlite:///a.db", {"max_lag": 1}, "are for PostgreSQL"),
        ("mysql+asyncmy://u@h/d", {"read_urls": ["mysql://u@h/d"]}, "are for PostgreSQL"),
        (NOBODY, {"read_urls": NOBODY}, "use a list of URLs"),
        (NOBODY, {"read_urls": []}, "use a list of URLs"),
        (NOBODY, {"max_lag": 1}, "use a list of URLs"),
        (NOBODY, {"read_urls": [NOBODY], "max_lag": -1}, "a number of seconds"),
        (NOBODY, {"read_urls": [NOBODY], "max_lag": "1"}, "a number of seconds"),
        (NOBODY, {"read_urls": ["postgresql+psycopg://u@h/d"]}, "is not the driver of the primary"),
        (NOBODY, {"read_urls": [NOBODY], "poolclass": object}, "not both"),
        (NOBODY, {"read_urls": [NOBODY], "isolation_level": "SERIALIZABLE"}, "no replica offers"),
        (
            NOBODY,
            {"read_urls": [f"{NOBODY}?queue_timeout=5"]},
            "queue_timeout in read_urls differs",
        ),
        (NOBODY, {"read_urls": [f"{NOBODY}?pooler=true"]}, "pooler in read_urls differs"),
    ],
)
def test_what_is_not_allowed(url: str, kw: dict[str, Any], message: str) -> None:
    """It is told when the engine is made."""
    with pytest.raises(ArgumentError, match=message):
        create_async_engine(url, **kw)


@pytest.mark.parametrize(
    "read_urls",
    [
        "postgresql://u:secret@h/d",
        ["postgresql+psycopg://u@h/d?password=secret"],
        ["postgresql://u:pass@h:secret/d"],
        ["secret@h"],
        ["postgresql://u@h/d?password=secret&max_size=3"],
    ],
)
def test_what_is_not_allowed_may_be_secret(read_urls: Any) -> None:
    """No message shows a password."""
    with pytest.raises((ArgumentError, ValueError)) as raised:
        create_async_engine("postgresql+asyncpg://nobody@127.0.0.1:1/none", read_urls=read_urls)
    assert "secret" not in str(raised.value)


@servers
@drivers
async def test_the_settings_of_the_primary_may_be_repeated(cluster: Cluster, driver: str) -> None:
    """In the URL of a replica, as they stand in that of the primary."""
    query = "?pooler=true&queue_timeout=7"
    urls = [each.url(driver) + query for each in cluster.standbys]
    engine = create_async_engine(cluster.primary.url(driver) + query, read_urls=urls)
    assert await port(SessionMaker(bind=engine)) in cluster.ports
    await engine.dispose()


@servers
@drivers
async def test_what_a_session_says_goes_before_its_engine(cluster: Cluster, driver: str) -> None:
    """Who writes, or wants SERIALIZABLE, goes to the primary, also if the engine only reads."""
    engine = cluster.engine(driver, access="read")
    maker = SessionMaker(bind=engine)
    async with maker(access="write") as s:
        await s.execute(ADD)
        assert await s.scalar(PORT) == cluster.primary.port
        await s.rollback()
    async with maker.reader(isolation="SERIALIZABLE") as s:
        assert await s.scalar(PORT) == cluster.primary.port
    options = {"isolation_level": "SERIALIZABLE"}
    async with SessionMaker(bind=cluster.engine(driver, execution_options=options)).reader() as s:
        assert await s.scalar(PORT) == cluster.primary.port
        assert await s.scalar(text("SHOW transaction_isolation")) == "serializable"
    urls = [each.url(driver) for each in cluster.standbys]
    async with create_pool(cluster.primary.url(driver), access="read", read_urls=urls) as pool:
        async with pool.transaction(isolation="serializable") as transaction:
            assert await transaction.fetchval(PORT.text) == cluster.primary.port


@servers
@drivers
async def test_a_write_on_a_connection_to_a_replica(cluster: Cluster, driver: str) -> None:
    """It is refused, and no connection is thrown away: the replica is what it should be."""
    engine = cluster.engine(driver)
    async with engine.execution_options(qsession_access="read").connect() as connection:
        await connection.execution_options(qsession_access="write")
        with pytest.raises((ReadOnlyError, DBAPIError)) as raised:
            await connection.execute(ADD)
        assert not isinstance(raised.value, ConflictError)
        assert not connection.invalidated


def test_a_synchronous_engine_has_none() -> None:
    """It has SQLAlchemy's own pool."""
    with pytest.raises(ArgumentError, match="create_async_engine only"):
        create_engine(NOBODY, read_urls=[NOBODY])
