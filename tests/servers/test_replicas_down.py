"""Replicas that are down, hang, are behind, or are not what they were."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import Counter
from typing import Any

import pytest
from own_postgresql import own_postgresql, own_standbys
from replica_cluster import ADD, PORT, ROWS, Cluster, elsewhere, port, until
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError

from qsession import ConflictError, create_async_engine, events
from qsession.servers import replica
from qsession.session.maker import SessionMaker

pytestmark = pytest.mark.servers
drivers = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
NOBODY = "nobody@127.0.0.1:1/none"


@drivers
async def test_a_replica_that_is_behind_is_skipped(
    cluster: Cluster, driver: str, at_once: None
) -> None:
    """By more than ``max_lag`` seconds; all of them: the primary. Without a limit it is used."""
    maker = SessionMaker(bind=cluster.engine(driver, max_lag=0.5))
    unlimited = SessionMaker(bind=cluster.engine(driver))
    assert await port(maker) in cluster.ports
    late, other = cluster.standbys
    late.tell("SELECT pg_wal_replay_pause()")
    try:
        cluster.primary.tell("INSERT INTO notes VALUES (2)")

        async def left_out() -> bool:
            return {await port(maker) for _ in range(4)} == {other.port}

        await until(left_out)
        other.tell("SELECT pg_wal_replay_pause()")
        cluster.primary.tell("INSERT INTO notes VALUES (3)")

        async def primary() -> bool:
            return {await port(maker) for _ in range(4)} == {cluster.primary.port}

        await until(primary)
        assert {await port(unlimited) for _ in range(4)} == set(cluster.ports)
        lags = [each.lag or 0 for each in maker.engine.stats().replicas]
        assert min(lags) > 0.4
    finally:
        cluster.resume()
    cluster.catch_up()
    assert {await port(maker) for _ in range(4)} == set(cluster.ports)


async def test_an_idle_primary_is_no_lag(cluster: Cluster) -> None:
    """The last transaction may be as old as it likes, if the replica has it."""
    cluster.primary.tell("INSERT INTO notes VALUES (1)")
    cluster.catch_up()
    age = "SELECT extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) > 0.3"

    async def old() -> bool:
        return cluster.standbys[0].tell(age) == "t"

    await until(old)
    maker = SessionMaker(bind=cluster.engine(max_lag=0.25))
    assert {await port(maker) for _ in range(4)} == set(cluster.ports)


@drivers
async def test_replicas_that_are_down_are_skipped(
    cluster: Cluster, driver: str, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    """First one, then both: no reader gets an error. When they are back, they are used again."""
    monkeypatch.setattr(replica, "HEARD", 0)  # each reader asks: none finds a dead connection
    caplog.set_level(logging.WARNING, "qsession")
    maker = SessionMaker(bind=cluster.engine(driver))
    assert {await port(maker) for _ in range(4)} == set(cluster.ports)
    first, second = cluster.standbys
    first.kill()
    try:
        assert {await port(maker) for _ in range(20)} == {second.port}
        second.kill()
        try:
            assert {await port(maker) for _ in range(20)} == {cluster.primary.port}
            assert [each.down for each in maker.engine.stats().replicas] == [True, True]
        finally:
            second.start()
    finally:
        first.start()

    async def back() -> bool:
        return {await port(maker) for _ in range(4)} == set(cluster.ports)

    await until(back)
    told = [each.message for each in caplog.records]
    assert len([each for each in told if "cannot be used" in each]) == 2
    assert len([each for each in told if "can be used again" in each]) == 2


@drivers
async def test_a_dead_connection_is_an_error_once(cluster: Cluster, driver: str) -> None:
    """Who meets it is told, and the next reader goes elsewhere."""
    maker = SessionMaker(bind=cluster.engine(driver))
    first, second = cluster.standbys
    async with maker.reader() as one, maker.reader() as other:
        met = [await one.scalar(PORT), await other.scalar(PORT)]
        first.kill()
        try:
            with pytest.raises(DBAPIError, match="connection to the server was lost"):
                await (one if met[0] == first.port else other).scalar(PORT)
        finally:
            first.start()
    assert await port(maker) in {second.port, first.port}


@drivers
async def test_a_replica_that_hangs_is_skipped(
    cluster: Cluster, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One reader finds out; nobody waits for it after that. It is used again when it goes on."""
    monkeypatch.setattr(replica, "PATIENCE", 0.3)
    monkeypatch.setattr(replica, "HEARD", 0)
    maker = SessionMaker(bind=cluster.engine(driver))
    assert {await port(maker) for _ in range(4)} == set(cluster.ports)
    first, second = cluster.standbys
    first.signal(signal.SIGSTOP)
    try:
        assert {await port(maker) for _ in range(20)} == {second.port}
    finally:
        first.signal(signal.SIGCONT)

    async def back() -> bool:
        return {await port(maker) for _ in range(4)} == set(cluster.ports)

    await until(back)


