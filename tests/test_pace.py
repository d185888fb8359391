"""Which statements run on the event loop, and which in a connection's thread."""

from __future__ import annotations

import asyncio
import threading
from itertools import pairwise

import pytest
from cancelling import Bench, Mark, assert_free, rows
from grouping import AGES, raw_writer
from sqlalchemy import event, insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from qsession.sqlite import group, pace, running
from qsession.sqlite.pace import BUDGET, SHORT, STALLS, WEIGHT, Pace, Turn, Who
from qsession.sqlite.transaction.recent import TEXTS

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
    for module in (pace, running):
        monkeypatch.setattr(module, "BUDGET", AGES)
    monkeypatch.setattr(pace, "SHORT", AGES)


@pytest.fixture
async def bench(tmp_path):
    """An engine whose tables are there."""
    made = await Places.ready(tmp_path / "app.db")
    yield made
    await made.check()
    await made.engine.dispose()
    assert_free(made.path)


# The rules by themselves.


def test_read_starts_on_the_loop_and_write_in_the_thread():
    """A text nobody has timed runs on the loop if it only reads."""
    times = Pace(inline=True)
    assert times.inline("r", reads=True)
    assert not times.inline("w", reads=False)


def test_write_moves_to_the_loop_and_back():
    """It moves when its average is short, and one long run sends it back."""
    times = Pace(inline=True)
    times.note("w", SHORT * 0.9)
    assert times.inline("w", reads=False)
    times.note("w", BUDGET * 1.01)
    assert not times.inline("w", reads=False)


def test_long_text_becomes_short_again():
    """After a long run a text must prove short over several runs."""
    times = Pace(inline=True)
    times.note("t", 0.1)
    runs = 0
    while not times.inline("t", reads=True):
        times.note("t", 0.0)
        runs += 1
    assert 0.1 * (1 - WEIGHT) ** runs < SHORT <= 0.1 * (1 - WEIGHT) ** (runs - 1)


def test_texts_are_bounded():
    """The text not seen for longest is forgotten, of times and of those that join no group."""
    times = Pace(inline=True)
    for number in range(TEXTS + 1):
        times.note(f"t{number}", 0.0)
        times.keep_alone(f"t{number}")
        times.note("t0" if number < TEXTS else "t1", 0.0)
    assert times.inline("t0", reads=False)
    assert not times.inline("t2", reads=False)
    assert times.may_join("t0")
    assert not times.may_join("t1")


LONG_WAIT = 3 * BUDGET


def test_a_wait_is_forgiven():
    """Once or twice it may have been for a busy machine; a run without starts the count anew."""
    times = Pace(inline=True)
    for _ in range(STALLS):
        for _ in range(STALLS - 1):
            times.note("t", 0.0, LONG_WAIT, here=True)
        times.note("t", 0.0, 0.0, here=True)
        assert times.inline("t", reads=True)


def test_a_wait_again_and_again_is_its_own():
    """It stays in the thread for as long as it waits there as well."""
    times = Pace(inline=True)
    for _ in range(STALLS):
        assert times.inline("t", reads=True)
        times.note("t", 0.0, LONG_WAIT, here=True)
    for _ in range(100):
        assert not times.inline("t", reads=True)
        times.note("t", 0.0, LONG_WAIT)
    while not times.inline("t", reads=True):
        times.note("t", 0.0, 0.0)


def test_waits_in_the_thread_alone_prove_nothing():
    """There the interpreter lock is waited for beside every busy loop."""
    times = Pace(inline=True)
    for _ in range(100):
        times.note("t", 0.0, LONG_WAIT)
    assert times.inline("t", reads=True)


def test_broken_off_is_no_time():
    """What it had taken by then says nothing about the whole, which the thread tells."""
    times = Pace(inline=True)
    for _ in range(STALLS):
        times.note_broken_off("t")
        times.note("t", SHORT * 1.5, 2 * BUDGET)
        assert not times.inline("t", reads=True)


def test_off():
    """With ``inline=False`` no text is for the loop, however short."""
    times = Pace(inline=False)
    times.note("t", 0.0)
    assert not times.inline("t", reads=True)


@pytest.fixture
async def turn(monkeypatch):
    """The turn of this loop, over as soon as anything has begun in it."""
    monkeypatch.setattr(pace, "BUDGET", -1.0)
    return Turn(asyncio.get_running_loop())


async def test_a_turn_is_over_after_its_budget(monkeypatch):
    """Time counts from the first statement until the loop turns."""
    monkeypatch.setattr(pace, "BUDGET", AGES)
    turn = Turn(asyncio.get_running_loop())
    assert not turn.over
    assert turn.mark is None
    turn.begin()
    mark = turn.mark
    assert mark is not None
    assert not turn.over
    monkeypatch.setattr(pace, "BUDGET", -1.0)
    assert turn.over
    await asyncio.sleep(0)
    assert not turn.over
    assert turn.mark is None
    turn.begin()
    assert turn.mark not in (None, mark)


