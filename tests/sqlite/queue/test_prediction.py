"""The prediction whether a transaction that begins with a SELECT will write."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import pytest
from cancelling import PATIENCE, Bench, Item, eventually, rows
from eager import start_tasks_eagerly
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.util import await_only, greenlet_spawn

from qsession import ConflictError
from qsession.sqlite.driver.recent import TEXTS
from qsession.sqlite.queue.prediction import (
    AFTER_CONFLICT,
    FORGETS,
    LEARNT,
    Guess,
    Prediction,
    Record,
    call_site,
)

NEVER = 3600.0
READS, VALIDATES, TICKET_FIRST = Guess.READS, Guess.VALIDATES, Guess.TICKET_FIRST

GUESSES: list[tuple[str, Record, Guess]] = [
    ("a site not seen before takes the ticket first", Record(), TICKET_FIRST),
    ("so does one that is not known well", Record(LEARNT - 1), TICKET_FIRST),
    ("one that never wrote is a reader", Record(LEARNT), READS),
    ("however often it idled", Record(100, idled=100), READS),
    ("one that always writes takes the ticket first", Record(100, 100), TICKET_FIRST),
    ("one that writes half of the time does, too", Record(100, 50), TICKET_FIRST),
    ("one that writes less often is validated", Record(100, 49), VALIDATES),
    ("also if it wrote only once", Record(100, 1), VALIDATES),
    ("one that idles before each second write is validated", Record(100, 100, 50), VALIDATES),
    ("one that idles less often takes the ticket first", Record(100, 100, 49), TICKET_FIRST),
    ("after a conflict a reader takes the ticket first", Record(100, forced=1), TICKET_FIRST),
    ("and one that writes at times", Record(100, 1, forced=1), TICKET_FIRST),
]


@pytest.mark.parametrize(
    ("record", "guess"), [pytest.param(*row, id=sentence) for sentence, *row in GUESSES]
)
def test_what_the_next_one_does(record: Record, guess: Guess) -> None:
    """By what the ones before did at the same call site."""
    assert record.guess() is guess


def test_a_conflict_is_remembered_for_a_thousand_transactions() -> None:
    """Each of them has the ticket before it reads, so it meets no conflict."""
    prediction = Prediction()
    for _ in range(LEARNT):
        prediction.note(1, wrote=False, idled=False)
    assert prediction.guess(1) is READS
    prediction.note_conflict(1)
    for _ in range(AFTER_CONFLICT):
        assert prediction.guess(1) is TICKET_FIRST
        prediction.note(1, wrote=False, idled=False)
    assert prediction.guess(1) is READS


def test_what_was_long_ago_counts_less() -> None:
    """A site that has changed its ways is known for the new ones after a while."""
    record = Record()
    for _ in range(FORGETS):
        record.note(wrote=True, idled=False)
    assert record.guess() is TICKET_FIRST
    for _ in range(2 * FORGETS):
        record.note(wrote=False, idled=False)
    assert record.guess() is VALIDATES


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=3 * FORGETS))
def test_counts_are_bounded(history: list[tuple[bool, bool]]) -> None:
    """Whatever a site did: and one that has ever written is never taken for a mere reader."""
    record = Record()
    for wrote, idled in history:
        record.note(wrote, idled)
        assert record.wrote <= record.runs <= FORGETS
    if any(wrote for wrote, _ in history):
        assert record.guess() is not READS


def test_the_table_is_bounded_and_forgets_the_least_used() -> None:
    """A site that is in use stays known among any number of others."""
    prediction = Prediction()
    for _ in range(LEARNT):
        prediction.note(-1, wrote=False, idled=False)
    for site in range(3 * TEXTS):
        prediction.note(site, wrote=False, idled=False)
        if site % 100 == 0:
            prediction.note(-1, wrote=False, idled=False)
        if site % 7 == 0:
            prediction.note_conflict(site)
    assert len(prediction) == TEXTS
    assert prediction.guess(-1) is READS
    assert prediction.guess(0) is TICKET_FIRST


# The call site.


async def site() -> int:
    return await greenlet_spawn(call_site)


async def through() -> int:
    return await site()


async def test_a_call_site_is_told_by_all_its_callers() -> None:
    """The line that runs the statement, and the lines that lead there."""
    found = {await site(), await site(), await through(), await through()}
    assert len(found) == 4
    assert len({await site() for _ in range(3)}) == 1
    assert len({await through() for _ in range(3)}) == 1


async def test_who_has_waited_in_the_same_call_is_at_the_same_site() -> None:
    """A session that waited for something before its SELECT does not begin somewhere else."""

    def late() -> int:
        await_only(asyncio.sleep(0))
        return call_site()

    found = {await greenlet_spawn(begin) for begin in (call_site, late)}
    assert len(found) == 1


@pytest.mark.skipif(sys.version_info < (3, 12), reason="there are no eager tasks before 3.12")
async def test_who_made_an_eager_task_is_not_its_call_site() -> None:
    """It begins beneath the line that makes it, which is not one that waits for it."""
    start_tasks_eagerly()
    here = await asyncio.create_task(site())
    there = await asyncio.create_task(site())
    assert here == there


# On an engine.

VALUE = select(Item.value).where(Item.id == 1)
ADD = update(Item).where(Item.id == 1).values(value=Item.value + 1)


@pytest.fixture
async def bench(tmp_path):
    """An engine that takes no ticket away because of time."""
    made = await Bench.ready(tmp_path / "app.db", stall_after=NEVER, pool_size=5)
    yield made
    await made.check()
    await made.engine.dispose()


async def value(doing: Any, number: int) -> int:
    """Each time with another text, as libraries do that number their parameters."""
    return (await doing.execute(text(f"SELECT value FROM items WHERE id = 1 -- {number}"))).scalar()


@pytest.mark.parametrize("by", ["session", "connection"])
async def test_who_only_reads_does_not_wait_for_those_who_begin_alike(bench, by) -> None:
    """One function reads, another reads the same and then writes: only that one waits."""
    engine = bench.engine

    def begin():
        return AsyncSession(engine) if by == "session" else engine.connect()

    async def look(number: int) -> int:
        async with begin() as doing:
            return await value(doing, number)

    async def change(number: int) -> int:
        async with begin() as doing:
            found = await value(doing, number)
            await doing.execute(ADD)
            await doing.commit()
            return found

    for number in range(LEARNT):
        await asyncio.create_task(look(number))
        await asyncio.create_task(change(number))
    async with begin() as holder:
        await holder.execute(ADD)
        changes = [asyncio.create_task(change(100 + number)) for number in range(3)]
        assert await asyncio.wait_for(asyncio.create_task(look(100)), PATIENCE) == LEARNT
        await eventually(lambda: engine.stats().waiting == 3)
        await holder.commit()
    assert sorted(await asyncio.gather(*changes)) == [LEARNT + n for n in (1, 2, 3)]
    assert engine.stats().conflicts == engine.stats().validations == 0


async def learnt(bench: Bench, transaction: Callable[[], Any]) -> None:
    for _ in range(LEARNT):
        await asyncio.create_task(transaction())


async def test_a_conflict_makes_a_site_take_the_ticket_first(bench) -> None:
    """It is a reader that writes for the first time; the next one has the ticket first."""
    writes = False
    interrupted = asyncio.Event()
    gate = asyncio.Event()

    async def transaction() -> None:
        async with AsyncSession(bench.engine) as session:
            await session.scalar(VALUE)
            if writes:
                interrupted.set()
                await gate.wait()
                await session.execute(ADD)
                await session.commit()

    await learnt(bench, transaction)
    writes = True
    task = asyncio.create_task(transaction())
    await interrupted.wait()
    async with bench.engine.begin() as other:
        await other.execute(ADD)
    gate.set()
    with pytest.raises(ConflictError):
        await task
    gate.clear()
    interrupted.clear()
    task = asyncio.create_task(transaction())
    await interrupted.wait()
    assert bench.engine.stats().holder is not None
    gate.set()
    await task
    assert rows(bench.path, "SELECT value FROM items WHERE id = 1") == [(2,)]


async def test_the_table_is_in_the_statistics(bench) -> None:
    """How many call sites are known."""

    async def look() -> None:
        async with bench.engine.connect() as connection:
            await connection.execute(VALUE)

    before = bench.engine.stats().predicted
    await look()
    await look()
    assert bench.engine.stats().predicted == before + 2


def test_a_known_site_that_stalls_goes_without_a_ticket_for_a_while() -> None:
    """While nobody waits for them, it is not seen whether its transactions still idle."""
    prediction = Prediction()
    for _ in range(LEARNT):
        prediction.note(1, wrote=True, idled=False)
    assert prediction.guess(1) is Guess.TICKET_FIRST
    assert prediction.note_stall(1)
    prompt = 0
    while prediction.guess(1) is Guess.VALIDATES:
        prediction.note(1, wrote=True, idled=False)
        prompt += 1
    assert prompt == LEARNT + 1
