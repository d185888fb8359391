"""Frozen snapshots of the queue, and the histograms they are made from."""

from __future__ import annotations

import asyncio
from dataclasses import FrozenInstanceError

import pytest
from engines import Make
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from qsession.statistics import Histogram, HistogramRecorder, Holder

SECONDS = st.floats(min_value=0, max_value=1000)


def histogram(times: list[float]) -> Histogram:
    """The picture of some times."""
    recorder = HistogramRecorder()
    for seconds in times:
        recorder.observe(seconds)
    return recorder.freeze()


def test_an_empty_histogram() -> None:
    """Without observations everything is zero."""
    empty = histogram([])
    assert (empty.count, empty.total, empty.maximum, empty.quantile(0.99)) == (0, 0, 0, 0)


@given(st.lists(SECONDS, min_size=1), st.floats(min_value=0, max_value=1))
def test_quantiles_are_upper_bounds(times: list[float], q: float) -> None:
    """A quantile is never below the true one, and never above twice that or the first bucket."""
    picture = histogram(times)
    ordered = sorted(times)
    true = ordered[max(0, -int(-q * len(times) // 1) - 1)]
    assert picture.count == len(times)
    assert picture.total == pytest.approx(sum(times))
    assert picture.maximum == max(times)
    assert true <= picture.quantile(q) <= max(2 * true, picture.bounds[0]) or true > 50


def test_counts_fall_into_their_buckets() -> None:
    """A time that equals a bound lies below it; one past the last bound is kept as well."""
    picture = histogram([0.0, 0.0001, 0.00011, 1e9])
    assert picture.counts[0] == 2
    assert picture.counts[1] == 1
    assert picture.counts[-1] == 1
    assert len(picture.counts) == len(picture.bounds) + 1


def test_a_holder_in_words() -> None:
    """It says who, how long, what it did, and where it stands."""
    holder = Holder("task 'Ann'", held=1.234, wrote=True, statement="SELECT 1", where="a.py:3 in f")
    assert str(holder) == (
        "task 'Ann' has held the ticket for 1.23 s and has written; its last statement was "
        "'SELECT 1'; it is now at a.py:3 in f"
    )


async def test_an_engine_tells_what_it_does(make: Make) -> None:
    """Commits, waits and the holder are counted, and the snapshot does not change."""
    engine = make()
    before = engine.stats()
    with pytest.raises(FrozenInstanceError):
        before.commits = 5  # type: ignore[misc]
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE t (a)"))
        during = engine.stats()
        assert during.holder is not None
        assert during.holder.statement == "CREATE TABLE t (a)"
        assert during.holder.wrote
        assert "test_statistics.py" in during.holder.where
    async with engine.begin() as connection:
        await connection.execute(text("INSERT INTO t VALUES (1)"))
        other = asyncio.create_task(engine.connect().start())
        await (await other).close()
    async with engine.connect() as connection:
        await connection.execute(text("SELECT * FROM t"))
    after = engine.stats()
    assert (before.commits, after.commits, after.acquired) == (0, 2, 3)
    assert (after.waiting, after.holder, after.timeouts, after.conflicts) == (0, None, 0, 0)
    assert after.waits.count == after.holds.count == 3
    assert after.predicted == 1
