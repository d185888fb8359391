"""A Galera cluster, where each node takes writes: what collides, what is lost, what is stale."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncmy
import pytest
from folders import ROOT
from own_galera import Node, OwnGalera, own_galera
from pages import ran
from sqlalchemy import (
    Column,
    Connection,
    Integer,
    String,
    Table,
    delete,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError, NotSupportedError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from qsession import (
    ConflictError,
    QSession,
    QueuedAsyncEngine,
    QueueTimeout,
    create_async_engine,
)
from qsession.migrate.servers import one_at_a_time
from qsession.session.maker import SessionMaker

pytestmark = pytest.mark.servers

CATCHING_UP = "SET SESSION wsrep_sync_wait=1"
READY = "SHOW STATUS LIKE 'wsrep_ready'"
SIZE = "SHOW STATUS LIKE 'wsrep_cluster_size'"
ABORTED = "SHOW STATUS LIKE 'wsrep_local_bf_aborts'"


class Base(DeclarativeBase):
    """The tables of these tests."""


class Counter(Base):
    """Something that is read and then written."""

    __tablename__ = "counters"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[int]


class Note(Base):
    """Something that is added, by a number that the server gives it."""

    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str] = mapped_column(String(40))


journal = Table(
    "journal",
    Base.metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("counter", Integer),
)
"""What each transaction of the storm has done to which counter."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[OwnGalera]:
    """Three nodes."""
    with own_galera() as running:
        yield running


Make = Callable[..., QueuedAsyncEngine]


@pytest.fixture
async def make(cluster: OwnGalera) -> AsyncIterator[Make]:
    """Makes engines on nodes, by number. There are four counters, all at zero, on each node."""
    made: list[QueuedAsyncEngine] = []

    def engine(number: int, **kw: Any) -> QueuedAsyncEngine:
        made.append(create_async_engine(cluster.nodes[number].url(), **kw))
        return made[-1]

    first = engine(0)
    async with first.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        for table in Base.metadata.tables.values():
            await connection.execute(delete(table))
        await connection.execute(insert(Counter), [{"id": n, "value": 0} for n in range(1, 5)])
    for node in cluster.nodes:
        await in_step(node)
    yield engine
    for each in made:
        assert each.stats().in_use == 0, each.pool.status()
        await each.dispose()


async def in_step(node: Node) -> None:
    """Wait until a node has everything that was committed before."""
    await asyncio.to_thread(node.tell, f"{CATCHING_UP}; SELECT COUNT(*) FROM test.counters")


async def until(node: Node, statement: str, fits: Callable[[str], bool]) -> None:
    """Wait until a node's answer fits."""

    async def ask() -> None:
        while not fits(await asyncio.to_thread(node.tell, statement)):
            pass

    await asyncio.wait_for(ask(), 60)


async def fetch(node: Node, query: str) -> list[Any]:
    """What the driver alone gets from a node that has caught up."""
    connection = await asyncmy.connect(
        host="127.0.0.1", port=node.port, user="root", db="test", init_command=CATCHING_UP
    )
    try:
        async with connection.cursor() as cursor:
            await cursor.execute(query)
            return list(await cursor.fetchall())
    finally:
        connection.close()


async def add_one(s: QSession, number: int = 1) -> None:
    """Read, add one, write."""
    (await s.get_one(Counter, number)).value += 1


class Elsewhere:
    """Commits changes on the first node, and waits until they have hit the second one."""

    def __init__(self, cluster: OwnGalera, make: Make) -> None:
        self.maker = SessionMaker(bind=make(0))
        self.node = cluster.nodes[1]

    async def change(self, number: int = 1) -> None:
        """Change a counter that a transaction on the second node has in hand."""
        before = await asyncio.to_thread(self.node.tell, ABORTED)
        async with self.maker.begin() as s:
            await s.execute(update(Counter).where(Counter.id == number).values(value=100))
        await until(self.node, ABORTED, lambda now: now != before)


@pytest.fixture
def elsewhere(cluster: OwnGalera, make: Make) -> Elsewhere:
    return Elsewhere(cluster, make)


async def reads_on(s: QSession) -> None:
    await s.scalar(select(Counter.value).where(Counter.id == 2))


async def writes_on(s: QSession) -> None:
    await add_one(s, 2)
    await s.flush()


async def opens_a_savepoint(s: QSession) -> None:
    async with s.begin_nested():
        await writes_on(s)


async def commits(s: QSession) -> None:
    await s.commit()


