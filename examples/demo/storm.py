"""Many tasks move money at once while one export is read slowly, all through plain ORM sessions.

The code knows nothing of the engine beneath it. What went wrong is counted, not repaired.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import insert, select
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from examples.demo.models import Account, Transfer

ACCOUNTS = 20
OPENING = 1_000_00
OLDER = 6_000
"""Transfers that are in the file when the storm begins, for the export to read."""
CHUNK = 100
PAUSE = 0.1
"""Seconds for which the client of the export takes its time over a chunk: 6 s for all of them."""
CHECK = 0.001
"""Seconds that a transfer waits for a check of some other service, between reading and writing."""
GRACE = 6.0
"""Seconds that transfers under way at the end may take to finish."""


@dataclass
class Outcome:
    """What one storm did, as it was measured."""

    seconds: float = 0.0
    committed: int = 0
    """Transfers that succeeded; when all is over, those that are in the file."""
    locked: int = 0
    other_errors: int = 0
    """Transfers that failed so, and otherwise."""
    times: list[float] = field(default_factory=list)
    exported: int = 0
    """Rows that the client of the export has got."""
    wrong_accounts: int = 0
    astray: int = 0
    """Cents by which the balances differ from what the transfers say."""

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
    await fill(sessions)
    outcome = Outcome()
    started = time.perf_counter()
    workers = [
        asyncio.create_task(export(sessions, outcome)),
        *(asyncio.create_task(work(sessions, started + seconds, outcome)) for _ in range(tasks)),
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


async def fill(sessions: async_sessionmaker[AsyncSession]) -> None:
    """Accounts, and older transfers: each account pays the next one the same sum, in turn."""
    async with sessions.begin() as session:
        session.add_all(Account(owner=f"owner {n}", balance=OPENING) for n in range(ACCOUNTS))
        await session.flush()
        await session.execute(
            insert(Transfer),
            [
                {"source_id": n % ACCOUNTS + 1, "target_id": (n + 1) % ACCOUNTS + 1, "amount": 1}
                for n in range(OLDER)
            ],
        )


async def export(sessions: async_sessionmaker[AsyncSession], outcome: Outcome) -> None:
    """Stream the older transfers to a client that is in no hurry, as an endpoint for CSV would."""
    older = select(Transfer).where(Transfer.id <= OLDER).order_by(Transfer.id)
    async with sessions() as session:
        rows = await session.stream_scalars(older.execution_options(yield_per=CHUNK))
        async for chunk in rows.partitions():
            outcome.exported += len(chunk)
            await asyncio.sleep(PAUSE)


@contextmanager
def counted(outcome: Outcome) -> Iterator[None]:
    """Count what SQLAlchemy raises."""
    try:
        yield
    except OperationalError as error:
        if "database is locked" in str(error):
            outcome.locked += 1
        else:
            outcome.other_errors += 1
    except SQLAlchemyError:
        outcome.other_errors += 1


async def work(sessions: async_sessionmaker[AsyncSession], end: float, outcome: Outcome) -> None:
    while (began := time.perf_counter()) < end:
        with counted(outcome):
            await transfer(sessions)
            outcome.committed += 1
        outcome.times.append(time.perf_counter() - began)


async def transfer(sessions: async_sessionmaker[AsyncSession]) -> None:
    """Read two accounts, ask somebody, change them in Python, write: as an application would."""
    source_id, target_id = random.sample(range(1, ACCOUNTS + 1), 2)
    amount = random.randint(1, 5_00)
    async with sessions() as session:
        source = await session.get_one(Account, source_id)
        target = await session.get_one(Account, target_id)
        await asyncio.sleep(CHECK)
        source.balance -= amount
        target.balance += amount
        session.add(Transfer(source_id=source_id, target_id=target_id, amount=amount))
        await session.commit()


async def add_up(sessions: async_sessionmaker[AsyncSession], outcome: Outcome) -> None:
    """Compare each balance with the transfers on record: any difference is a lost update."""
    async with sessions() as session:
        accounts = (await session.scalars(select(Account))).all()
        transfers = (await session.scalars(select(Transfer))).all()
    outcome.committed = len(transfers) - OLDER
    moved: Counter[int] = Counter()
    for transfer in transfers:
        moved[transfer.source_id] -= transfer.amount
        moved[transfer.target_id] += transfer.amount
    for account in accounts:
        expected = OPENING + moved[account.id]
        outcome.wrong_accounts += account.balance != expected
        outcome.astray += abs(expected - account.balance)
