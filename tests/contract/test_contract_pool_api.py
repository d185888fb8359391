"""What create_pool promises, the same on every database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext, suppress

import pytest
from contract_tables import PATIENCE, Counter, Database
from sqlalchemy import select
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession

from qsession import (
    AsyncConnectionPool,
    ConflictError,
    PoolConnection,
    QueueTimeout,
    ReadOnlyError,
    create_pool,
)
from qsession.testing import When, cancel_at

ADD = "UPDATE counters SET value = value + 1 WHERE id = $1"
WAITING = "SELECT count(*) FROM pg_locks WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))"
READ = "SELECT value FROM counters WHERE id = $1"
SET = "UPDATE counters SET value = :value WHERE id = :id"
NOTE = "INSERT INTO notes (body) VALUES ($1)"


@pytest.fixture
def make_pool(database: Database) -> Callable[..., AsyncConnectionPool]:
    """Makes pools, whose engines are found free at the end."""

    def make_pool(**kw: object) -> AsyncConnectionPool:
        pool = create_pool(database.url, **database.reading, **kw)
        database.engines.append(pool.engine)
        return pool

    return make_pool


@pytest.fixture
async def pool(make_pool: Callable[..., AsyncConnectionPool]) -> AsyncIterator[AsyncConnectionPool]:
    """A pool of two connections at the most."""
    async with make_pool(min_size=1, max_size=2) as pool:
        yield pool


async def soon(*coroutines: object) -> list[object]:
    """What they come to, as `asyncio.gather` has it; stuck, they are cancelled."""
    return await asyncio.wait_for(asyncio.gather(*coroutines), PATIENCE)


async def test_the_tour(pool: AsyncConnectionPool) -> None:
    """Create, insert, update, select and drop, with nothing but SQL."""
    assert await pool.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name VARCHAR(9))") == 0
    assert await pool.execute("INSERT INTO users VALUES ($1, $2)", 1, "ann") == 1
    assert await pool.execute("UPDATE users SET name = :name", name="bea") == 1
    row = await pool.fetchrow("SELECT id, name FROM users")
    assert row is not None
    assert (row == (1, "bea"), row.name, row[0], row._mapping["name"]) == (True, "bea", 1, "bea")
    await pool.execute("DROP TABLE users")


async def test_what_execute_returns(pool: AsyncConnectionPool) -> None:
    """Rows changed, for a SELECT the rows found, and 0 for what is about no rows."""
    assert await pool.execute("INSERT INTO notes (body) VALUES ('a'), ('b'), ('c')") == 3
    assert await pool.execute("UPDATE notes SET body = 'a' WHERE body IN ('a', 'b')") == 2
    assert await pool.execute("DELETE FROM notes WHERE body = 'none'") == 0
    assert await pool.execute("SELECT * FROM counters") == 2
    assert await pool.execute("CREATE INDEX by_body ON notes (body)") == 0


async def test_what_the_fetches_return(pool: AsyncConnectionPool) -> None:
    """All rows, the first row, the first value; of nothing: an empty list, None and None."""
    assert await pool.fetch("SELECT id, value FROM counters ORDER BY id") == [(1, 0), (2, 0)]
    assert await pool.fetchrow("SELECT id, value FROM counters ORDER BY id DESC") == (2, 0)
    assert await pool.fetchval("SELECT id FROM counters ORDER BY id DESC") == 2
    for sql in ("SELECT id FROM counters WHERE id > 2", "UPDATE counters SET value = 0"):
        assert await pool.fetch(sql) == []
        assert await pool.fetchrow(sql) is None
        assert await pool.fetchval(sql) is None


async def test_placeholders(pool: AsyncConnectionPool) -> None:
    """Positional ones in any order and more than once; named ones by keyword or mapping."""
    await pool.execute("UPDATE counters SET value = $2 WHERE id = $1 AND $1 < 5", 1, 7)
    assert await pool.fetchval("SELECT value FROM counters WHERE id = :id", id=1) == 7
    assert await pool.fetchval("SELECT value FROM counters WHERE id = :id", {"id": 1, "x": 0}) == 7
    await pool.execute(NOTE, "50% of $1, :body and ?")
    assert await pool.fetchval("SELECT body FROM notes") == "50% of $1, :body and ?"
    row = await pool.fetchrow(
        "SELECT '$1 :a 5%', id /* :b $2 */ FROM counters WHERE id = $1 -- :c", 2
    )
    assert row == ("$1 :a 5%", 2)


async def test_each_statement_commits(pool: AsyncConnectionPool, database: Database) -> None:
    """On one connection too; one that fails leaves those before it, and the connection works."""
    async with pool.acquire() as connection:
        await connection.execute(ADD, 1)
        assert await database.values() == [1, 0]
        with pytest.raises(IntegrityError):
            await connection.execute("INSERT INTO counters VALUES (3, 0), (1, 0)")
        await connection.execute(ADD, 2)
        assert await database.values() == [1, 1]


async def test_executemany(pool: AsyncConnectionPool, database: Database) -> None:
    """All rows or none, in a transaction of its own or in one that is open."""
    await pool.executemany(NOTE, [("a",), ("b",)])
    await pool.executemany("INSERT INTO notes (body) VALUES (:body)", iter([{"body": "c"}]))
    await pool.executemany(NOTE, [])
    assert await database.notes() == ["a", "b", "c"]
    with pytest.raises(IntegrityError):
        await pool.executemany("INSERT INTO counters VALUES ($1, 0)", [(3,), (4,), (1,)])
    assert len(await database.values()) == 2
    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.executemany(NOTE, [("d",), ("e",)])
        await transaction.rollback()
    assert await database.notes() == ["a", "b", "c"]


async def test_transactions(pool: AsyncConnectionPool, database: Database) -> None:
    """A clean end commits; an error rolls back, of a savepoint only what was inside it."""
    async with pool.transaction() as connection:
        assert connection.in_transaction
        await connection.execute(ADD, 1)
        with pytest.raises(ZeroDivisionError):
            async with connection.transaction():
                await connection.execute(ADD, 2)
                raise ZeroDivisionError
        async with connection.transaction():
            await connection.execute(ADD, 1)
        assert await database.values() == [0, 0]
    assert await database.values() == [2, 0]
    with pytest.raises(ZeroDivisionError):
        async with pool.transaction() as connection:
            await connection.execute(ADD, 1)
            raise ZeroDivisionError
    assert await database.values() == [2, 0]


async def test_an_error_that_is_caught(pool: AsyncConnectionPool, database: Database) -> None:
    """In a savepoint it leaves the transaction whole; without, PostgreSQL's commit is an error."""
    async with pool.transaction() as connection:
        await connection.execute(ADD, 1)
        with pytest.raises(IntegrityError):
            async with connection.transaction():
                await connection.execute("INSERT INTO counters VALUES (1, 0)")
    assert await database.values() == [1, 0]
    loses = database.driver.startswith("postgresql")
    with pytest.raises(DBAPIError, match="aborted") if loses else nullcontext():
        async with pool.transaction() as connection:
            await connection.execute(ADD, 1)
            with pytest.raises(IntegrityError):
                await connection.execute("INSERT INTO counters VALUES (1, 0)")
    await pool.execute(ADD, 2)
    assert await database.values() == [1 if loses else 2, 1]


