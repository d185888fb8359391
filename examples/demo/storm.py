"""Many tasks move money at once through plain ORM sessions, and are counted."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from examples.demo.models import Account, Transfer

ACCOUNTS = 20
OPENING = 1_000_00
GRACE = 10.0  # seconds that transfers under way at the end may take to finish


@dataclass
class Outcome:
    """What one storm did, as it was measured."""

    seconds: float = 0.0
    committed: int = 0
    locked: int = 0
    other_errors: int = 0
    times: list[float] = field(default_factory=list)
    wrong_accounts: int = 0
    astray: int = 0

    @property
    def rate(self) -> float:
        return self.committed / self.seconds if self.seconds else 0.0

    def percentile(self, share: float) -> float:
        """The time in seconds within which this share of the transfers ended, well or badly."""
        ordered = sorted(self.times)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


async def storm(
    engine: AsyncEngine, *, tasks: int, seconds: float, tick: Callable[[float, Outcome], None]
) -> Outcome:
    """Let `tasks` tasks transfer money for so many seconds, then add the money up."""
    sessions = async_sessionmaker(engine)
    async with sessions.begin() as session:
        session.add_all(Account(owner=f"owner {n}", balance=OPENING) for n in range(ACCOUNTS))

    outcome = Outcome()
    started = time.perf_counter()
    workers = [
        asyncio.create_task(work(sessions, started + seconds, outcome)) for _ in range(tasks)
    ]
    pending = set(workers)
    while pending and time.perf_counter() < started + seconds + GRACE:
        _, pending = await asyncio.wait(pending, timeout=0.1)
        tick(time.perf_counter() - started, outcome)
    for worker in pending:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    outcome.seconds = time.perf_counter() - started
    await add_up(sessions, outcome)
    return outcome


async def work(sessions: async_sessionmaker[AsyncSession], end: float, outcome: Outcome) -> None:
    while (began := time.perf_counter()) < end:
        try:
            await transfer(sessions)
            outcome.committed += 1
        except OperationalError as error:
            if "database is locked" in str(error.orig):
                outcome.locked += 1
            else:
                outcome.other_errors += 1
        except SQLAlchemyError:
            outcome.other_errors += 1
        outcome.times.append(time.perf_counter() - began)


async def transfer(sessions: async_sessionmaker[AsyncSession]) -> None:
    """Read two accounts, change them in Python, write: as an application would."""
    source_id, target_id = random.sample(range(1, ACCOUNTS + 1), 2)
    amount = random.randint(1, 5_00)
    async with sessions() as session:
        source = await session.get_one(Account, source_id)
        target = await session.get_one(Account, target_id)
        source.balance -= amount
        target.balance += amount
        session.add(Transfer(source_id=source_id, target_id=target_id, amount=amount))
        await session.commit()


async def add_up(sessions: async_sessionmaker[AsyncSession], outcome: Outcome) -> None:
    """Compare each balance with the transfers on record: any difference is a lost update."""
    async with sessions() as session:
        accounts = (await session.scalars(select(Account))).all()
        transfers = (await session.scalars(select(Transfer))).all()
    outcome.committed = len(transfers)
    moved: Counter[int] = Counter()
    for transfer in transfers:
        moved[transfer.source_id] -= transfer.amount
        moved[transfer.target_id] += transfer.amount
    for account in accounts:
        expected = OPENING + moved[account.id]
        outcome.wrong_accounts += account.balance != expected
        outcome.astray += abs(expected - account.balance)
