"""SQL without the ORM."""

from __future__ import annotations

from typing import Any

from typing_extensions import assert_type

import qsession
from qsession import AsyncConnectionPool, PoolConnection, Stats, create_pool


async def buy(connection: PoolConnection, number: int, amount: int = 1) -> bool:
    """A function for run()."""
    return await connection.execute("UPDATE items SET stock = stock - $1", amount) == number


async def main() -> None:
    """Each call."""
    pool = await create_pool("sqlite:///app.db", min_size=1, max_size=10, queue_timeout=5)
    assert_type(pool, AsyncConnectionPool)
    async with create_pool() as other:
        assert_type(other, AsyncConnectionPool)
    assert_type(await pool.execute("DELETE FROM items WHERE id = $1", 1), int)
    assert_type(await pool.execute("DELETE FROM items WHERE id = :id", id=1), int)
    rows = await pool.fetch("SELECT id, name FROM items")
    for row in rows:
        print(row.id, row[1])
    first = await pool.fetchrow("SELECT 1 AS one, 2 AS two")
    if first is not None:
        print(first.one, first[1])
    number: int = await pool.fetchval("SELECT 1")
    await pool.executemany("INSERT INTO items VALUES ($1)", [(number,), (2,)])
    await pool.executemany("INSERT INTO items VALUES (:id)", [{"id": 1}, {"id": 2}])
    async with pool.acquire(timeout=5) as connection:
        assert_type(connection, PoolConnection)
        async with connection.transaction(readonly=True) as same:
            assert_type(same, PoolConnection)
        transaction = connection.transaction()
        await transaction.start()
        await transaction.rollback()
    taken = await pool.acquire()
    assert_type(taken, PoolConnection)
    await pool.release(taken)
    async with pool.transaction(isolation="SERIALIZABLE") as connection:
        assert_type(connection, PoolConnection)
        assert_type(await connection.fetchval("SELECT 1"), Any)
    assert_type(await pool.run(buy, 1, amount=2), bool)
    assert_type(await pool.run(buy, 1, attempts=3), bool)
    assert_type(pool.engine.stats(), Stats)
    await pool.close()


async def mistakes(pool: AsyncConnectionPool) -> None:
    """Each line is one."""
    qsession.create_poll()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    await pool.run(buy, "1")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await pool.execute(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    (await pool.fetchrow("SELECT 1"))[0]  # type: ignore[index]  # pyright: ignore[reportOptionalSubscript]
    await pool.executemany("SELECT $1", [1])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