async def test_a_transaction_ends_once(pool: AsyncConnectionPool, database: Database) -> None:
    """Ended by hand it is over; to start, commit or roll back again says why it cannot be."""
    async with pool.acquire() as connection:
        async with (transaction := connection.transaction()):
            await connection.execute(ADD, 1)
            await transaction.rollback()
            await connection.execute(ADD, 2)
        assert await database.values() == [0, 1]
        for again in (transaction.start, transaction.commit, transaction.rollback):
            with pytest.raises(InvalidRequestError, match="was rolled back"):
                await again()
        with pytest.raises(InvalidRequestError, match="has not been started"):
            await connection.transaction().commit()


async def test_the_outer_transaction_ends_the_inner(
    pool: AsyncConnectionPool, database: Database
) -> None:
    """A savepoint that nobody ended goes with its transaction, and cannot be committed then."""
    async with pool.acquire() as connection:
        outer, inner = connection.transaction(), connection.transaction()
        await outer.start()
        await inner.start()
        await connection.execute(ADD, 1)
        await outer.commit()
        with pytest.raises(InvalidRequestError, match="ended"):
            await inner.commit()
        await connection.execute(ADD, 2)
        assert await database.values() == [1, 1]


async def test_text_does_not_control_transactions(pool: AsyncConnectionPool) -> None:
    """BEGIN and its like would outlive the connection's use, so they are not run."""
    for sql in (
        "BEGIN",
        "-- now\n start  transaction",
        "/* x */ COMMIT",
        "savepoint a",
        "ROLLBACK",
    ):
        with pytest.raises(InvalidRequestError, match="was not run"):
            await pool.execute(sql)