@pytest.mark.parametrize("goes_on", [reads_on, writes_on, opens_a_savepoint, commits])
@pytest.mark.parametrize("isolation", [None, "READ COMMITTED"])
async def test_a_commit_elsewhere_ends_a_transaction_here(
    make: Make, elsewhere: Elsewhere, cluster: OwnGalera, goes_on: Any, isolation: str | None
) -> None:
    """The node drops it. Whatever comes next is a conflict, and nothing of it is ever written."""
    engine = make(1)
    maker = SessionMaker(bind=engine, isolation=isolation)
    async with maker() as s:
        await add_one(s, 1)
        await s.flush()
        await elsewhere.change(1)
        with pytest.raises(ConflictError, match="1213"):
            await goes_on(s)
        if goes_on is not commits:  # which has ended it
            with pytest.raises(ConflictError, match="already ended in a conflict"):
                await s.commit()
        await s.rollback()
    assert engine.stats().conflicts == 1
    assert await fetch(cluster.nodes[1], "SELECT value FROM counters ORDER BY id") == [
        (100,),
        (0,),
        (0,),
        (0,),
    ]


async def test_what_was_only_read_counts_as_well(
    make: Make, elsewhere: Elsewhere, cluster: OwnGalera
) -> None:
    """A change elsewhere to a row that was read here is a conflict: no update is lost."""
    maker = SessionMaker(bind=make(1))
    async with maker() as s:
        read = await s.get_one(Counter, 1)
        await elsewhere.change(1)
        read.value += 1
        with pytest.raises(ConflictError):
            await s.commit()
    assert await fetch(cluster.nodes[0], "SELECT value FROM counters WHERE id = 1") == [(100,)]


async def test_a_savepoint_does_not_save_it(
    make: Make, elsewhere: Elsewhere, cluster: OwnGalera
) -> None:
    """The whole transaction is gone, also what came before the savepoint."""
    maker = SessionMaker(bind=make(1))
    async with maker() as s:
        await add_one(s, 1)
        with pytest.raises(ConflictError):
            async with s.begin_nested():
                await writes_on(s)
                await elsewhere.change(2)
                await reads_on(s)
        with pytest.raises(ConflictError, match=r"already ended|no longer exists"):
            await s.execute(update(Counter).where(Counter.id == 3).values(value=7))
        await s.rollback()
    assert await fetch(cluster.nodes[0], "SELECT id, value FROM counters WHERE value > 0") == [
        (2, 100)
    ]


async def test_run_repeats_it(make: Make, elsewhere: Elsewhere, cluster: OwnGalera) -> None:
    """The second attempt reads what the other node has committed."""
    attempts = []

    async def work(s: QSession) -> None:
        attempts.append(await s.scalar(select(Counter.value).where(Counter.id == 1)))
        if len(attempts) == 1:
            await elsewhere.change(1)
        await add_one(s, 1)

    await SessionMaker(bind=make(1)).run(work)
    assert attempts == [0, 100]
    assert await fetch(cluster.nodes[0], "SELECT value FROM counters WHERE id = 1") == [(101,)]


async def test_the_same_key_on_two_nodes(make: Make, cluster: OwnGalera) -> None:
    """The second COMMIT is a conflict; the repetition meets the key, as on one server."""
    makers = [SessionMaker(bind=make(number)) for number in (0, 1)]
    async with makers[0]() as one, makers[1]() as other:
        for s in (one, other):
            await s.execute(insert(journal).values(id=1, counter=1))
        await one.commit()
        with pytest.raises(ConflictError):
            await other.commit()
    assert await fetch(cluster.nodes[1], "SELECT COUNT(*) FROM journal") == [(1,)]


async def test_a_change_of_the_schema_ends_transactions(
    make: Make, elsewhere: Elsewhere, cluster: OwnGalera
) -> None:
    """Those that have touched the table, on any node: they are repeated on the new one."""
    attempts = []

    async def work(s: QSession) -> None:
        attempts.append(1)
        await s.execute(insert(journal).values(id=1, counter=1))
        if len(attempts) == 1:
            before = await asyncio.to_thread(elsewhere.node.tell, ABORTED)
            async with make(0).begin() as connection:
                await connection.execute(text("ALTER TABLE journal ADD COLUMN more INTEGER"))
            await until(elsewhere.node, ABORTED, lambda now: now != before)

    try:
        await SessionMaker(bind=make(1)).run(work)
        assert len(attempts) == 2
        assert await fetch(cluster.nodes[0], "SELECT id, more FROM journal") == [(1, None)]
    finally:
        await asyncio.to_thread(elsewhere.node.tell, "ALTER TABLE test.journal DROP COLUMN more")


