"""Which statements run on the event loop, and which in a connection's thread."""

from __future__ import annotations

import asyncio
import threading

import pytest
from cancelling import Bench, Mark, assert_free, rows
from sqlalchemy import event, insert, text
from sqlalchemy.ext.asyncio import AsyncSession

from qsession.sqlite.driver import pace
from qsession.sqlite.driver.pace import BUDGET, SHORT, WEIGHT, Pace
from qsession.sqlite.driver.recent import TEXTS
from qsession.sqlite.transaction import plan, sending
from qsession.waiting import pacing

AGES = 3600.0
HERE, THREAD = "loop", "thread"
WRITE = "UPDATE items SET value = value + here('write')"
READ = "SELECT value, here('read') FROM items ORDER BY id"
LONG = (
    "SELECT sum(i), here('long') FROM (WITH RECURSIVE n(i) AS "
    "(SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 300000) SELECT i FROM n)"
)


class Places(Bench):
    """A bench that notes on which threads its statements run."""

    def __init__(self, path, **kw):
        super().__init__(path, **kw)
        self.loop = threading.get_ident()
        self.seen = []
        event.listen(self.engine.sync_engine, "connect", self.listen)

    def listen(self, connection, record):
        connection.raw.create_function("here", 1, self.note)

    def note(self, what):
        self.seen.append((what, HERE if threading.get_ident() == self.loop else THREAD))
        return 1

    def where(self, what):
        """Where it ran since this was asked last, without repetitions."""
        found = dict.fromkeys(place for each, place in self.seen if each == what)
        self.seen.clear()
        return list(found)

    async def write(self, times=1):
        async with self.engine.begin() as connection:
            for _ in range(times):
                await connection.execute(text(WRITE))
        return self.where("write")

    async def read(self, sql=READ):
        async with AsyncSession(self.engine.execution_options(qsession_access="read")) as session:
            found = (await session.execute(text(sql))).all()
        return found, self.where("read" if sql == READ else "long")


@pytest.fixture
async def steady(monkeypatch):
    """A machine that is quick enough for every statement, so that only the rules count."""
    for module, name in ((pace, "BUDGET"), (pace, "SHORT"), (plan, "BUDGET"), (plan, "LONG_WRITE")):
        monkeypatch.setattr(module, name, AGES)


@pytest.fixture
async def bench(tmp_path):
    """An engine whose tables are there."""
    made = await Places.ready(tmp_path / "app.db")
    yield made
    await made.check()
    await made.engine.dispose()
    assert_free(made.path)


# The rules by themselves.


def test_a_text_not_seen_before_starts_in_the_thread():
    """Whatever it is: what SQLite does in one instruction cannot be broken off."""
    assert not Pace(inline=True).inline("t")


def test_a_text_moves_to_the_loop_and_back():
    """It moves when its average is short, and one long run sends it back."""
    times = Pace(inline=True)
    times.note("t", SHORT * 0.9)
    assert times.inline("t")
    times.note("t", BUDGET * 1.01)
    assert not times.inline("t")


def test_long_text_becomes_short_again():
    """After a long run a text must prove short over several runs."""
    times = Pace(inline=True)
    times.note("t", 0.1)
    runs = 0
    while not times.inline("t"):
        times.note("t", 0.0)
        runs += 1
    assert 0.1 * (1 - WEIGHT) ** runs < SHORT <= 0.1 * (1 - WEIGHT) ** (runs - 1)


def test_texts_are_bounded():
    """The text not seen for longest is forgotten."""
    times = Pace(inline=True)
    for number in range(TEXTS + 1):
        times.note(f"t{number}", 0.0)
        times.note("t0" if number < TEXTS else "t1", 0.0)
    assert times.inline("t0")
    assert not times.inline("t2")


@pytest.mark.parametrize(
    ("seconds", "fit"),
    [(0.0, pace.MOST_ROWS), (SHORT / 10, 200), (SHORT * 0.9, 22), (SHORT, 0), (BUDGET, 0)],
)
def test_rows_that_fit_on_the_loop_at_once(seconds, fit):
    """As many as take a short time, by what 20 of them took; none if they are not short."""
    times = Pace(inline=True)
    assert times.rows("t", 20) == 0
    times.note("t", seconds)
    assert times.rows("t", 20) == fit


def test_what_was_broken_off_is_for_the_thread():
    """It has taken its budget and more; the thread tells how long the whole takes."""
    times = Pace(inline=True)
    times.note("t", 0.0)
    times.note("t", BUDGET * 1.01)
    times.note("t", SHORT * 0.9)
    assert not times.inline("t")


def test_off():
    """With ``inline=False`` no text is for the loop, however short."""
    times = Pace(inline=False)
    times.note("t", 0.0)
    assert not times.inline("t")


# Statements.


@pytest.mark.usefixtures("steady")
async def test_a_text_proves_itself_in_the_thread(bench):
    """The first run is in the thread, whatever it is; those after it on the loop."""
    assert await bench.write() == [THREAD]
    assert await bench.write(3) == [HERE]
    assert (await bench.read())[1] == [THREAD]
    assert (await bench.read())[1] == [HERE]


@pytest.mark.usefixtures("steady")
async def test_statistics_tell_the_longest_on_the_loop(bench):
    """What ran in the thread does not count; what ran on the loop does, and the longest stays."""
    await bench.write()
    await bench.read()
    before = bench.engine.stats().longest_inline
    await bench.read(LONG)
    assert bench.engine.stats().longest_inline == before
    await bench.read(LONG)
    longest = bench.engine.stats().longest_inline
    assert longest > before
    await bench.read()
    assert bench.engine.stats().longest_inline == longest
    threaded = Places(bench.path, inline=False)
    await threaded.read()
    assert threaded.engine.stats().longest_inline == 0.0
    await threaded.engine.dispose()


