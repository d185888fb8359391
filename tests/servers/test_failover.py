"""A primary fails under load and a standby takes over: nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from own_postgresql import OwnPostgresql, own_postgresql, own_standbys
from project import Project
from replica_cluster import Cluster
from server_load import Attempts, Load, metadata, notes
from sqlalchemy import event, insert, select, text
from sqlalchemy.exc import DBAPIError

from qsession import (
    ConflictError,
    QueueTimeout,
    ReadOnlyError,
    copy,
    create_async_engine,
    create_pool,
    upgrade,
)
from qsession.servers import hosts
from qsession.session.maker import SessionMaker

pytestmark = pytest.mark.servers
drivers = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
TASKS, CONNECTIONS = 20, 8


@contextmanager
def cluster(standbys: int) -> Iterator[list[OwnPostgresql]]:
    """A primary, first, and standbys of which one has to have a commit before it is told."""
    with ExitStack() as stack:
        primary = stack.enter_context(own_postgresql())
        others = stack.enter_context(own_standbys(primary, standbys))
        primary.tell("ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)'")
        primary.tell("SELECT pg_reload_conf()")
        yield [primary, *others]


def url_of_all(servers: list[OwnPostgresql], driver: str) -> str:
    """The URL that leads to whichever is the primary."""
    hosts = "&".join(f"host=127.0.0.1:{each.port}" for each in servers)
    user = servers[0].name
    return f"postgresql+{driver}://{user}@/postgres?{hosts}&target_session_attrs=primary"


def take_over(standbys: list[OwnPostgresql]) -> OwnPostgresql:
    """Promote the standby that has the most, and let the others follow it."""
    received = "SELECT pg_wal_lsn_diff(pg_last_wal_receive_lsn(), '0/0')::bigint"
    first, *others = sorted(standbys, key=lambda each: -int(each.tell(received)))
    for each in others:
        each.tell(
            f"ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port={first.port} "
            f"user={first.name}'",
            "SELECT pg_reload_conf()",
        )
    first.promote()
    first.tell("ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)'")
    first.tell("SELECT pg_reload_conf()")
    return first


@drivers
async def test_a_failover_under_load(driver: str) -> None:
    """The primary is killed, a standby is promoted, and the application goes on by itself.

    All errors are the database's. Each that leaves open whether the commit took effect says so.
    What was acknowledged is on the new primary. One task at a time looks for it, and there are
    never more connections than the pool may have.
    """
    with cluster(2) as servers:
        primary, *standbys = servers
        engine = create_async_engine(
            url_of_all(servers, driver), max_size=CONNECTIONS, queue_timeout=30
        )
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        load = Load(SessionMaker(bind=engine))
        attempts = Attempts(engine.sync_engine.pool)
        tasks = [asyncio.create_task(load.work()) for _ in range(TASKS)]
        await load.until(lambda: len(load.acknowledged) >= 100)
        await asyncio.to_thread(primary.kill)
        await load.until(lambda: attempts.made >= 2)
        before = len(load.acknowledged)
        new = await asyncio.to_thread(take_over, standbys)
        await load.until(lambda: len(load.acknowledged) >= before + 100)
        clients = "SELECT count(*) FROM pg_stat_activity WHERE application_name <> 'psql' AND "
        now = int(await asyncio.to_thread(new.tell, clients + "backend_type = 'client backend'"))
        load.over = True
        await asyncio.wait_for(asyncio.gather(*tasks), 60)

        assert load.errors
        for error in load.errors:
            assert isinstance(error, DBAPIError | QueueTimeout), repr(error)
        lost = [each for each in load.errors if getattr(each, "connection_invalidated", False)]
        for each in lost:
            assert "connection to the server was lost" in str(each)
        unknown = [each for each in lost if "during COMMIT" in str(each)]
        async with engine.connect() as connection:
            found = set(await connection.scalars(select(notes.c.id)))
        assert load.acknowledged <= found
        assert len(found - load.acknowledged) <= len(unknown)
        assert attempts.most == 1
        assert 1 <= now <= CONNECTIONS
        assert engine.stats().in_use == 0
        await engine.dispose()
        gc.collect()


@drivers
async def test_an_address_that_leads_to_a_standby(driver: str) -> None:
    """What writes there is refused and can be repeated, until the standby is the primary."""
    with cluster(1) as (primary, standby):
        primary.tell("CREATE TABLE notes (id int PRIMARY KEY)")
        engine = create_async_engine(standby.url(driver), max_size=2)
        maker = SessionMaker(bind=engine)
        snapshot = SessionMaker(bind=engine, isolation="REPEATABLE READ")
        who = text("SELECT pg_backend_pid()")
        for each in (maker, snapshot):
            async with snapshot.reader() as s:
                before = await s.scalar(who)
            with pytest.raises(ConflictError, match="it is a standby") as raised:
                async with each.begin() as s:
                    await s.execute(insert(notes).values(id=1))
            assert raised.value.connection_invalidated
            assert getattr(raised.value.orig, "sqlstate", None) in ("0A000", "25006")
            async with snapshot.reader() as s:
                assert await s.scalar(who) != before
                with pytest.raises(ReadOnlyError):
                    await s.execute(insert(notes).values(id=1))
        async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            with pytest.raises(ConflictError, match="it is a standby"):
                await connection.execute(insert(notes).values(id=1))

        tried = asyncio.Event()

        async def write(session: Any) -> None:
            try:
                await session.execute(insert(notes).values(id=1))
            except ConflictError:
                tried.set()
                raise

        writing = asyncio.create_task(maker.run(write, attempts=100))
        await asyncio.wait_for(tried.wait(), 30)
        await asyncio.to_thread(primary.kill)
        await asyncio.to_thread(standby.promote)
        standby.tell("ALTER SYSTEM SET synchronous_standby_names = ''", "SELECT pg_reload_conf()")
        await asyncio.wait_for(writing, 60)
        assert standby.tell("SELECT id FROM notes") == "1"
        assert engine.stats().in_use == 0
        await engine.dispose()


@drivers
async def test_a_read_only_database_is_no_standby(driver: str) -> None:
    """If the application or its administrator says read-only, no connection is thrown away."""
    with own_postgresql() as server:
        server.tell("CREATE TABLE notes (id int PRIMARY KEY)")
        server.tell("ALTER DATABASE postgres SET default_transaction_read_only = on")
        engine = create_async_engine(server.url(driver))
        for _ in range(2):
            with pytest.raises(ReadOnlyError, match="itself is read-only"):
                async with engine.begin() as connection:
                    await connection.execute(insert(notes).values(id=1))
        assert engine.stats().size == 1
        await engine.dispose()


@drivers
async def test_a_statement_in_autocommit_that_is_lost_may_have_taken_effect(driver: str) -> None:
    """The server commits it by itself."""
    with own_postgresql() as server:
        async with create_pool(server.url(driver)) as pool:
            held = "SELECT pg_sleep(60)"
            running = asyncio.create_task(pool.execute(held))
            seen = f"SELECT count(*) FROM pg_stat_activity WHERE query LIKE '{held}%'"
            while await asyncio.to_thread(server.tell, seen) != "1":
                pass
            await asyncio.to_thread(server.kill)
            with pytest.raises(DBAPIError, match="not known whether the statement took effect"):
                await running


@drivers
async def test_all_servers_in_one_url(
    driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions, the pool, a copy and a migration find the primary among them, wherever it is."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    (tmp_path / "project").mkdir()
    source = f"sqlite+aiosqlite:///{tmp_path / 'app.db'}"
    small = create_async_engine(source)
    async with small.begin() as connection:
        await connection.run_sync(metadata.create_all)
        await connection.execute(insert(notes), [{"id": 1}, {"id": 2}])
    await small.dispose()
    project = Project(tmp_path / "project")
    project.add('op.execute("CREATE TABLE made (id INTEGER)")')
    with cluster(1) as (primary, standby):
        url = url_of_all([standby, primary], driver)
        commas = (
            f"postgresql+{driver}://{primary.name}@/postgres?host=127.0.0.1,127.0.0.1"
            f"&port={standby.port},{primary.port}&target_session_attrs=primary"
        )
        await copy(source, url, verify=True)
        assert primary.tell("SELECT count(*) FROM notes") == "2"
        for each in (url, commas):
            async with create_pool(each) as pool:
                assert await pool.fetchval("SELECT pg_is_in_recovery()") is False
        await upgrade(url=url, config=project.config)
        assert primary.tell("SELECT version_num FROM alembic_version") == "0001"


@drivers
async def test_a_commit_that_waits_for_a_standby_may_have_taken_effect(driver: str) -> None:
    """It is in the log of the primary and nowhere else yet, when the primary dies."""
    with cluster(1) as (primary, standby):
        primary.tell("CREATE TABLE notes (id int PRIMARY KEY)")
        engine = create_async_engine(primary.url(driver))
        standby.signal(signal.SIGSTOP)

        async def write() -> None:
            async with SessionMaker(bind=engine).begin() as s:
                await s.execute(insert(notes).values(id=1))

        writing = asyncio.create_task(write())
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        while await asyncio.to_thread(primary.tell, waits) != "1":
            pass
        await asyncio.to_thread(primary.kill)
        with pytest.raises(DBAPIError, match="not known whether the transaction was committed"):
            await writing
        standby.signal(signal.SIGCONT)
        await engine.dispose()


@drivers
async def test_a_primary_that_hangs_is_passed_by(
    driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It accepts connections and says nothing. The application finds the new primary by itself,
    and the next connections go there at once.
    """
    monkeypatch.setattr(hosts, "HOST_PATIENCE", 2)
    with cluster(2) as servers:
        primary, *standbys = servers
        primary.tell("CREATE TABLE notes (id int PRIMARY KEY)")
        Cluster(primary, standbys).catch_up()
        primary.signal(signal.SIGSTOP)
        try:
            new = await asyncio.to_thread(take_over, standbys)
            engine = create_async_engine(url_of_all(servers, driver))
            tried: list[Any] = []
            connect: Any = engine.sync_engine.dialect.connect.__self__  # type: ignore[attr-defined]
            driver_connect = connect._connect
            connect._connect = lambda **kw: tried.append(int(kw["port"])) or driver_connect(**kw)
            for number in range(2):
                async with engine.begin() as one, engine.begin() as other:
                    await one.execute(insert(notes).values(id=number))
                    assert await other.scalar(text("SHOW port")) == str(new.port)
            assert tried[0] == primary.port
            assert tried[-1] == new.port
            assert tried.count(primary.port) == 1
            await engine.dispose()
        finally:
            primary.signal(signal.SIGCONT)