def continuing(turn, kinds):
    """A task for each, in order, that waits for its turn; and the list of those that had it."""
    order = []

    async def wait(number, who):
        await turn.later(who)
        order.append(number)

    return [asyncio.create_task(wait(*each)) for each in enumerate(kinds)], order


async def test_one_continues_in_a_turn_of_each_kind_in_turn(turn):
    """Each kind has a line of its own, served in order: no read waits behind a whole group."""
    kinds = [Who.OTHER, Who.MEMBER, Who.OTHER, Who.HOLDER, Who.MEMBER, Who.OTHER, Who.HOLDER]
    tasks, order = continuing(turn, kinds)
    seen = []
    while len(order) < len(tasks):
        await asyncio.sleep(0)
        seen.append(list(order))
    assert order == [3, 1, 0, 6, 4, 2, 5]
    steps = [len(after) - len(before) for before, after in pairwise(seen)]
    assert max(steps) == 1
    assert not turn._scheduled


@pytest.mark.parametrize("first", [Who.HOLDER, Who.MEMBER])
async def test_a_turn_is_spoken_for_while_a_writer_waits(monkeypatch, first):
    """One reader may begin in it. More would take each turn from those who have waited for one."""
    monkeypatch.setattr(pace, "BUDGET", AGES)
    turn = Turn(asyncio.get_running_loop())
    tasks, order = continuing(turn, [Who.OTHER, Who.OTHER, first, Who.OTHER])
    await asyncio.sleep(0)
    turn.begin()
    assert not turn.spoken_for  # no reader has begun yet
    turn.begin(reader=True)
    assert turn.spoken_for
    while 2 not in order:
        await asyncio.sleep(0)
    assert len(order) < len(tasks)
    turn.begin(reader=True)
    assert not turn.spoken_for  # by those who read
    await asyncio.gather(*tasks)


async def test_the_next_turn_may_have_a_reader(turn):
    """However long the line of writers is."""
    tasks, order = continuing(turn, [Who.MEMBER] * 3)
    await asyncio.sleep(0)
    turn.begin(reader=True)
    assert turn.spoken_for
    while turn.mark is not None:
        await asyncio.sleep(0)
    assert len(order) < len(tasks) - 1
    assert not turn.spoken_for
    await asyncio.gather(*tasks)


@pytest.mark.parametrize(("others", "served"), [(40, [3] * 3 + [2] * 8 + [1] * 15), (0, [1] * 40)])
async def test_a_long_line_of_readers_is_served_faster(turn, others, served):
    """One more for each 16 in line, up to three, while members wait, too; those one by one."""
    tasks, order = continuing(turn, [Who.OTHER] * 40 + [Who.MEMBER] * others)
    readers, members = [], []
    while len(order) < len(tasks):
        before = len(order)
        await asyncio.sleep(0)
        new = order[before:]
        assert all(each < 40 for each in new) or all(each >= 40 for each in new)
        if new:
            (readers if new[0] < 40 else members).append(len(new))
    assert readers == served
    assert members == [1] * others


async def test_cancelled_while_waiting_for_a_turn(turn):
    """Whoever is cancelled takes nobody's place, before and after being told."""
    tasks, order = continuing(turn, [Who.OTHER] * 5)
    await asyncio.sleep(0)  # all of them wait
    tasks[0].cancel()
    tasks[2].cancel()
    while not tasks[1]._fut_waiter.done():
        await asyncio.sleep(0)
    tasks[1].cancel()  # it has been told, and has not run since
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [3, 4]
    assert [each.cancelled() for each in tasks] == [True, True, True, False, False]


def test_two_loops_in_one_thread(monkeypatch):
    """A loop that stands still while another one runs goes on with those who waited in it."""
    monkeypatch.setattr(pace, "BUDGET", -1.0)
    turns = pace.Turns()
    one, two = asyncio.new_event_loop(), asyncio.new_event_loop()

    async def wait():
        turn = turns.of(asyncio.get_running_loop())
        turn.begin()
        assert turn.over
        await turn.later(Who.OTHER)
        return True

    try:
        task = one.create_task(wait())
        one.call_soon(one.stop)
        one.run_forever()
        assert two.run_until_complete(wait())
        assert one.run_until_complete(asyncio.wait_for(task, AGES))
    finally:
        one.close()
        two.close()


# Statements.


@pytest.mark.usefixtures("steady")
async def test_read_on_the_loop(bench):
    """A read runs where it was asked for, from its first time on."""
    assert (await bench.read())[1] == [HERE]


@pytest.mark.usefixtures("steady")
async def test_write_proves_itself_in_the_thread(bench):
    """The first run is in the thread, those after it on the loop."""
    assert await bench.write() == [THREAD]
    assert await bench.write(3) == [HERE]


