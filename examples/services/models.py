"""The tables that all services share."""

from __future__ import annotations

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from qsession import Base


class Customer(Base):
    """Somebody who has been charged."""

    __tablename__ = "customers"

    name: Mapped[str] = mapped_column(primary_key=True)
    spent: Mapped[int] = mapped_column(default=0)
    """In cents, as all amounts."""


class Order(Base):
    """An order, and the job that it is to the services: "new", "charged", then "invoiced"."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    item: Mapped[str]
    cents: Mapped[int]
    state: Mapped[str] = mapped_column(default="new", index=True)
    taken_until: Mapped[float] = mapped_column(default=0.0)
    """Until then, in seconds since 1970, the order belongs to the process that has set this."""


class Summary(Base):
    """What was invoiced on one day."""

    __tablename__ = "summaries"

    id: Mapped[int] = mapped_column(primary_key=True)
    made: Mapped[float]
    invoices: Mapped[int]
    cents: Mapped[int]


class Invoice(Base):
    """The invoice of an order. The numbers have no gaps."""

    __tablename__ = "invoices"

    number: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))
    cents: Mapped[int]
    text: Mapped[str]
    summary_id: Mapped[int | None] = mapped_column(ForeignKey("summaries.id"), index=True)
