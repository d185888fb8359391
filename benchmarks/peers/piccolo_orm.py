"""Piccolo: a connection for each query or transaction, with the long timeout that it recommends."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from piccolo.columns import Integer, Serial, Varchar
from piccolo.engine.sqlite import SQLiteEngine, TransactionType
from piccolo.table import create_table_class

from .peer import NAME, PAGE, TaskPeer, Way, row, start_of_page

DB = SQLiteEngine(timeout=60)


Item: Any = create_table_class(
    "Item",
    class_kwargs={"tablename": "item", "db": DB},
    class_members={"id": Serial(primary_key=True), "n": Integer(), "name": Varchar(40)},
)


class PiccoloOrm(TaskPeer):
    name = "Piccolo"
    way: ClassVar[Way] = "orm"

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        DB.path = str(file)

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def get(self, i: int) -> str:
        found = await Item.objects().get(Item.id == row(i))
        return str(found.name)

    async def list(self, i: int) -> int:
        page = Item.objects().where(Item.id > start_of_page(i))
        return len(await page.order_by(Item.id).limit(PAGE))

    async def insert(self, i: int) -> None:
        await Item(n=0, name=NAME).save()

    async def change(self, i: int) -> None:
        async with DB.transaction(transaction_type=TransactionType.immediate):
            found = await Item.objects().get(Item.id == row(i))
            found.n += 1
            await found.save([Item.n])
