"""The table for SQLAlchemy."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, String, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from .peer import PAGE, start_of_page


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"

    id: Mapped[int] = mapped_column(primary_key=True)
    n: Mapped[int]
    name: Mapped[str] = mapped_column(String(40))


item: Any = Item.__table__


def page_of(what: Any, i: int) -> Select[Any]:
    """The i-th page: `PAGE` rows in the order of their keys."""
    return select(what).where(item.c.id > start_of_page(i)).order_by(item.c.id).limit(PAGE)
