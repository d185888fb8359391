"""Two queries at once over one connection: python -m examples.pool.gather_connection [URL].

With asyncpg itself the second one raises InterfaceError: "cannot perform operation: another
operation is in progress". Here it waits for the first.
"""

from __future__ import annotations

import asyncio
import sys

import qsession


async def main(url: str) -> None:
    async with qsession.create_pool(url) as pool, pool.acquire() as connection:
        names = await asyncio.gather(
            connection.fetchval("SELECT $1 || ' ran'", "one"),
            connection.fetchval("SELECT $1 || ' ran'", "two"),
        )
        print(*names, sep="\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:] or ["sqlite://"]))