@pytest.mark.usefixtures("steady")
async def test_statistics_tell_the_longest_on_the_loop(bench):
    """What ran in the thread does not count; what ran on the loop does, and the longest stays."""
    await bench.write()
    before = bench.engine.stats().longest_inline
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
    monkeypatch.setattr(running, "BUDGET", 0.0)
    monkeypatch.setattr(pace, "SHORT", AGES)
    started = []
    run_here = running.DriverConnection.run_here

    def counted(driver, function, *args, budget=None):
        report = run_here(driver, function, *args, budget=budget)
        if budget is not None:
            started.append(report.error)
        return report

    monkeypatch.setattr(running.DriverConnection, "run_here", counted)
    found, where = await bench.read(LONG)
    assert [tuple(row) for row in found] == [(300_000 * 300_001 // 2, 1)]
    assert where == [THREAD]
    assert [str(error) for error in started] == ["interrupted"]
    monkeypatch.setattr(pace, "SHORT", SHORT)
    assert await bench.read(LONG) == (found, [THREAD])
    assert len(started) == 1


async def test_broken_off_read_keeps_its_transaction(bench, monkeypatch):
    """A read that is broken off on the writer undoes nothing, and the log knows it once."""
    monkeypatch.setattr(running, "BUDGET", 0.0)
    monkeypatch.setattr(pace, "SHORT", AGES)
    long = select(text(LONG.removeprefix("SELECT ")))
    async with bench.engine.begin() as connection:
        await connection.execute(insert(Mark), bench.marks())
        assert len((await connection.execute(long)).all()) == 1
        transaction = (await connection.run_sync(lambda c: c.connection)).transaction
        assert len(transaction.log.entries) == 2
    bench.acknowledged.add(0)
    assert len(rows(bench.path, "SELECT * FROM marks")) == 3


@pytest.mark.usefixtures("steady")
async def test_what_is_always_for_the_thread(bench):
    """Streams, and an executemany that commits each row, at whatever speed; else what is new."""
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
    async with bench.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(many, [{"value": 1}] * 2)
        assert bench.where("many") == [THREAD]
        await connection.execute(text(WRITE))  # its COMMIT is sent by itself, in the thread
    assert bench.where("write") == [HERE]


async def test_inline_false(tmp_path, monkeypatch):
    """Nothing of the application runs on the loop."""
    bench = await Places.ready(tmp_path / "app.db", inline=False)
    for _ in range(3):
        assert await bench.write() == [THREAD]
        assert (await bench.read())[1] == [THREAD]
    await bench.check()
    await bench.engine.dispose()


@pytest.mark.usefixtures("steady")
async def test_commit_is_never_on_the_loop(bench):
    """Neither that of one transaction, nor that of a group, though all before it is."""
    await bench.write()
    sent = []
    raw_writer(bench).set_trace_callback(lambda sql: sent.append((sql, threading.get_ident())))
    assert await bench.write() == [HERE]
    await asyncio.gather(*(bench.write() for _ in range(5)))
    raw_writer(bench).set_trace_callback(None)
    committed = [by for sql, by in sent if sql == "COMMIT"]
    assert committed
    assert bench.loop not in committed
    assert ("SAVEPOINT qsession_member", bench.loop) in sent


async def test_others_have_a_turn(bench, monkeypatch):
    """After its share of work a busy task yields, though every statement of it is short."""
    monkeypatch.setattr(pace, "SHORT", AGES)
    monkeypatch.setattr(pace, "BUDGET", 0.0)  # any work is enough
    monkeypatch.setattr(running, "BUDGET", AGES)
    turns = []
    over = False

    async def other():
        while not over:
            turns.append(len(bench.seen))
            await asyncio.sleep(0)

    async with bench.engine.execution_options(qsession_access="read").connect() as connection:
        await connection.execute(text(READ))
        bench.seen.clear()
        task = asyncio.create_task(other())
        for _ in range(10):
            await connection.execute(text(READ))
        over = True
        await task
    assert {place for _, place in bench.seen} == {HERE}
    assert len(set(turns)) >= 9


async def test_members_of_a_group_continue_one_by_one(bench, monkeypatch):
    """One COMMIT answers many at once; the loop has turns between what they do next."""
    for _ in range(3):
        await bench.write()
    turns, ended = 0, []

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def member():
        await bench.write()
        ended.append(turns)

    monkeypatch.setattr(pace, "BUDGET", -1.0)
    monkeypatch.setattr(pace, "SHORT", AGES)
    monkeypatch.setattr(group, "SLOW", AGES)
    counting = asyncio.create_task(count())
    groups = bench.engine.stats().groups
    await asyncio.gather(*(member() for _ in range(10)))
    counting.cancel()
    assert bench.engine.stats().groups > groups
    assert len(set(ended)) == 10


@pytest.mark.usefixtures("steady")
async def test_no_turn_is_given_away_for_nothing(bench):
    """A task that has used little of its turn goes on at once."""
    turns = []

    async def other():
        turns.append(1)

    async with bench.engine.execution_options(qsession_access="read").connect() as connection:
        await connection.execute(text(READ))
        task = asyncio.create_task(other())
        for _ in range(10):
            await connection.execute(text(READ))
        assert not turns
        await task
