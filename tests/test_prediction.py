"""The prediction whether a transaction that begins with a SELECT will write."""

from __future__ import annotations

import asyncio
import sys

import pytest
from eager import start_tasks_eagerly
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.util import greenlet_spawn

from qsession import create_async_engine
from qsession.sqlite.transaction.prediction import READ_ONLY_RUNS, Prediction, call_site
from qsession.sqlite.transaction.recent import TEXTS

READ = text("SELECT value FROM items")
WRITE = text("UPDATE items SET value = value + 1")


def test_a_text_is_a_writer_until_it_has_proved_otherwise() -> None:
    """Sixteen transactions in a row that wrote nothing make it a reader."""
    prediction = Prediction()
    for _ in range(READ_ONLY_RUNS):
        assert prediction.writes("SELECT a")
        prediction.note("SELECT a", wrote=False)
    assert not prediction.writes("SELECT a")
    assert prediction.writes("SELECT b")


def test_one_write_sets_it_back() -> None:
    """A single transaction that writes makes it a writer for sixteen more."""
    prediction = Prediction()
    for _ in range(READ_ONLY_RUNS + 5):
        prediction.note("SELECT a", wrote=False)
    prediction.note("SELECT a", wrote=True)
    for _ in range(READ_ONLY_RUNS):
        assert prediction.writes("SELECT a")
        prediction.note("SELECT a", wrote=False)
    assert not prediction.writes("SELECT a")


def test_the_table_is_bounded_and_forgets_the_least_used() -> None:
    """A text that is in use stays known among any number of others."""
    prediction = Prediction()
    for _ in range(READ_ONLY_RUNS):
        prediction.note("SELECT kept", wrote=False)
    for n in range(3 * TEXTS):
        prediction.note(f"SELECT {n}", wrote=False)
        if n % 100 == 0:
            prediction.note("SELECT kept", wrote=False)
    assert len(prediction) == TEXTS
    assert not prediction.writes("SELECT kept")
    prediction.note("SELECT of a writer", wrote=True)
    assert len(prediction) == TEXTS


def test_a_place_that_only_reads_is_told_from_one_that_writes() -> None:
    """Where a text begins both, what counts is what it did at the same place."""
    prediction = Prediction()
    assert not prediction.knows("SELECT a")
    prediction.note("SELECT a", wrote=False)
    assert prediction.knows("SELECT a")
    for _ in range(READ_ONLY_RUNS):
        assert prediction.writes("SELECT a", 1)
        prediction.note("SELECT a", wrote=False, site=1)
        prediction.note("SELECT a", wrote=True, site=2)
    assert not prediction.writes("SELECT a", 1)
    assert prediction.writes("SELECT a", 2)
    assert prediction.writes("SELECT a")


def test_a_place_that_has_written_is_a_reader_by_its_text_only() -> None:
    """One that writes now and then, beside others that do, would meet a conflict each time."""
    prediction = Prediction()
    prediction.note("SELECT a", wrote=True, site=1)
    for _ in range(READ_ONLY_RUNS):
        assert prediction.writes("SELECT a", 1)
        prediction.note("SELECT a", wrote=False, site=1)
    assert not prediction.writes("SELECT a", 1)
    prediction.note("SELECT a", wrote=True, site=2)
    for _ in range(3 * READ_ONLY_RUNS):
        prediction.note("SELECT a", wrote=False, site=1)
        prediction.note("SELECT a", wrote=True, site=2)
        assert prediction.writes("SELECT a", 1)


def test_a_place_that_writes_is_not_a_reader_by_its_text() -> None:
    """However often the text only reads at other places."""
    prediction = Prediction()
    for _ in range(READ_ONLY_RUNS):
        prediction.note("SELECT a", wrote=False, site=1)
    assert not prediction.writes("SELECT a", 2)
    prediction.note("SELECT a", wrote=True, site=2)
    for _ in range(READ_ONLY_RUNS):
        prediction.note("SELECT a", wrote=False, site=1)
    assert not prediction.writes("SELECT a", 1)
    assert prediction.writes("SELECT a", 2)
    assert not prediction.writes("SELECT a", 3)