async def test_long_write_is_sent_back(bench, monkeypatch):
    """Its run is not broken off, for that would undo the transaction; the next is in the thread."""
    await bench.write()
    bench.engine.pool.pace.note(WRITE, 0.0)
    for _ in range(20):
        bench.engine.pool.pace.note(WRITE, 0.0)
    monkeypatch.setattr(pace, "BUDGET", -1.0)  # whatever it takes is long
    monkeypatch.setattr(pace, "SHORT", AGES)
    assert await bench.write() == [HERE]
    monkeypatch.setattr(pace, "SHORT", 0.0)
    assert await bench.write() == [THREAD]
    assert rows(bench.path, "SELECT DISTINCT value FROM items") == [(3,)]


async def test_read_over_its_budget(bench, monkeypatch):
    """It is broken off on the loop and run again in the thread, with the same rows; then there."""
    monkeypatch.setattr(plan, "BUDGET", 1e-9)
    monkeypatch.setattr(pace, "SHORT", AGES)
    started = []
    run = sending.run

    def counted(raw, plan, report, measures=True):
        run(raw, plan, report, measures)
        if not measures and plan.budget is not None:
            started.append(report.error)
        return report

    monkeypatch.setattr(sending, "run", counted)
    bench.engine.pool.pace.note(LONG, 0.0)
    found, where = await bench.read(LONG)
    assert [tuple(row) for row in found] == [(300_000 * 300_001 // 2, 1)]
    assert where == [THREAD]
    assert [str(error) for error in started] == ["interrupted"]
    monkeypatch.setattr(pace, "SHORT", SHORT)
    assert await bench.read(LONG) == (found, [THREAD])
    assert len(started) == 1


async def test_broken_off_read_keeps_its_transaction(bench, monkeypatch):
    """Behind a write none is broken off; before it, the log knows the read once."""
    monkeypatch.setattr(plan, "BUDGET", 1e-9)
    monkeypatch.setattr(pace, "SHORT", AGES)
    bench.engine.pool.pace.note(LONG, 0.0)
    long = text(LONG)
    async with bench.engine.begin() as connection:
        assert len((await connection.execute(long)).all()) == 1
        assert bench.where("long") == [THREAD]
        transaction = (await connection.run_sync(lambda c: c.connection)).transaction
        assert len(transaction.work.log.entries) == 1
        await connection.execute(insert(Mark), bench.marks())
        bench.engine.pool.pace.note(LONG, 0.0)
        bench.engine.pool.pace._times[hash(LONG)] = 0.0
        assert len((await connection.execute(long)).all()) == 1
        assert bench.where("long") == [HERE]
    bench.acknowledged.add(0)
    assert len(rows(bench.path, "SELECT * FROM marks")) == 3


@pytest.mark.usefixtures("steady")
async def test_what_is_always_for_the_thread(bench):
    """A stream, whatever its text; else what is new."""
    many = text("INSERT INTO items (value) VALUES (here('many') + :value)")
    await bench.write()
    for size, place in ((20, THREAD), (20, HERE)):
        async with bench.engine.begin() as connection:
            await connection.execute(many, [{"value": 1}] * size)
        assert bench.where("many") == [place]
    async with bench.engine.connect() as connection:
        async with connection.stream(text(READ)) as result:
            assert await result.all()
        assert bench.where("read") == [THREAD]


async def test_inline_false(tmp_path, monkeypatch):
    """Nothing of the application runs on the loop."""
    bench = await Places.ready(tmp_path / "app.db", inline=False)
    for _ in range(3):
        assert await bench.write() == [THREAD]
        assert (await bench.read())[1] == [THREAD]
    await bench.check()
    await bench.engine.dispose()


@pytest.mark.usefixtures("steady")
async def test_commit_is_judged_as_any_statement(bench):
    """It writes to the page cache; where that takes long it goes to the thread."""
    await bench.write()
    await bench.write()
    (record,) = bench.engine.pool._reserved
    sent = []
    record.dbapi_connection.raw.set_trace_callback(
        lambda sql: sent.append((sql, threading.get_ident() == bench.loop))
    )
    await bench.write()
    bench.engine.pool.pace.note("COMMIT", 2 * AGES)
    await bench.write()
    record.dbapi_connection.raw.set_trace_callback(None)
    assert [here for sql, here in sent if sql == "COMMIT"] == [True, False]


async def known(bench):
    """A connection that reads, and has a text that is known to be short."""
    connection = await bench.engine.connect()
    await connection.execution_options(qsession_access="read")
    for _ in range(2):
        await connection.execute(text(READ))
    bench.seen.clear()
    return connection


@pytest.mark.usefixtures("steady")
async def test_others_have_a_turn(bench, monkeypatch):
    """After its share of work a busy task yields, though every statement of it is short."""
    monkeypatch.setattr(pacing, "BUDGET", -1.0)  # any work is enough
    connection = await known(bench)
    turns = []
    over = False

    async def other():
        while not over:
            turns.append(len(bench.seen))
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    for _ in range(10):
        await connection.execute(text(READ))
    over = True
    await task
    await connection.close()
    assert {place for _, place in bench.seen} == {HERE}
    assert len(set(turns)) >= 9


@pytest.mark.usefixtures("steady")
async def test_no_turn_is_given_away_for_nothing(bench, monkeypatch):
    """A task that has used little of its turn goes on at once."""
    monkeypatch.setattr(pacing, "BUDGET", AGES)
    connection = await known(bench)
    turns = []

    async def other():
        turns.append(1)

    await asyncio.sleep(0)
    task = asyncio.create_task(other())
    for _ in range(10):
        await connection.execute(text(READ))
    assert not turns
    await task
    await connection.close()