async def test_read_only_and_levels(pool: AsyncConnectionPool, database: Database) -> None:
    """A write in a transaction that only reads is an error; lower levels may be asked for."""
    async with pool.acquire() as connection:
        with pytest.raises(ReadOnlyError):
            async with connection.transaction(readonly=True):
                assert await connection.fetchval(READ, 1) == 0
                await connection.execute(ADD, 1)
        async with connection.transaction(isolation="read_committed"):
            await connection.execute(ADD, 1)
            with pytest.raises(InvalidRequestError, match="outermost"):
                await connection.transaction(readonly=True).start()
        with pytest.raises(ArgumentError, match="chaos"):
            connection.transaction(isolation="chaos")
        await connection.execute(ADD, 1)
    assert await database.values() == [2, 0]


async def test_a_snapshot(pool: AsyncConnectionPool) -> None:
    """A transaction that only reads sees one state, and waits for no writer."""
    async with pool.transaction(readonly=True) as reader:
        assert await reader.fetchval(READ, 1) == 0
        await pool.execute(ADD, 1)
        assert await reader.fetchval(READ, 1) == 0
    assert await pool.fetchval(READ, 1) == 1


async def test_gather_over_the_pool(pool: AsyncConnectionPool, database: Database) -> None:
    """More tasks than connections: each gets its turn."""
    await soon(*(pool.execute(ADD, 1) for _ in range(20)))
    found = await soon(
        *(pool.fetchval("SELECT id FROM counters WHERE id = $1", 1 + n % 2) for n in range(20))
    )
    assert found == [1, 2] * 10
    assert await database.values() == [20, 0]


async def test_gather_over_one_connection(pool: AsyncConnectionPool, database: Database) -> None:
    """Statements queue up, each with its own result, those that fail as well."""
    async with pool.acquire() as connection:
        found = await soon(
            *(
                connection.fetchval("SELECT id FROM counters WHERE id = $1", 1 + n % 2)
                for n in range(10)
            ),
            *(connection.execute(ADD, 1) for _ in range(10)),
        )
        assert found == [1, 2] * 5 + [1] * 10
        results = await asyncio.gather(
            connection.execute(ADD, 1),
            connection.execute("INSERT INTO counters VALUES (1, 0)"),
            connection.execute(ADD, 1),
            return_exceptions=True,
        )
    assert [type(each) for each in results] == [int, IntegrityError, int]
    assert await database.values() == [12, 0]


async def increment(connection: PoolConnection, id_: int, fail: bool = False) -> None:
    """A read and a write in one transaction, with a turn for others in between."""
    async with connection.transaction():
        value = await connection.fetchval(READ, id_)
        await asyncio.sleep(0)
        await connection.execute(SET, value=value + 1, id=id_)
        if fail:
            raise ZeroDivisionError


async def test_transactions_of_tasks_on_one_connection(
    pool: AsyncConnectionPool, database: Database
) -> None:
    """They run one after the other: none sees half of another, or goes with its rollback."""
    async with pool.acquire() as connection:
        results = await asyncio.wait_for(
            asyncio.gather(
                *(increment(connection, 1, fail=n % 3 == 0) for n in range(12)),
                *(connection.execute(ADD, 2) for _ in range(5)),
                return_exceptions=True,
            ),
            PATIENCE,
        )
    assert [type(each) for each in results[:12:3]] == [ZeroDivisionError] * 4
    assert await database.values() == [8, 5]


async def test_tasks_inside_a_transaction(pool: AsyncConnectionPool, database: Database) -> None:
    """Tasks started inside of it belong to it, and so do their own savepoints."""
    with pytest.raises(ZeroDivisionError):
        async with pool.transaction() as connection:
            await soon(*(connection.execute(ADD, 1) for _ in range(3)))
            await soon(*(increment(connection, 2) for _ in range(3)))
            assert await connection.fetch("SELECT value FROM counters ORDER BY id") == [(3,), (3,)]
            raise ZeroDivisionError
    assert await database.values() == [0, 0]


async def test_others_wait_for_a_transaction(
    make_pool: Callable[..., AsyncConnectionPool],
) -> None:
    """Another task's statement is not drawn into it; past queue_timeout it says who has it.

    The time is that of one transaction, here of the second of two that are in the way.
    """
    async with make_pool(queue_timeout=0.5) as pool:
        async with pool.acquire() as connection:
            inside = {name: asyncio.Event() for name in ("first", "second")}
            done = {name: asyncio.Event() for name in inside}

            async def hold(name: str) -> None:
                async with connection.transaction():
                    inside[name].set()
                    await done[name].wait()

            first = asyncio.create_task(hold("first"), name="the first")
            await inside["first"].wait()
            second = asyncio.create_task(hold("second"), name="the second")
            statement = asyncio.create_task(connection.fetchval(READ, 1))
            await asyncio.sleep(0)
            done["first"].set()
            await inside["second"].wait()
            with pytest.raises(QueueTimeout, match="the second"):
                await statement
            done["second"].set()
            await asyncio.gather(first, second)
            assert await connection.fetchval(READ, 1) == 0


