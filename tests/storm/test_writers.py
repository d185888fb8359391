"""Many tasks write at once: nothing fails, nothing is retried, nothing is lost."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event, update
from sqlalchemy.ext.asyncio import AsyncSession
from tables import READ, STUCK, Counter, Event, Storm, add

from qsession import ConflictError, QueuedAsyncEngine

pytestmark = pytest.mark.storm


@pytest.mark.parametrize("thinking", [None, 0.01], ids=["at once", "after thinking"])
async def test_read_modify_write(storm: Callable[..., Storm], thinking: float | None) -> None:
    """64 tasks add 1 to one row, 10 times each: no error, no retry, and the sum is exact."""
    on = storm(stall_after=STUCK)  # nobody is taken for idle, however slow the machine is

    async def adds() -> None:
        for _ in range(10):
            async with on.session() as session:
                counter = await session.get_one(Counter, 1)
                if thinking is not None:
                    await asyncio.sleep(thinking)  # what an application does in between
                counter.value += 1
                await session.commit()

    await asyncio.gather(*(adds() for _ in range(64)))
    assert on.values() == [640, 0]
    assert on.engine.stats().conflicts == 0
    assert on.engine.stats().commits == 640


def commits_slowly(engine: QueuedAsyncEngine, seconds: float) -> None:
    """From now on every COMMIT in a thread takes so long, as on a disk that is busy."""

    def before(sql: str) -> None:
        if sql == "COMMIT" and threading.current_thread() is not threading.main_thread():
            time.sleep(seconds)

    @event.listens_for(engine.sync_engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        connection.run_async(lambda driver: driver.set_trace_callback(before))


async def test_a_slow_disk_is_no_stall(storm: Callable[..., Storm]) -> None:
    """COMMITs that take longer than ``stall_after``: who waits keeps waiting, nothing is stale."""
    on = storm(stall_after=0.01, access="write")
    commits_slowly(on.engine, 0.05)

    async def adds() -> None:
        for _ in range(3):
            async with on.session() as session:
                await add(session)
                await session.commit()

    await asyncio.gather(*(adds() for _ in range(16)))
    assert on.values() == [48, 0]
    assert on.engine.stats().conflicts == 0


async def test_inserts(storm: Callable[..., Storm]) -> None:
    """1,000 tasks insert a row each: all are there, under the keys that they were told."""
    on = storm()

    async def insert(number: int) -> tuple[int, str]:
        async with on.session() as session:
            session.add(row := Event(name=f"event {number}"))
            await session.flush()
            told = row.id, row.name
            await session.commit()
            return told

    told = await asyncio.gather(*(insert(number) for number in range(1_000)))
    assert sorted(told) == on.query("SELECT id, name FROM events ORDER BY id")
    assert on.engine.stats().conflicts == 0
    assert on.engine.stats().commits == 1_000


class Meeting:
    """Everybody goes on when the last one has come."""

    def __init__(self, members: int) -> None:
        self._missing = members
        self._all_here = asyncio.Event()

    async def attend(self) -> None:
        self._missing -= 1
        if self._missing <= 0:
            self._all_here.set()
        await asyncio.wait_for(self._all_here.wait(), STUCK)


MEMBERS = 16
WRITE = update(Counter).where(Counter.id == 1)
"""Sent whatever the row holds by now; of an ORM object only what differs is written."""


async def test_a_predicted_reader_writes(storm: Callable[..., Storm]) -> None:
    """16 tasks read, as predicted, then all write: the first may, 15 are told."""
    on = storm(pool_size=MEMBERS)
    await on.learn()
    meeting = Meeting(MEMBERS)

    async def try_to_add() -> bool:
        async with on.guessing() as session:
            value = await session.scalar(READ)
            await meeting.attend()
            try:
                await session.execute(WRITE.values(value=value + 1))
                await session.commit()
            except ConflictError:
                await session.rollback()
                return False
            return True

    acknowledged = sum(await asyncio.gather(*(try_to_add() for _ in range(MEMBERS))))
    assert acknowledged == 1
    assert on.values() == [1, 0]
    assert on.engine.stats().conflicts == MEMBERS - 1


async def test_a_predicted_reader_writes_in_run(storm: Callable[..., Storm]) -> None:
    """The same through `run`: whoever read something stale runs again, and all succeed."""
    on = storm(pool_size=MEMBERS)
    await on.learn()
    on.maker.configure(access="auto")
    meeting = Meeting(MEMBERS)
    runs = 0

    async def read_and_add(session: AsyncSession) -> None:
        nonlocal runs
        runs += 1
        value = await session.scalar(READ)
        await meeting.attend()
        await session.execute(WRITE.values(value=value + 1))

    await asyncio.gather(*(on.maker.run(read_and_add) for _ in range(MEMBERS)))
    assert on.values() == [MEMBERS, 0]
    assert runs - MEMBERS == on.engine.stats().conflicts >= MEMBERS - 1