@drivers
async def test_the_others_share_what_one_that_is_down_leaves(cluster: Cluster, driver: str) -> None:
    """Each of them gets as much, wherever it stands in the list."""
    first, second = [each.url(driver) for each in cluster.standbys]
    engine = cluster.engine(driver, read_urls=[first, f"postgresql+{driver}://{NOBODY}", second])
    maker = SessionMaker(bind=engine)
    assert Counter([await port(maker) for _ in range(40)]) == dict.fromkeys(cluster.ports, 20)


@drivers
@pytest.mark.parametrize("down", [False, True])
async def test_one_connection_that_cannot_be_opened(
    cluster: Cluster, driver: str, monkeypatch: pytest.MonkeyPatch, down: bool
) -> None:
    """The replica has others, and answers there. So it is used, also if it was taken for down."""
    engine = cluster.engine(driver)
    maker = SessionMaker(bind=engine)
    assert {await port(maker) for _ in range(4)} == set(cluster.ports)
    full = True

    @event.listens_for(engine.sync_engine, "do_connect")
    def refuse(dialect: Any, record: Any, args: Any, kw: Any) -> None:
        if full and int(kw["port"]) in cluster.ports:
            raise dialect.loaded_dbapi.OperationalError("too many clients already")

    async with maker.reader() as one, maker.reader() as other:
        assert {await one.scalar(PORT), await other.scalar(PORT)} == set(cluster.ports)
        with monkeypatch.context() as patched:
            if down:
                patched.setattr(replica, "HEARD", 0)  # it was not asked for a while
            assert await port(maker) == cluster.primary.port
    assert {each.down for each in engine.stats().replicas} == {down}

    async def back() -> bool:
        return {await port(maker) for _ in range(4)} == set(cluster.ports)

    await until(back)
    assert {each.down for each in engine.stats().replicas} == {False}
    full = False