def test_the_table_of_places_is_bounded() -> None:
    """It has as many as that of the texts, and takes no room from it."""
    prediction = Prediction()
    for n in range(3 * TEXTS):
        prediction.note("SELECT a", wrote=n % 2 == 0, site=n)
    assert len(prediction._sites) == TEXTS
    assert len(prediction) == 1


def test_what_only_writes_is_not_known() -> None:
    """It takes no place in the table, and its callers are not looked at."""
    prediction = Prediction()
    prediction.note("SELECT a", wrote=True)
    assert not prediction.knows("SELECT a")
    assert len(prediction) == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans())))
def test_it_counts_runs_and_nothing_else(history: list[tuple[str, bool]]) -> None:
    """Whatever happened before, only the last run of read-only transactions counts."""
    prediction = Prediction()
    runs = dict.fromkeys("abc", 0)
    for each, wrote in history:
        prediction.note(each, wrote)
        runs[each] = 0 if wrote else runs[each] + 1
    for each, run in runs.items():
        assert prediction.writes(each) == (run < READ_ONLY_RUNS)


def test_what_a_reader_refused_is_remembered() -> None:
    """Such a text writes whenever it is run; the one not met for longest is forgotten first."""
    prediction = Prediction()
    for number in range(TEXTS):
        prediction.note_refused(f"DELETE {number}")
    prediction.note_refused("DELETE 0")
    prediction.note_refused("DELETE new")
    assert prediction.is_refused("DELETE 0")
    assert prediction.is_refused("DELETE new")
    assert not prediction.is_refused("DELETE 1")


async def test_a_call_site_is_told_by_all_its_callers() -> None:
    """The line that runs the statement, and the lines that lead there; and the text."""

    async def site(of: str = "SELECT a") -> int:
        return await greenlet_spawn(call_site, of)

    async def through() -> int:
        return await site()

    found = {await site(), await site(), await through(), await through(), await site("SELECT b")}
    assert len(found) == 5
    assert len({await site() for _ in range(3)}) == 1
    assert len({await through() for _ in range(3)}) == 1


@pytest.mark.skipif(sys.version_info < (3, 12), reason="there are no eager tasks before 3.12")
async def test_who_made_an_eager_task_is_not_its_call_site() -> None:
    """It begins beneath the line that makes it, which is not one that waits for it."""
    start_tasks_eagerly()

    async def site() -> int:
        return await greenlet_spawn(call_site, "SELECT a")

    here = await asyncio.create_task(site())
    there = await asyncio.create_task(site())
    assert here == there


@pytest.mark.parametrize("by", ["session", "connection"])
async def test_who_only_reads_does_not_wait_for_those_who_begin_alike(tmp_path, by) -> None:
    """One function reads, another reads the same and then writes: only that one waits."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}", stall_after=3600)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE items (value INTEGER)"))
        await connection.execute(text("INSERT INTO items VALUES (0)"))

    def begin():
        return AsyncSession(engine) if by == "session" else engine.connect()

    async def look() -> int:
        async with begin() as doing:
            return (await doing.execute(READ)).scalar_one()

    async def change() -> int:
        async with begin() as doing:
            value = (await doing.execute(READ)).scalar_one()
            await doing.execute(WRITE)
            await doing.commit()
            return value

    for _ in range(READ_ONLY_RUNS + 1):
        await asyncio.create_task(look())
        await asyncio.create_task(change())
    async with begin() as holder:
        await holder.execute(WRITE)
        changes = [asyncio.create_task(change()) for _ in range(3)]
        assert await asyncio.wait_for(asyncio.create_task(look()), 10) == READ_ONLY_RUNS + 1
        assert engine.stats().waiting == 3
        await holder.commit()
    assert sorted(await asyncio.gather(*changes)) == [READ_ONLY_RUNS + n for n in (2, 3, 4)]
    assert engine.stats().conflicts == 0
    await engine.dispose()