async def test_a_transaction_whose_task_has_ended(
    pool: AsyncConnectionPool, database: Database
) -> None:
    """As in a test's fixture, where it is begun in one task and used in another."""
    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await asyncio.create_task(transaction.start())
        await connection.execute(ADD, 1)
        await transaction.rollback()
        await connection.execute(ADD, 2)
    assert await database.values() == [0, 1]


async def test_release(
    pool: AsyncConnectionPool,
    make_pool: Callable[..., AsyncConnectionPool],
    database: Database,
) -> None:
    """It rolls back what is open, may be repeated, and ends the use of the connection."""
    connection = await pool.acquire()
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(ADD, 1)
    async with make_pool() as other:
        with pytest.raises(ArgumentError, match="was not acquired from"):
            await other.release(connection)
    await pool.release(connection)
    await pool.release(connection)
    assert await database.values() == [0, 0]
    with pytest.raises(InvalidRequestError, match="rolled back"):
        await transaction.commit()
    with pytest.raises(InvalidRequestError, match="released"):
        await connection.execute(ADD, 1)
    with pytest.raises(InvalidRequestError, match="released"):
        await connection.transaction().start()


@pytest.mark.servers
async def test_acquire_waits_in_line(pool: AsyncConnectionPool) -> None:
    """Past its timeout it says so, and loses no place; given back in time, it gets one."""
    first, second = await pool.acquire(), await pool.acquire(timeout=PATIENCE)
    with pytest.raises(QueueTimeout, match=r"0\.01 s"):
        await pool.acquire(timeout=0.01)
    waiting = asyncio.ensure_future(pool.acquire(timeout=PATIENCE).__aenter__())
    cancelled = asyncio.create_task(pool.acquire().__aenter__())
    while pool.engine.stats().waiting < 2:
        await asyncio.sleep(0)
    cancelled.cancel()
    await pool.release(first)
    third = await waiting
    assert await third.fetchval(READ, 1) == 0
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    for each in (second, third):
        await pool.release(each)


async def test_close_waits(pool: AsyncConnectionPool, database: Database) -> None:
    """Nothing new is acquired; who has a connection goes on to the end."""
    async with pool.acquire() as connection:
        closing = asyncio.create_task(pool.close())
        await asyncio.sleep(0)
        with pytest.raises(InvalidRequestError, match="being closed"):
            await pool.acquire()
        await increment(connection, 1)
        assert not closing.done()
    await asyncio.wait_for(closing, PATIENCE)
    assert await database.values() == [1, 0]
    with pytest.raises(InvalidRequestError, match="closed"):
        await pool.fetchval(READ, 1)


@pytest.mark.parametrize("by_close", [False, True])
async def test_terminate(pool: AsyncConnectionPool, database: Database, by_close: bool) -> None:
    """Transactions are rolled back under those who have them; a cancelled close() does it too."""
    async with pool.acquire() as connection:
        with pytest.raises(InvalidRequestError, match="terminated"):
            async with connection.transaction():
                await connection.execute(ADD, 1)
                if by_close:
                    closing = asyncio.create_task(pool.close())
                    await asyncio.sleep(0)
                    closing.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await closing
                else:
                    await pool.terminate()
                await connection.execute(ADD, 1)
    assert await database.values() == [0, 0]


async def test_terminate_breaks_off_a_wait(
    make_pool: Callable[..., AsyncConnectionPool], database: Database
) -> None:
    """A statement that waits for another transaction's row or turn ends, and is not done later.

    Only MySQL may still do it: it does not look whether its client is there.
    """
    async with make_pool(max_size=2) as holding, make_pool(max_size=2) as pool:
        async with holding.transaction() as holder:
            await holder.execute(ADD, 1)
            async with pool.acquire() as connection:
                stuck = asyncio.create_task(connection.execute(ADD, 1))
                while connection._scope.line.owner is not stuck:
                    await asyncio.sleep(0)
                if (
                    "postgresql" in database.driver
                ):  # which may hear of the end before the statement
                    while not await holder.fetchval(WAITING):
                        await asyncio.sleep(0)
                await pool.terminate()
                with pytest.raises(InvalidRequestError, match="terminated"):
                    await asyncio.wait_for(stuck, PATIENCE)
    assert database.driver.startswith("mysql") or await database.values() == [1, 0]


