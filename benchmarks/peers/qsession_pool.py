"""qsession's pool: SQL by hand, without SQLAlchemy's sessions."""

from __future__ import annotations

from typing import ClassVar

from qsession import create_pool

from .peer import NAME, PAGE, TaskPeer, Way, row, start_of_page


class OursPool(TaskPeer):
    """`fetchrow`, `fetch` and `execute` of a pool, and `transaction()` for the change."""

    name = "qsession, pool"
    way: ClassVar[Way] = "driver"
    wal = False

    async def start(self) -> None:
        self.pool = await create_pool(f"sqlite:///{self.file}")

    async def stop(self) -> None:
        await self.pool.close()

    async def get(self, i: int) -> str:
        found = await self.pool.fetchrow("SELECT id, n, name FROM item WHERE id = $1", row(i))
        assert found is not None
        return str(found.name)

    async def list(self, i: int) -> int:
        page = f"SELECT id, n, name FROM item WHERE id > $1 ORDER BY id LIMIT {PAGE}"
        return len(await self.pool.fetch(page, start_of_page(i)))

    async def insert(self, i: int) -> None:
        await self.pool.execute("INSERT INTO item (n, name) VALUES (0, $1)", NAME)

    async def change(self, i: int) -> None:
        async with self.pool.transaction() as connection:
            n = await connection.fetchval("SELECT n FROM item WHERE id = $1", row(i))
            await connection.execute("UPDATE item SET n = $1 WHERE id = $2", n + 1, row(i))
