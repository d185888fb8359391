"""Transactions in two phases (``twophase=True``): as isolated as others, and ended as they are.

On MySQL and MariaDB only: PostgreSQL has to be set up for it (``max_prepared_transactions``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from contract_tables import Counter, Database, Meeting, told
from sqlalchemy import update

from qsession import ConflictError, QSession, QueuedAsyncEngine
from qsession.session.maker import SessionMaker

Make = Callable[..., QueuedAsyncEngine]

pytestmark = [pytest.mark.servers, pytest.mark.only("mysql")]


@pytest.fixture
def two_phases(engine: QueuedAsyncEngine) -> SessionMaker:
    """Makes sessions whose transactions are committed in two phases."""
    return SessionMaker(bind=engine, twophase=True)


async def test_no_update_is_lost(two_phases: SessionMaker, database: Database) -> None:
    """Two transactions have read the same row before either writes: one of them runs again."""
    meeting, attempts = Meeting(2), []

    async def meet(s: QSession) -> None:
        attempts.append(1)
        counter = await s.get_one(Counter, 1)
        await meeting.wait()
        counter.value += 1

    await asyncio.gather(two_phases.run(meet), two_phases.run(meet))
    assert await database.values() == [2, 0]
    assert len(attempts) > 2
    stats = two_phases.engine.stats()
    assert (stats.commits, stats.conflicts) == (2, len(attempts) - 2)


@pytest.mark.parametrize(
    ("access", "isolation", "expected"),
    [
        ("write", None, ("SERIALIZABLE", False)),
        ("write", "READ COMMITTED", ("READ COMMITTED", False)),
        ("read", None, ("REPEATABLE READ", True)),
    ],
)
async def test_the_server_is_told_the_level(
    two_phases: SessionMaker, database: Database, access: Any, isolation: Any, expected: Any
) -> None:
    """What the server knows of a transaction is what the session was made with."""
    async with two_phases(access=access, isolation=isolation) as s:
        await s.get(Counter, 1)
        assert await told(s, database) == expected


@pytest.mark.parametrize("first", [False, True], ids=["one phase", "two phases"])
async def test_a_conflict_leaves_nothing_to_the_next(
    make: Make, database: Database, first: bool
) -> None:
    """After the rollback of a refused transaction its connection serves others in two phases."""
    engine = make(connect_args={"init_command": "SET innodb_lock_wait_timeout = 1"}, max_size=1)
    maker = SessionMaker(bind=engine)
    async with database.outside.begin() as holder:
        await holder.execute(update(Counter).where(Counter.id == 1).values(value=1))
        async with maker(twophase=first) as s:
            with pytest.raises(ConflictError, match="1205"):
                await s.execute(update(Counter).where(Counter.id == 1).values(value=2))
            with pytest.raises(ConflictError, match="already"):
                await s.commit()
            await s.rollback()
    async with maker.begin(twophase=True) as s:
        await s.execute(update(Counter).where(Counter.id == 2).values(value=2))
    assert await database.values() == [1, 2]


async def test_the_loser_of_a_deadlock_can_be_rolled_back(
    two_phases: SessionMaker, database: Database
) -> None:
    """Two transactions wait for each other; the one that is refused ends, and both are done."""
    meeting = Meeting(2)

    async def both(s: QSession, first: int, second: int) -> None:
        for number in (first, second):
            await s.execute(
                update(Counter).where(Counter.id == number).values(value=Counter.value + 1)
            )
            if number == first:
                await meeting.wait()

    await asyncio.gather(two_phases.run(both, 1, 2), two_phases.run(both, 2, 1))
    assert await database.values() == [2, 2]