async def test_a_transaction_that_is_too_large(make: Make, cluster: OwnGalera) -> None:
    """COMMIT fails with the server's own error; it is no conflict, and nothing is written."""
    node = cluster.nodes[1]
    limit = await asyncio.to_thread(node.tell, "SELECT @@GLOBAL.wsrep_max_ws_size")
    await asyncio.to_thread(node.tell, "SET GLOBAL wsrep_max_ws_size=2000")
    try:
        async with SessionMaker(bind=make(1))() as s:
            s.add_all(Note(body="x" * 40) for _ in range(200))
            with pytest.raises(OperationalError, match="1105") as caught:
                await s.commit()
            assert not isinstance(caught.value, ConflictError)
    finally:
        await asyncio.to_thread(node.tell, f"SET GLOBAL wsrep_max_ws_size={limit}")
    assert await fetch(node, "SELECT COUNT(*) FROM notes") == [(0,)]


async def test_two_phases_are_refused(make: Make) -> None:
    """By the server, at the beginning, and the connection is of use afterwards."""
    async with make(0).connect() as connection:
        with pytest.raises(NotSupportedError, match="1235"):
            await connection.run_sync(lambda it: it.begin_twophase())
        await connection.rollback()
        assert await connection.scalar(text("SELECT COUNT(*) FROM counters")) == 4


async def test_numbers_do_not_collide(make: Make, cluster: OwnGalera) -> None:
    """Each node gives numbers of its own: with gaps, and not in the order of the commits."""

    async def add(maker: SessionMaker) -> None:
        for _ in range(10):
            async with maker.begin() as s:
                s.add(Note(body="x"))

    engines = [make(number) for number in range(3)]
    await asyncio.gather(*(add(SessionMaker(bind=each)) for each in engines))
    assert sum(each.stats().conflicts for each in engines) == 0
    ids = await fetch(cluster.nodes[0], "SELECT id FROM notes")
    assert len(ids) == 30
    assert len({number % 3 for (number,) in ids}) == 3


async def test_a_row_that_both_write_keeps_them_apart(make: Make, cluster: OwnGalera) -> None:
    """Locks of reads are one node's. Two that read what the other writes need a common row."""
    makers = [SessionMaker(bind=make(number)) for number in (0, 1)]

    async def transfer(maker: SessionMaker, read: int, write: int) -> None:
        async def work(s: QSession) -> None:
            await s.execute(update(Counter).where(Counter.id == 4).values(value=Counter.value + 1))
            if await s.scalar(select(Counter.value).where(Counter.id == read)) == 0:
                (await s.get_one(Counter, write)).value = 1

        await maker.run(work, attempts=50)

    for _ in range(10):
        await asyncio.gather(transfer(makers[0], 1, 2), transfer(makers[1], 2, 1))
        values = await fetch(cluster.nodes[2], "SELECT value FROM counters WHERE id < 3")
        assert sorted(values) == [(0,), (1,)]
        async with makers[0].begin() as s:
            await s.execute(update(Counter).where(Counter.id < 3).values(value=0))


async def test_a_reader_elsewhere_may_be_stale(make: Make, cluster: OwnGalera) -> None:
    """It reads what its node has applied; with wsrep_sync_wait it waits for what is under way."""
    late = cluster.nodes[1]
    stale = SessionMaker(bind=make(1))
    fresh = SessionMaker(bind=make(1, connect_args={"init_command": CATCHING_UP}))
    query = select(Counter.value).where(Counter.id == 1)
    async with fresh.reader() as s:
        assert await s.scalar(query) == 0
    holder = await asyncmy.connect(host="127.0.0.1", port=late.port, user="root", db="test")
    async with holder.cursor() as cursor:
        await cursor.execute("FLUSH TABLES WITH READ LOCK")  # the node applies nothing now
        await SessionMaker(bind=make(0)).run(add_one)
        async with stale.reader() as s:
            assert await s.scalar(query) == 0

        async def read() -> Any:
            async with fresh.reader() as s:
                return await s.scalar(query)

        reading = asyncio.create_task(read())
        waits = "SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE '%counters%'"
        await until(late, f"{waits} AND id <> CONNECTION_ID()", lambda said: said == "1")
        assert not reading.done()
        await cursor.execute("UNLOCK TABLES")
        assert await reading == 1
    holder.close()


