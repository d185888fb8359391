"""Many queries at once over a pool: python -m examples.pool.gather_pool [URL].

Five connections serve twenty tasks: those that find none wait in line. On SQLite the writes wait in
line, and the reads for nobody.
"""

from __future__ import annotations

import asyncio
import sys

import qsession


async def buy(pool: qsession.AsyncConnectionPool, buyer: int) -> None:
    """Count the stock down by one, and note who bought.

    It reads nothing that it then writes, so PostgreSQL need not run it as serializable.
    """
    async with pool.transaction(isolation="read committed") as connection:
        await connection.execute("UPDATE stock SET amount = amount - 1")
        await connection.execute("INSERT INTO sales VALUES ($1)", buyer)


async def main(url: str) -> None:
    async with qsession.create_pool(url, min_size=1, max_size=5) as pool:
        await pool.execute("CREATE TABLE stock (amount INTEGER)")
        await pool.execute("CREATE TABLE sales (buyer INTEGER)")
        await pool.execute("INSERT INTO stock VALUES ($1)", 20)
        await asyncio.gather(*(buy(pool, buyer) for buyer in range(20)))
        left, sold = await asyncio.gather(
            pool.fetchval("SELECT amount FROM stock"),
            pool.fetchval("SELECT count(*) FROM sales"),
        )
        print(f"{left} left, {sold} sold")
        await pool.execute("DROP TABLE stock")
        await pool.execute("DROP TABLE sales")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:] or ["sqlite://"]))
