"""A process of the crash storm, until it is killed.

Arguments: the file, how many tasks, a seed. Each task moves money between accounts: it reads two
rows, changes both and writes the transfer down. As soon as commit() has returned it says so on
standard output, a line at once.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import warnings
from contextlib import suppress
from itertools import count

from sqlalchemy import ForeignKey
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from qsession import ConflictError, QSession, UncommittedChangesWarning, create_async_engine

ACCOUNTS = 5
START = 1000


class Base(DeclarativeBase):
    """The tables."""


class Account(Base):
    """Somebody's money."""

    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True)
    balance: Mapped[int]


class Transfer(Base):
    """What was moved."""

    __tablename__ = "transfers"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    giver: Mapped[int] = mapped_column(ForeignKey(Account.id))
    taker: Mapped[int] = mapped_column(ForeignKey(Account.id))
    amount: Mapped[int]


async def transfer(session: AsyncSession, name: str, chance: random.Random) -> None:
    """Move money and write that down, in a few statements."""
    giver, taker = chance.sample(range(1, ACCOUNTS + 1), 2)
    amount = chance.randrange(100)
    accounts = {each: await session.get_one(Account, each) for each in (giver, taker)}
    accounts[giver].balance -= amount
    await session.flush()
    if chance.random() < 0.2:
        await asyncio.sleep(0)
    accounts[taker].balance += amount
    session.add(Transfer(name=name, giver=giver, taker=taker, amount=amount))


async def work(engine, task: int, chance: random.Random) -> None:
    """Transfers without an end. A session of SQLAlchemy's may lose a race where a process that
    holds the turn stands still, and says so; one of ours may not.
    """
    kind, may_conflict = ((AsyncSession, ConflictError), (QSession, ()))[task % 2]
    for number in count():
        name = f"{os.getpid()}.{task}.{number}"
        with suppress(may_conflict):
            async with kind(engine) as session:
                await transfer(session, name, chance)
                if chance.random() < 0.05:
                    continue
                await session.commit()
            os.write(1, f"{name}\n".encode())


async def main(path: str, tasks: int, seed: str) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with QSession(engine) as session:
        if await session.get(Account, 1) is None:
            session.add_all(Account(id=each + 1, balance=START) for each in range(ACCOUNTS))
            await session.commit()
    chances = [random.Random(f"{seed}.{task}") for task in range(tasks)]
    await asyncio.gather(*(work(engine, task, each) for task, each in enumerate(chances)))


if __name__ == "__main__":
    warnings.simplefilter("ignore", UncommittedChangesWarning)  # some leave on purpose
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