async def test_a_node_that_stays_behind_is_a_conflict(make: Make, cluster: OwnGalera) -> None:
    """Who waits for it gets the server's 1205 at its timeout, and may try again."""
    late = cluster.nodes[1]
    timeout = "SET GLOBAL wsrep_provider_options='repl.causal_read_timeout={}'"
    fresh = SessionMaker(bind=make(1, connect_args={"init_command": CATCHING_UP}))
    await asyncio.to_thread(late.tell, timeout.format("PT0.1S"))
    holder = await asyncmy.connect(host="127.0.0.1", port=late.port, user="root", db="test")
    try:
        async with holder.cursor() as cursor:
            await cursor.execute("FLUSH TABLES WITH READ LOCK")
            await SessionMaker(bind=make(0)).run(add_one)
            async with fresh.reader() as s:
                with pytest.raises(ConflictError, match="1205"):
                    await s.get(Counter, 1)
    finally:
        holder.close()
        await asyncio.to_thread(late.tell, timeout.format("PT30S"))


async def test_the_lock_of_migrations_is_one_nodes(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """GET_LOCK knows nothing of other nodes, and the log says so."""

    def take(connection: Connection) -> None:
        with one_at_a_time(connection, 0):
            pass

    here, there = make(0), make(1)
    async with here.connect() as holder, here.connect() as beside, there.connect() as far:
        lock = await holder.run_sync(one_at_a_time, 0)
        await holder.run_sync(lambda _: lock.__enter__())
        caplog.clear()
        with pytest.raises(QueueTimeout):
            await beside.run_sync(take)
        assert not caplog.text
        await far.run_sync(take)
        assert "one node of a Galera cluster only, and this cluster has 3" in caplog.text
        await holder.run_sync(lambda _: lock.__exit__(None, None, None))
        await beside.run_sync(take)


async def test_a_node_without_the_majority(make: Make, cluster: OwnGalera) -> None:
    """Its statements are refused, and the COMMIT under way may have happened; it comes back."""
    alone, *others = cluster.nodes
    engine = make(0)
    maker = SessionMaker(bind=engine)
    attempts = []

    async def work(s: QSession) -> None:
        attempts.append(1)
        await add_one(s, 3)

    async with maker() as open_one, maker() as committing:
        await add_one(open_one, 1)
        await open_one.flush()
        await add_one(committing, 2)
        await committing.flush()
        for each in others:
            await asyncio.to_thread(each.freeze)
        try:
            with pytest.raises(DBAPIError, match="it is not known whether") as unknown:
                await committing.commit()
            assert unknown.value.connection_invalidated
            assert "1180" in str(unknown.value)
            await until(alone, READY, lambda said: said.endswith("OFF"))
            with pytest.raises(OperationalError, match="cluster is not ready") as refused:
                await open_one.commit()
            assert refused.value.connection_invalidated
            assert "not known" not in str(refused.value)
            with pytest.raises(OperationalError, match="WSREP has not yet prepared") as new:
                await maker.run(work)
            assert not isinstance(new.value, ConflictError)
        finally:
            for each in others:
                each.thaw()
        await open_one.rollback()
    await until(alone, READY, lambda said: said.endswith("ON"))
    await maker.run(work)
    for node in cluster.nodes:
        await in_step(node)
        values = await fetch(node, "SELECT value FROM counters ORDER BY id")
        assert values[0] == (0,)
        assert values[1] in ((0,), (1,))
        assert values[2] == (1,)


class Storm:
    """Tasks that add to counters through one node, and what became of each transaction."""

    def __init__(self, engine: QueuedAsyncEngine, node: int) -> None:
        self.engine = engine
        self.maker = SessionMaker(bind=engine)
        self.numbers = iter(range(node * 1_000_000, (node + 1) * 1_000_000))
        self.acknowledged: dict[int, int] = {}
        self.unknown: set[int] = set()
        self.errors: list[Exception] = []
        self.changed = asyncio.Event()
        self.over = False

    async def work(self, task: int) -> None:
        """Add to one counter after the other, whatever happens."""
        while not self.over:
            number = next(self.numbers)
            counter = (number + task) % 4 + 1
            try:
                await self.maker.run(self.add, number, counter, attempts=100)
            except Exception as error:
                self.errors.append(error)
                if "is not known" in str(error):
                    self.unknown.add(number)
            else:
                self.acknowledged[number] = counter
            self.changed.set()

    async def add(self, s: QSession, number: int, counter: int) -> None:
        """One transaction: read, add one, write, and note that."""
        await add_one(s, counter)
        await s.execute(insert(journal).values(id=number, counter=counter))

    async def more(self, number: int) -> None:
        """Wait until so many more transactions are acknowledged."""
        goal = len(self.acknowledged) + number

        async def wait() -> None:
            while len(self.acknowledged) < goal:
                self.changed.clear()
                await self.changed.wait()

        await asyncio.wait_for(wait(), 60)


async def kill_and_restart(cluster: OwnGalera, others: list[Storm]) -> None:
    """The last node is killed under load, and gets from the others what it has missed."""
    victim = cluster.nodes[2]
    await asyncio.to_thread(victim.kill)
    await asyncio.gather(*(each.more(20) for each in others))
    await asyncio.to_thread(victim.rejoin, cluster.nodes)


async def freeze_and_thaw(cluster: OwnGalera, others: list[Storm]) -> None:
    """The last node stands still until the others go on without it. It finds itself alone."""
    victim = cluster.nodes[2]
    await asyncio.to_thread(victim.freeze)
    try:
        await until(cluster.nodes[0], SIZE, lambda said: said.endswith("2"))
        await asyncio.gather(*(each.more(20) for each in others))
    finally:
        victim.thaw()
    await until(cluster.nodes[0], SIZE, lambda said: said.endswith("3"))
    await until(victim, READY, lambda said: said.endswith("ON"))


@pytest.mark.parametrize("fails", [kill_and_restart, freeze_and_thaw])
async def test_a_storm_loses_nothing(make: Make, cluster: OwnGalera, fails: Any) -> None:
    """Read, add, write on three nodes at once. One fails under way and comes back."""
    storms = [Storm(make(number, max_size=4), number) for number in range(3)]
    tasks = [asyncio.create_task(each.work(task)) for each in storms for task in range(4)]
    await asyncio.gather(*(each.more(20) for each in storms))
    await fails(cluster, storms[:2])
    await asyncio.gather(*(each.more(20) for each in storms))
    for each in storms:
        each.over = True
    await asyncio.wait_for(asyncio.gather(*tasks), 60)

    acknowledged = {k: v for each in storms for k, v in each.acknowledged.items()}
    unknown = set().union(*(each.unknown for each in storms))
    for error in [error for each in storms for error in each.errors]:
        assert isinstance(error, DBAPIError), repr(error)
        assert not isinstance(error, ConflictError)
    assert storms[2].errors
    assert sum(each.engine.stats().conflicts for each in storms) > 0
    first: list[Any] | None = None
    for node in cluster.nodes:
        noted = dict(await fetch(node, "SELECT id, counter FROM journal"))
        assert acknowledged.items() <= noted.items()
        assert noted.keys() - acknowledged.keys() <= unknown
        values = dict(await fetch(node, "SELECT id, value FROM counters"))
        assert values == {n: list(noted.values()).count(n) for n in values}
        found = [noted, values]
        first = first or found
        assert found == first


def test_the_contract_holds_on_a_node(cluster: OwnGalera) -> None:
    """What qsession promises on a server is tested on the second node, by the same tests.

    The others hold as well, but for transactions of two phases, which Galera does not have.
    """
    files = [f"tests/contract/test_contract_{each}.py" for each in ("conflicts", "savepoints")]
    these = ["-k", "mysql and not storm", *files]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *these],
        cwd=ROOT,
        env={
            **os.environ,
            "QSESSION_TEST_MARIADB": f"mysql://root@127.0.0.1:{cluster.nodes[1].port}/mysql",
            "QSESSION_TEST_DRIVERS": "mysql+asyncmy",
            "QSESSION_REQUIRE_SERVERS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout


async def test_the_page_does_what_it_says(cluster: OwnGalera, tmp_path: Path) -> None:
    """docs/howto/galera.md, as one program. The first of its nodes accepts connections and says
    nothing; the second does not even accept them.
    """
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        ports = [silent.getsockname()[1], 1, *(each.port for each in cluster.nodes)]
        nodes = " ".join(f"127.0.0.1:{each}" for each in ports)
        env = {"DATABASE_URL": cluster.nodes[0].url(), "NODES": nodes}
        await ran("galera.md", tmp_path, **env)


async def test_a_commit_on_a_node_that_hangs(make: Make, cluster: OwnGalera) -> None:
    """With asyncmy's ``read_timeout`` it ends, and may have taken effect."""
    node = cluster.nodes[2]
    engine = make(2, connect_args={"read_timeout": 2})
    async with SessionMaker(bind=engine)() as s:
        await add_one(s, 1)
        await s.flush()
        await asyncio.to_thread(node.freeze)
        try:
            with pytest.raises(DBAPIError, match="during COMMIT, and it is not known") as raised:
                await s.commit()
            assert raised.value.connection_invalidated
        finally:
            node.thaw()
    await until(cluster.nodes[0], SIZE, lambda said: said.endswith("3"))
    await until(node, READY, lambda said: said.endswith("ON"))
