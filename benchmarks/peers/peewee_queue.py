"""peewee's SqliteQueueDatabase: threads whose writes wait in a queue for one writing thread.

It knows no transactions, so a read-modify-write is a select and then an update.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from peewee import CharField, IntegerField, Model
from playhouse.sqliteq import SqliteQueueDatabase

from .peer import NAME, PAGE, ThreadPeer, Way, row, start_of_page


class PeeweeQueue(ThreadPeer):
    name = "peewee SqliteQueueDatabase"
    way: ClassVar[Way] = "orm"
    threads = True

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self.db = SqliteQueueDatabase(
            str(file), autostart=False, pragmas={"journal_mode": "wal", "synchronous": "full"}
        )

        class Item(Model):
            n = IntegerField()
            name = CharField()

            class Meta:
                database = self.db
                table_name = "item"

        self.item: Any = Item

    def start(self) -> None:
        self.db.start()

    def stop(self) -> None:
        self.db.stop()
        self.db.close()

    def get(self, i: int) -> str:
        return str(self.item.get_by_id(row(i)).name)

    def list(self, i: int) -> int:
        page = self.item.select().where(self.item.id > start_of_page(i))
        return len(list(page.order_by(self.item.id).limit(PAGE)))

    def insert(self, i: int) -> None:
        self.item.create(n=0, name=NAME)

    def change(self, i: int) -> None:
        found = self.item.get_by_id(row(i))
        found.n += 1
        found.save(only=[self.item.n])
