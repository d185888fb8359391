"""Tortoise ORM: one connection, and a lock around each transaction."""

from __future__ import annotations

from typing import Any, ClassVar

from tortoise import Tortoise, fields
from tortoise.connection import connections
from tortoise.models import Model
from tortoise.transactions import in_transaction

from .peer import NAME, PAGE, TaskPeer, Way, row, start_of_page


class Item(Model):
    id = fields.IntField(primary_key=True)
    n = fields.IntField()
    name = fields.CharField(max_length=40)

    class Meta:
        table = "item"


class TortoiseOrm(TaskPeer):
    name = "Tortoise ORM"
    way: ClassVar[Way] = "orm"

    async def start(self) -> None:
        url = f"sqlite://{self.file}?journal_mode=WAL&synchronous=FULL"
        models: dict[str, Any] = {"models": [__name__]}
        await Tortoise.init(db_url=url, modules=models)

    async def stop(self) -> None:
        await connections.close_all()

    async def get(self, i: int) -> str:
        return str((await Item.get(id=row(i))).name)

    async def list(self, i: int) -> int:
        return len(await Item.filter(id__gt=start_of_page(i)).order_by("id").limit(PAGE))

    async def insert(self, i: int) -> None:
        await Item.create(n=0, name=NAME)

    async def change(self, i: int) -> None:
        async with in_transaction():
            found = await Item.get(id=row(i))
            found.n += 1
            await found.save(update_fields=["n"])
