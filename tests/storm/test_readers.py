"""Readers beside a writer that holds its transaction open, and beside a long queue of writers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from tables import NEVER, STUCK, Event, Storm, add, read

pytestmark = pytest.mark.storm
WRITERS = 1_000


@asynccontextmanager
async def somebody_writes(on: Storm) -> AsyncIterator[None]:
    """Another task has added 1 to the first counter, and commits only when the block ends."""
    wrote, go_on = asyncio.Event(), asyncio.Event()

    async def write() -> None:
        async with on.session() as session:
            await add(session)
            wrote.set()
            await go_on.wait()
            await session.commit()

    task = asyncio.create_task(write())
    await asyncio.wait_for(wrote.wait(), STUCK)
    try:
        yield
        holder = on.engine.stats().holder
        assert holder is not None
        assert holder.wrote
        assert on.values() == [0, 0]
    finally:
        go_on.set()
        await task
    assert on.values() == [1, 0]


@pytest.mark.parametrize("known", ["by its access", "by prediction"])
async def test_a_known_reader_does_not_wait(storm: Callable[..., Storm], known: str) -> None:
    """A transaction known as a reader is answered beside the writer; nobody gives way for that."""
    on = storm(stall_after=NEVER)
    if known == "by prediction":
        await on.learn()
    async with somebody_writes(on):
        session = on.reader if known == "by its access" else on.guessing
        assert await asyncio.wait_for(read(session), STUCK) == 0


async def test_an_unknown_reader_waits(storm: Callable[..., Storm]) -> None:
    """One that may still write takes its turn, and reads what the writer before it has left."""
    on = storm(stall_after=NEVER)
    async with somebody_writes(on):
        reading = asyncio.create_task(read(on.session))
        await on.waiting(1)
        assert not reading.done()
    assert await asyncio.wait_for(reading, STUCK) == 1


async def test_an_unknown_reader_waits_no_longer_than_for_a_stall(
    storm: Callable[..., Storm],
) -> None:
    """When the writer idles for longer than ``stall_after``, the reader goes without the ticket."""
    on = storm(stall_after=0.05)
    async with somebody_writes(on):
        assert await asyncio.wait_for(read(on.guessing), STUCK) == 0


async def test_a_thousand_queued_writers_do_not_delay_a_read(storm: Callable[..., Storm]) -> None:
    """A read is answered while 1,000 writers wait, all of them still, and with one reader only."""
    on = storm(stall_after=NEVER, pool_size=1, max_overflow=0)

    async def insert(number: int) -> None:
        async with on.session() as session:
            session.add(Event(name=f"event {number}"))
            await session.commit()

    async with somebody_writes(on):
        writers = [asyncio.create_task(insert(number)) for number in range(WRITERS)]
        await on.waiting(WRITERS)
        assert await asyncio.wait_for(read(on.reader), STUCK) == 0
        assert on.engine.stats().waiting == WRITERS
        assert not any(each.done() for each in writers)
    await asyncio.gather(*writers)
    assert on.query("SELECT count(*) FROM events") == [(WRITERS,)]
