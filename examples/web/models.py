"""The table of the list."""

from __future__ import annotations

from sqlalchemy.orm import Mapped, mapped_column

from qsession import Base


class Thing(Base):
    """A line of the list."""

    __tablename__ = "things"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    amount: Mapped[int]
    bought: Mapped[bool] = mapped_column(default=False)