@drivers
async def test_one_task_finds_out_that_a_replica_hangs(
    cluster: Cluster, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others that come meanwhile read elsewhere at once, although it has idle connections."""
    monkeypatch.setattr(replica, "PATIENCE", 0.3)
    monkeypatch.setattr(replica, "HEARD", 0)
    maker = SessionMaker(bind=cluster.engine(driver))
    go = asyncio.Event()
    reading = 0

    async def read(_: int) -> int:
        nonlocal reading
        async with maker.reader() as s:
            found = await s.scalar(PORT) or 0
            reading += 1
            if reading == 20:
                go.set()
            await go.wait()
            return found

    await asyncio.gather(*map(read, range(20)))
    asked: list[str] = []
    ask = replica.Replica._ask

    def noted(self: replica.Replica, connection: Any) -> Any:
        asked.append(self.pool.database)
        return ask(self, connection)

    monkeypatch.setattr(replica.Replica, "_ask", noted)
    first, second = cluster.standbys
    first.signal(signal.SIGSTOP)
    try:
        found = await asyncio.gather(*map(read, range(20)))
    finally:
        first.signal(signal.SIGCONT)
    assert set(found) <= {second.port, cluster.primary.port}
    assert len([each for each in asked if str(first.port) in each]) == 1


@drivers
async def test_a_ping_of_a_replica_that_hangs_has_a_limit(
    cluster: Cluster, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``pool_pre_ping`` each reader asks, and no reader waits for long."""
    monkeypatch.setattr(replica, "PATIENCE", 0.3)
    maker = SessionMaker(bind=cluster.engine(driver, pool_pre_ping=True))
    assert {await port(maker) for _ in range(4)} == set(cluster.ports)
    first, second = cluster.standbys
    first.signal(signal.SIGSTOP)
    try:
        found = await asyncio.wait_for(asyncio.gather(*(port(maker) for _ in range(8))), 30)
        assert set(found) <= {second.port, cluster.primary.port}
    finally:
        first.signal(signal.SIGCONT)


@drivers
async def test_a_kept_connection_to_a_replica_that_hangs(
    cluster: Cluster, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has to catch up, and says nothing: an error, and the connection is replaced."""
    monkeypatch.setattr(replica, "PATIENCE", 0.3)
    engine = cluster.engine(driver)
    async with engine.execution_options(qsession_access="read").connect() as connection:
        mine = await connection.scalar(PORT)
        await connection.rollback()
        (frozen,) = [each for each in cluster.standbys if each.port == mine]
        frozen.signal(signal.SIGSTOP)
        try:
            async with engine.begin() as writing:
                await writing.execute(ADD)
            with pytest.raises(DBAPIError, match="has not answered within") as raised:
                await connection.scalar(ROWS)
            assert raised.value.connection_invalidated
            assert await connection.scalar(ROWS) == 1
        finally:
            frozen.signal(signal.SIGCONT)


@drivers
async def test_a_question_that_fails_leaves_no_mode_behind(
    cluster: Cluster, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked outside a transaction. The connection in that mode is not used again."""
    engine = cluster.engine(driver, max_size=1, read_urls=[cluster.standbys[0].url(driver)])
    reading = engine.execution_options(qsession_access="read")
    async with reading.connect() as connection:
        await connection.execute(text("SET statement_timeout = 1"))
        await connection.commit()
        cluster.pause()
        try:
            async with engine.begin() as writing:
                await writing.execute(ADD)
            with monkeypatch.context() as patched:
                patched.setattr(replica, "REPLAYED", "SELECT pg_sleep(60)")
                with pytest.raises(DBAPIError, match="statement timeout"):
                    await connection.scalar(ROWS)
            assert connection.invalidated
        finally:
            cluster.resume()
    cluster.catch_up()

    async def snapshot() -> bool:
        async with reading.connect() as connection:
            raw: Any = await connection.get_raw_connection()
            assert raw.dbapi_connection.autocommit is False
            return await connection.scalar(PORT) in cluster.ports

    await until(snapshot)


@drivers
async def test_readers_do_not_queue_at_a_replica_that_hangs(
    cluster: Cluster, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its connections are in use and none comes back. They wait for the other one."""
    engine = cluster.engine(driver, max_size=1)
    maker = SessionMaker(bind=engine)
    assert {await port(maker) for _ in range(4)} == set(cluster.ports)
    async with maker.reader() as one, maker.reader() as other:
        ports = {await one.scalar(PORT): one, await other.scalar(PORT): other}
        first, second = cluster.standbys
        hanging, moving = engine.sync_engine.replicas.all
        monkeypatch.setattr(replica.Replica, "may_hang", property(lambda it: it is hanging))
        first.signal(signal.SIGSTOP)
        try:
            readers = [asyncio.create_task(port(maker)) for _ in range(6)]
            while moving.pool.waiting < 6:
                await asyncio.sleep(0)
            await ports[second.port].close()
            assert await asyncio.gather(*readers) == [second.port] * 6
        finally:
            first.signal(signal.SIGCONT)


async def test_which_replica_may_hang(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose connections are all in use, and that nobody could ask when it was due."""
    engine = cluster.engine(max_size=1)
    maker = SessionMaker(bind=engine)
    first, second = engine.sync_engine.replicas.all
    async with maker.reader() as s:
        await s.scalar(PORT)
        used, idle = (first, second) if first.pool.checkedout() else (second, first)
        assert not used.may_hang
        monkeypatch.setattr(replica, "HEARD", 0)
        monkeypatch.setattr(replica, "PATIENCE", 0)
        assert used.may_hang
        assert not idle.may_hang
    assert not used.may_hang


@drivers
async def test_max_lag_holds_after_waiting_for_a_connection(
    cluster: Cluster, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was known of the replica when the reader came may be too old by then."""
    only = cluster.standbys[0]
    engine = cluster.engine(driver, max_size=1, max_lag=0.5, read_urls=[only.url(driver)])
    maker = SessionMaker(bind=engine)
    monkeypatch.setattr(replica, "HEARD", 1000)
    assert await port(maker) == only.port
    only.tell("SELECT pg_wal_replay_pause()")
    try:
        async with maker.reader() as s:
            assert await s.scalar(PORT) == only.port
            waiting = asyncio.create_task(port(maker))
            while not engine.stats().replicas[0].waiting:
                await asyncio.sleep(0)
            cluster.primary.tell("INSERT INTO notes VALUES (1)")
            received = "SELECT pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn()"
            age = "clock_timestamp() - pg_last_xact_replay_timestamp() > interval '1 s'"

            async def late() -> bool:
                return await asyncio.to_thread(only.tell, f"{received} AND {age}") == "t"

            await until(late)
        assert await waiting == cluster.primary.port
    finally:
        cluster.resume()


@drivers
async def test_a_replica_that_was_restarted_may_have_less_than_before(
    cluster: Cluster, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a crash it serves readers before it has replayed all again: it is asked anew."""
    monkeypatch.setattr(replica, "HEARD", 1000)
    only = cluster.standbys[0]
    engine = cluster.engine(driver, read_urls=[only.url(driver)])
    maker = SessionMaker(bind=engine)

    async def rows() -> tuple[int, int]:
        async with maker.reader() as s:
            return await s.scalar(ROWS) or 0, await s.scalar(PORT) or 0

    only.tell("ALTER SYSTEM SET bgwriter_lru_maxpages = 0", "SELECT pg_reload_conf()")
    cluster.primary.tell("CHECKPOINT")
    cluster.catch_up()
    only.tell("CHECKPOINT")
    async with maker.begin() as s:
        await s.execute(ADD)
    cluster.catch_up()
    assert await rows() == (1, cluster.primary.port)
    assert await rows() == (1, only.port)
    only.tell("ALTER SYSTEM SET recovery_min_apply_delay = '1h'", "SELECT pg_reload_conf()")
    only.kill()
    only.start()
    try:
        assert only.tell("SELECT count(*) FROM notes") == "0"
        with pytest.raises(DBAPIError, match="connection to the server was lost"):
            await rows()
        assert await rows() == (1, cluster.primary.port)
    finally:
        for each in "recovery_min_apply_delay", "bgwriter_lru_maxpages":
            only.tell(f"ALTER SYSTEM RESET {each}")
        only.tell("SELECT pg_reload_conf()")
        cluster.catch_up()


@drivers
async def test_a_standby_that_cannot_follow_the_new_primary(
    driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has more of the old log than the one that was promoted. So it says that it has replayed
    more than was written since, and its receiver runs: but it has nothing of it, nor ever will.
    """
    monkeypatch.setattr(replica, "AGAIN", 0)
    with own_postgresql() as old, own_standbys(old, 2) as (new, ahead):
        old.tell("CREATE TABLE notes (id int)")
        Cluster(old, [new, ahead]).catch_up()
        new.tell("ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()")
        while new.tell("SELECT count(*) FROM pg_stat_wal_receiver") != "0":
            pass
        old.tell("INSERT INTO notes SELECT generate_series(1, 5000)")
        Cluster(old, [ahead]).catch_up()
        old.kill()
        new.promote()
        where = f"host=127.0.0.1 port={new.port} user={new.name}"
        ahead.tell(f"ALTER SYSTEM SET primary_conninfo = '{where}'", "SELECT pg_reload_conf()")
        new.tell("CREATE ROLE plain LOGIN", "GRANT SELECT, INSERT ON notes TO PUBLIC")
        url = ahead.url(driver)
        engine = create_async_engine(new.url(driver), read_urls=[url])
        maker = SessionMaker(bind=engine)
        assert await port(maker) == ahead.port
        async with maker.begin() as s:
            await s.execute(ADD)
        far = "SELECT pg_wal_lsn_diff({}(), '0/0')"
        assert int(new.tell(far.format("pg_current_wal_insert_lsn"))) < int(
            ahead.tell(far.format("pg_last_wal_replay_lsn"))
        )
        for _ in range(3):
            async with maker.reader() as s:
                assert await s.scalar(ROWS) == 1
                assert await s.scalar(PORT) == new.port
        await engine.dispose()

        bounded = create_async_engine(new.url(driver), read_urls=[url], max_lag=1)
        limited = SessionMaker(bind=bounded)

        async def left_out() -> bool:
            return await elsewhere(port(limited)) == new.port

        await until(left_out)
        assert {await elsewhere(port(limited)) for _ in range(5)} == {new.port}
        await bounded.dispose()


@drivers
async def test_a_primary_that_has_become_a_standby(driver: str) -> None:
    """It cannot say how far its log goes. That is a conflict, as a write there would be."""
    with own_postgresql() as primary, own_standbys(primary, 1) as (standby,):
        engine = create_async_engine(standby.url(driver), read_urls=[standby.url(driver)])
        maker = SessionMaker(bind=engine)
        engine.sync_engine.replicas.position.note_commit()
        with pytest.raises(ConflictError, match="it is a standby") as raised:
            await port(maker)
        assert raised.value.connection_invalidated
        primary.kill()
        standby.promote()
        assert await port(maker) == standby.port
        assert engine.stats().in_use == 0
        await engine.dispose()


@drivers
async def test_a_kept_connection_outlives_dispose(cluster: Cluster, driver: str) -> None:
    """It catches up as before."""
    engine = cluster.engine(driver)
    async with engine.execution_options(qsession_access="read").connect() as connection:
        assert await connection.scalar(ROWS) == 0
        await connection.rollback()
        await engine.dispose()
        cluster.pause()
        try:
            async with engine.begin() as writing:
                await writing.execute(ADD)
            resuming = asyncio.create_task(asyncio.to_thread(cluster.resume))
            assert await connection.scalar(ROWS) == 1
            await resuming
        finally:
            cluster.resume()


async def test_a_conflict_names_the_replica(cluster: Cluster) -> None:
    """In events: the database is that of the server that raised it."""
    engine = cluster.engine()
    seen: list[events.Conflict] = []

    def note(told: events.Event) -> None:
        if isinstance(told, events.Conflict):
            seen.append(told)

    unsubscribe = events.subscribe(note)
    try:
        async with SessionMaker(bind=engine).reader() as s:
            where = await s.scalar(PORT)
            with pytest.raises(ConflictError):
                await s.execute(text("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$"))
    finally:
        unsubscribe()
    assert [each.database for each in seen] == [f"PostgreSQL at 127.0.0.1:{where}/postgres"]
