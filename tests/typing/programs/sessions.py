"""An application on qsession(): sessions, readers, transactions that are run again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from typing_extensions import assert_type

from qsession import QSession, QueuedAsyncEngine, create_async_engine, qsession
from qsession.session import SessionMaker


class Base(DeclarativeBase):
    """A base of the application's own."""


class Account(Base):
    """A table."""

    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True)
    balance: Mapped[int]


qsession.configure("sqlite+aiosqlite:///bank.db", durability="normal", expire_on_commit=False)
assert_type(qsession, SessionMaker)
assert_type(qsession.engine, QueuedAsyncEngine)
other = SessionMaker("sqlite+aiosqlite:///other.db", access="auto")
third = SessionMaker()
third.configure(bind=create_async_engine("postgresql://localhost/bank"))


async def add(account: Account) -> int:
    """A block that commits."""
    async with qsession.begin() as s:
        assert_type(s, QSession)
        s.add(account)
        await s.flush()
        async with s.begin_nested():
            account.balance += 1
        return account.id


async def transfer(s: QSession, source: int, target: int, amount: int = 1) -> Account:
    """A function for run()."""
    one = await s.get_one(Account, source, with_for_update=True)
    two = await s.get_one(Account, target)
    one.balance -= amount
    two.balance += amount
    return one


async def repository(s: AsyncSession, number: int) -> Account | None:
    """One that knows SQLAlchemy's session only."""
    return await s.get(Account, number)


@qsession.transactional
async def deposit(s: QSession, number: int, *, amount: int) -> int:
    """Callers leave the session out."""
    account = await s.get_one(Account, number)
    account.balance += amount
    return account.balance


@qsession.transactional(attempts=3, access="auto")
async def close(s: QSession, number: int) -> None:
    """With options."""
    await s.delete(await s.get_one(Account, number))


def count(session: Session, least: int) -> int:
    """For run_sync()."""
    return len(session.scalars(select(Account).where(Account.balance >= least)).all())


async def main() -> None:
    """Each call."""
    async with qsession() as s:
        assert_type(s, QSession)
        s.add_all([Account(id=1, balance=0), Account(id=2, balance=0)])
        await s.commit()
        assert_type(await s.run_sync(count, 5), int)
        balance: int | None = await s.scalar(select(Account.balance))
        print(balance)
        await asyncio.gather(s.execute(text("SELECT 1")), s.get(Account, 1))
    async with qsession(access="auto") as s, s.begin():
        s.add(Account(id=3, balance=0))
    async with qsession.reader() as reader:
        assert_type(reader, QSession)
        found = (await reader.scalars(select(Account))).all()
        assert_type(found, Sequence[Account])
        async for account in await reader.stream_scalars(select(Account)):
            assert_type(account, Account)
        rows = await reader.stream(select(Account.id))
        async for row in rows:
            print(row.id)
    assert_type(await qsession.run(transfer, 1, 2), Account)
    assert_type(await qsession.run(transfer, 1, 2, amount=5, attempts=3), Account)
    assert_type(await qsession.run(repository, 1), "Account | None")
    assert_type(await deposit(1, amount=5), int)
    closing: Callable[[int], Coroutine[Any, Any, None]] = close
    await closing(1)
    await qsession.upgrade("head", config="alembic.ini", backup="before.db")
    await qsession.dispose()


asyncio.run(main())


async def mistakes() -> None:
    """Each line is one."""
    await qsession.run(transfer, "1", 2)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await qsession.run(transfer)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await qsession.run(count, 1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await deposit(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await deposit(QSession(), 1)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    QSession(access="wrong")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    SessionMaker(class_=AsyncSession)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
