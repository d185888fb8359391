"""SQLAlchemy without asyncio, alone in one thread: what SQLAlchemy itself costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from sqlalchemy import create_engine, event, insert, select, update
from sqlalchemy.orm import Session

from .model import Item, item, page_of
from .peer import NAME, ThreadPeer, Way, row


class SyncPeer(ThreadPeer):
    """The synchronous engine at the same durability."""

    name = "synchronous SQLAlchemy"

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self.engine = create_engine(f"sqlite:///{file}")

        @event.listens_for(self.engine, "connect")
        def connect(connection: Any, _: object) -> None:
            connection.execute("PRAGMA synchronous=FULL")

    def start(self) -> None:
        pass

    def stop(self) -> None:
        self.engine.dispose()


class SyncOrm(SyncPeer):
    way: ClassVar[Way] = "orm"

    def get(self, i: int) -> str:
        with Session(self.engine) as session:
            return session.get_one(Item, row(i)).name

    def list(self, i: int) -> int:
        with Session(self.engine) as session:
            return len(session.scalars(page_of(Item, i)).all())

    def insert(self, i: int) -> None:
        with Session(self.engine) as session:
            session.add(Item(n=0, name=NAME))
            session.commit()

    def change(self, i: int) -> None:
        with Session(self.engine) as session:
            session.get_one(Item, row(i)).n += 1
            session.commit()


class SyncCore(SyncPeer):
    way: ClassVar[Way] = "core"

    def get(self, i: int) -> str:
        with self.engine.begin() as connection:
            found = connection.execute(select(item).where(item.c.id == row(i)))
            return str(found.one().name)

    def list(self, i: int) -> int:
        with self.engine.begin() as connection:
            return len(connection.execute(page_of(item, i)).all())

    def insert(self, i: int) -> None:
        with self.engine.begin() as connection:
            connection.execute(insert(item).values(n=0, name=NAME))

    def change(self, i: int) -> None:
        with self.engine.begin() as connection:
            found = connection.execute(select(item.c.n).where(item.c.id == row(i)))
            connection.execute(
                update(item).where(item.c.id == row(i)).values(n=found.scalar_one() + 1)
            )