async def test_the_engine_is_the_same(pool: AsyncConnectionPool, database: Database) -> None:
    """Sessions of the ORM on `pool.engine` see and share what the pool does."""
    await pool.execute(ADD, 1)
    async with AsyncSession(pool.engine) as session:
        assert await session.scalar(select(Counter.value).where(Counter.id == 1)) == 1
        (await session.get_one(Counter, 1)).value = 5
        await session.commit()
    assert await pool.fetchval(READ, 1) == 5


async def test_run_answers_conflicts(pool: AsyncConnectionPool, database: Database) -> None:
    """A storm of read-modify-writes loses nothing, on savepoints as well."""

    async def work(connection: PoolConnection, id_: int) -> None:
        await increment(connection, id_)

    await soon(*(pool.run(work, 1, attempts=100) for _ in range(12)))
    assert await database.values() == [12, 0]


@pytest.mark.servers
@pytest.mark.only("postgresql")
async def test_a_conflict_ends_the_transaction(
    pool: AsyncConnectionPool, database: Database
) -> None:
    """Caught inside, it comes again: PostgreSQL would answer the COMMIT with a silent rollback."""
    async with pool.acquire() as connection:
        with pytest.raises(ConflictError, match="already"):
            async with connection.transaction():
                value = await connection.fetchval(READ, 1)
                await pool.execute(ADD, 1)
                with pytest.raises(ConflictError):
                    await connection.execute(SET, value=value + 10, id=1)
                with pytest.raises(ConflictError, match="already"):
                    await connection.fetchval(READ, 1)
        await connection.execute(ADD, 2)
    assert await database.values() == [1, 1]


@pytest.mark.direct
@pytest.mark.servers
@pytest.mark.only("postgresql")
async def test_a_lost_connection_is_replaced(pool: AsyncConnectionPool, database: Database) -> None:
    """The statement in flight fails; the next one, and the next transaction, run on a new one."""
    kill = "SELECT pg_terminate_backend($1)"
    async with pool.acquire() as connection:
        pid = await connection.fetchval("SELECT pg_backend_pid()")
        await pool.execute(kill, pid)
        with pytest.raises(DBAPIError):
            await connection.execute(ADD, 1)
        await connection.execute(ADD, 1)
        with pytest.raises((DBAPIError, InvalidRequestError)):
            async with connection.transaction():
                await pool.execute(kill, await connection.fetchval("SELECT pg_backend_pid()"))
                with pytest.raises(DBAPIError):
                    await connection.execute(ADD, 1)
        await increment(connection, 2)
        assert await connection.fetchval(READ, 2) == 1
    assert await database.values() == [1, 1]


async def pool_statement(pool: AsyncConnectionPool) -> None:
    await pool.execute("UPDATE counters SET value = value + 1")


async def pool_transaction(pool: AsyncConnectionPool) -> None:
    async with pool.transaction() as connection:
        await connection.execute(ADD, 1)
        async with connection.transaction():
            await asyncio.gather(connection.execute(ADD, 2), connection.fetchval(READ, 1))


async def pool_rows(pool: AsyncConnectionPool) -> None:
    async with pool.acquire(timeout=PATIENCE) as connection:
        await connection.executemany(ADD, [(1,), (2,)])


# psycopg closes the connection if it is cancelled twice, and its pipeline tries to use it then.
@pytest.mark.filterwarnings("ignore:.*_exit_gen:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("when", [When.ASKED, When.ANSWERED, When.TWICE])
@pytest.mark.parametrize("work", [pool_statement, pool_transaction, pool_rows])
async def test_cancelled_anywhere(
    make_pool: Callable[..., AsyncConnectionPool],
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    work: object,
    when: When,
) -> None:
    """Cancelled at any suspension it is done wholly or not at all, and the pool is free again."""
    with suppress(ImportError):  # or psycopg suspends at more places if the machine is busy
        monkeypatch.setattr("psycopg.waiting.MAX_BUSY_TIME", -1.0, raising=False)
    async with make_pool(max_size=1) as pool:
        n, whole = 0, False
        while not whole:
            n += 1
            whole = await cancel_at(work(pool), n, when)
            first, second = await database.values()
            assert first == second
            async with pool.acquire(timeout=PATIENCE) as connection:
                assert not connection.in_transaction
                assert await connection.execute("UPDATE counters SET value = value + 1") == 2
        assert n > 1
