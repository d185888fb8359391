"""The tables: who is in a chat, what was paid, and what each expense changed."""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKeyConstraint, String
from sqlalchemy.orm import Mapped, mapped_column

from qsession import Base
from qsession.ext.aiogram_states import state_table


class Member(Base):
    """Somebody who shares the expenses of a chat."""

    __tablename__ = "members"

    chat: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    user: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    balance: Mapped[int] = mapped_column(default=0)
    """In cents: what the others owe, or what is owed to them if it is below zero."""


class Expense(Base):
    """What somebody paid for all. Telegram may send a message twice; its number is noted once."""

    __tablename__ = "expenses"

    chat: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    message: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    payer: Mapped[int] = mapped_column(BigInteger)
    cents: Mapped[int]
    what: Mapped[str] = mapped_column(String(200))


class Entry(Base):
    """What an expense changed in the balance of a member. The entries of an expense add up to 0."""

    __tablename__ = "entries"
    __table_args__ = (
        ForeignKeyConstraint(["chat", "message"], ["expenses.chat", "expenses.message"]),
        ForeignKeyConstraint(["chat", "user"], ["members.chat", "members.user"]),
    )

    chat: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    message: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    user: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    cents: Mapped[int]


state_table.to_metadata(Base.metadata)