async def test_a_commit_that_takes_too_long_may_have_taken_effect() -> None:
    """asyncpg's ``command_timeout`` raises its error, which says so."""
    with own_postgresql() as server:
        server.tell("CREATE TABLE notes (id int PRIMARY KEY)")
        engine = create_async_engine(server.url("asyncpg"), connect_args={"command_timeout": 0.5})
        for level, match in (
            (None, "during COMMIT, and it is not known"),
            ("AUTOCOMMIT", "effect"),
        ):
            async with engine.connect() as connection:
                if level is not None:
                    await connection.execution_options(isolation_level=level)
                await connection.execute(text("SELECT 1"))
                server.signal(signal.SIGSTOP)
                try:
                    with pytest.raises(asyncio.TimeoutError, match=match):
                        await connection.execute(text("SELECT 1")) if level else None
                        await connection.commit()
                finally:
                    server.signal(signal.SIGCONT)
        async with engine.connect() as connection:
            with pytest.raises(asyncio.TimeoutError) as raised:
                await connection.execute(text("SELECT pg_sleep(60)"))
            assert not str(raised.value)
        await engine.dispose()


@pytest.mark.parametrize(
    ("driver", "by"), [("asyncpg", "server"), ("psycopg", "server"), ("asyncpg", "socket")]
)
async def test_a_connection_that_is_lost_at_first(driver: str, by: str) -> None:
    """When SQLAlchemy asks it what server it is, or what types it has: the database's error, and
    the next one works.
    """
    with own_postgresql() as server:
        engine = create_async_engine(server.url(driver))
        who = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'me'"

        @event.listens_for(engine.sync_engine, "connect", insert=True, once=True)
        def lose(connection: Any, _: object) -> None:
            if by == "socket":
                connection.driver_connection.terminate()
                return
            cursor = connection.cursor()
            cursor.execute("SET application_name = 'me'")
            connection.commit()
            server.tell(who)

        with pytest.raises(DBAPIError):
            async with engine.connect():
                pass
        async with engine.connect() as connection:
            assert await connection.scalar(text("SELECT 1")) == 1
        await engine.dispose()
