"""When the ticket of a holder is taken away, and what is said of one that has written and idles."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time

import pytest
from cancelling import COUNT_ENDLESSLY, PATIENCE, Bench, assert_free, eventually, rows
from sqlalchemy import event, text

from qsession import ConflictError, HoldTimeout
from qsession.sqlite.queue.stall import LONG_READ, Look, Verdict, judge, patience

RAISE = text("UPDATE items SET value = value + 1")
SUM = text("SELECT sum(value) FROM items")
NEVER = 3600.0

STALL, WARN = 1.0, 10.0
LOOKS: list[tuple[str, Look, Verdict]] = [
    ("a holder that has just come is left alone", Look(), Verdict.WAIT),
    ("one that idles for less than stall_after, too", Look(idles_for=0.9), Verdict.WAIT),
    ("one that idles for longer loses the ticket", Look(idles_for=1.0), Verdict.TAKE),
    (
        "one that stands where others have idled for that long loses it at once",
        Look(idles_long=True, promised=True),
        Verdict.TAKE,
    ),
    ("not while its statement runs", Look(running=True, idles_long=True), Verdict.WAIT),
    ("nor once it has written", Look(claimed=True, idles_long=True), Verdict.WAIT),
    ("one whose statement runs does not idle", Look(running=True, idles_for=9), Verdict.WAIT),
    (
        "one whose SELECT computes for long loses it",
        Look(running=True, reads_for=(LONG_READ, LONG_READ)),
        Verdict.TAKE,
    ),
    (
        "one whose SELECT waits for a busy machine does not",
        Look(running=True, reads_for=(0.0, 0.9)),
        Verdict.WAIT,
    ),
    (
        "for as long as stall_after",
        Look(running=True, reads_for=(0.0, 1.0), runs_for=1.0),
        Verdict.TAKE,
    ),
    (
        "in access write a SELECT may compute",
        Look(running=True, reads_for=(0.9, 0.9), promised=True),
        Verdict.WAIT,
    ),
    (
        "for as long as stall_after, too",
        Look(running=True, reads_for=(1.0, 1.0), runs_for=1.0, promised=True),
        Verdict.TAKE,
    ),
    (
        "one whose loop was busy while its SELECT ran keeps it: the result may lie ready",
        Look(running=True, reads_for=(0.0, 9.0), runs_for=0.9),
        Verdict.WAIT,
    ),
    ("one that reads page by page keeps it for a while", Look(holds_for=0.9), Verdict.WAIT),
    ("and loses it, though it never idles for long", Look(holds_for=1.0), Verdict.TAKE),
    ("in access write it may read for as long", Look(holds_for=9, promised=True), Verdict.WAIT),
    ("one whose loop stands still loses it", Look(stands_for=1.0), Verdict.TAKE),
    ("also while a statement runs", Look(running=True, stands_for=1.0), Verdict.TAKE),
    ("a loop that was asked to turn has time for it", Look(stands_for=0.9), Verdict.WAIT),
    ("one whose loop is closed loses it at once", Look(closed=True), Verdict.TAKE),
    (
        "one that has written keeps it, however long it idles",
        Look(claimed=True, idles_for=9.9, holds_for=99),
        Verdict.WAIT,
    ),
    (
        "one that has written and idles is told of after warn_after",
        Look(claimed=True, idles_for=10.0),
        Verdict.WARN,
    ),
    (
        "so is one whose loop stands still",
        Look(claimed=True, stands_for=10.0),
        Verdict.WARN,
    ),
    (
        "one that writes for long is not told of",
        Look(claimed=True, running=True, idles_for=99, stands_for=99),
        Verdict.WAIT,
    ),
    (
        "one that has written, and whose loop is closed, is rolled back",
        Look(claimed=True, closed=True),
        Verdict.ABANDON,
    ),
    (
        "also in the middle of a statement, which nobody waits for",
        Look(claimed=True, running=True, closed=True),
        Verdict.ABANDON,
    ),
]


@pytest.mark.parametrize(
    ("look", "verdict"), [pytest.param(*row, id=sentence) for sentence, *row in LOOKS]
)
def test_what_is_done_about_a_holder(look: Look, verdict: Verdict) -> None:
    """While others wait for it."""
    assert judge(look, STALL, WARN, STALL) is verdict


def keep_the_loop_busy(seconds):
    """As the code of an application that does not await."""
    time.sleep(seconds)


async def test_a_loop_that_was_busy_costs_nobody_the_ticket(tmp_path):
    """A holder in access write sends a SELECT. Then its loop is busy for longer than stall_after.

    A writer that comes right after that waits: the SELECT was short, and the holder did not idle.
    The gate keeps it in its thread, as a result does that the busy loop could not take.
    """
    bench = await Bench.ready(tmp_path / "app.db", stall_after=1.0, inline=False)
    begun, gate = threading.Event(), threading.Event()

    @event.listens_for(bench.engine.sync_engine, "connect")
    def connect(connection, _record):
        connection.create_function("gate", 0, lambda: begun.set() or gate.wait(PATIENCE))

    await bench.engine.dispose()
    engine = bench.engine.execution_options(qsession_access="write")

    async def hold():
        async with engine.begin() as connection:
            await connection.execute(text("SELECT gate(), value FROM items"))
            await connection.execute(RAISE)

    holder = asyncio.create_task(hold())
    await eventually(begun.is_set)
    watches = engine.sync_engine.pool.write_queue.watch._watches
    await eventually(lambda: any(each._holder for each in watches.values()))
    keep_the_loop_busy(1.1)
    writer = asyncio.create_task(write(engine))
    await eventually(lambda: engine.stats().waiting == 1)
    gate.set()
    await asyncio.wait_for(asyncio.gather(holder, writer), PATIENCE)
    assert engine.stats().taken_away == 0
    await bench.engine.dispose()


async def outer(bench, gate):
    """A task that waits for something else in the middle of a transaction."""
    async with bench.engine.begin() as connection:
        await connection.execute(RAISE)
        await inner(gate)
        return await connection.scalar(SUM)


async def inner(gate):
    await gate.wait()


async def test_warning_shows_where_the_holder_stands(tmp_path, caplog):
    """Once for a holder that has written: its task, its statement, and the calls to its line."""
    bench = await Bench.ready(tmp_path / "app.db", warn_after=0.001, stall_after=0.001)
    gate = asyncio.Event()
    with caplog.at_level(logging.WARNING, "qsession"):
        holder = asyncio.create_task(outer(bench, gate), name="payments")
        await eventually(lambda: bench.engine.stats().holder)
        waiter = asyncio.create_task(outer(bench, gate))
        await eventually(lambda: caplog.records)
        (watch,) = bench.engine.pool.write_queue.watch._watches.values()
        seen = watch._idle_ticks
        await eventually(lambda: watch._idle_ticks > seen + 3)
        gate.set()
        assert await asyncio.wait_for(asyncio.gather(holder, waiter), PATIENCE) == [5, 10]
    (message,) = [each.getMessage() for each in caplog.records]
    first, *stack = message.splitlines()
    assert "1 writers are waiting" in first
    assert "task 'payments'" in first
    assert RAISE.text in first
    assert [each.rpartition(" in ")[2] for each in stack] == ["outer", "inner"]
    assert all(f"{__file__}:" in each for each in stack)
    assert stack[-1].strip() in first
    await bench.engine.dispose()
    assert_free(bench.path)


async def test_a_reader_that_never_idles_for_long_is_in_nobodys_way(tmp_path):
    """An export that reads page after page: a writer gets the ticket before the export is over."""
    bench = await Bench.ready(tmp_path / "app.db", stall_after=0.05)
    async with bench.engine.connect() as export:
        await export.scalar(SUM)
        gate = asyncio.Event()
        gate.set()
        writer = asyncio.create_task(outer(bench, gate))
        while not writer.done():
            await export.scalar(SUM)
        assert await writer == 5
        assert bench.engine.stats().taken_away == 1
    await bench.engine.dispose()
    assert_free(bench.path)


async def test_hold_timeout_shows_where_the_holder_stood(tmp_path):
    """The error tells its own task where it had been when its time was over."""
    bench = await Bench.ready(tmp_path / "app.db", max_hold=0.001)
    gate = asyncio.Event()
    before = bench.engine.stats().acquired
    holder = asyncio.create_task(outer(bench, gate), name="payments")
    await eventually(lambda: bench.engine.stats().acquired > before)  # it may be over by now
    await eventually(lambda: not bench.engine.stats().holder)
    gate.set()
    with pytest.raises(HoldTimeout) as error:
        await asyncio.wait_for(holder, PATIENCE)
    said, *stack = str(error.value.orig or error.value).splitlines()
    assert "task 'payments' was at" in said
    assert [each.strip().rpartition(" in ")[2] for each in stack[:2]] == ["outer", "inner"]
    await bench.check()
    await bench.engine.dispose()
    assert_free(bench.path)


@pytest.mark.parametrize(
    ("waiting", "insists", "seconds"),
    [
        (0, False, 0.25),
        (1, False, 0.25),
        (2, False, 0.125),
        (10, False, 0.025),
        (13, False, 0.02),
        (400, False, 0.02),
        (400, True, 0.25),
    ],
)
def test_how_long_a_holder_may_idle(waiting: int, insists: bool, seconds: float) -> None:
    """All who wait for it lose no more time together than one of them would alone."""
    assert patience(0.25, waiting, insists) == pytest.approx(seconds)


async def handlers(bench: Bench, number: int, same_row: bool) -> list[object]:
    """Each reads, waits for a web service that answers when all have read, and writes."""
    all_have_read, reading = asyncio.Event(), 0

    async def handler(row: int) -> None:
        nonlocal reading
        async with bench.engine.begin() as connection:
            value = await connection.scalar(
                text("SELECT value FROM items WHERE id = :id"), {"id": row}
            )
            reading += 1
            if reading == number:
                all_have_read.set()
            await all_have_read.wait()
            await connection.execute(
                text("UPDATE items SET value = :value WHERE id = :id"),
                {"id": row, "value": value + 1},
            )

    tasks = (handler(1 if same_row else each) for each in range(1, number + 1))
    return list(await asyncio.gather(*tasks, return_exceptions=True))


async def test_many_handlers_that_idle_between_reading_and_writing_do_not_queue(tmp_path):
    """None of them idles for stall_after, and they would never all have read one after another."""
    number = 40
    bench = await Bench.ready(tmp_path / "app.db", stall_after=PATIENCE)
    async with bench.engine.begin() as connection:
        await connection.execute(text("DELETE FROM items"))
        for each in range(1, number + 1):
            await connection.execute(text("INSERT INTO items VALUES (:id, 0)"), {"id": each})
    outcomes = await asyncio.wait_for(handlers(bench, number, same_row=False), PATIENCE)
    assert outcomes == [None] * number
    assert rows(bench.path, "SELECT DISTINCT value FROM items") == [(1,)]
    outcomes = await asyncio.wait_for(handlers(bench, number, same_row=True), PATIENCE)
    assert [each for each in outcomes if each is None] == [None], "of one row, the first one wins"
    assert all(isinstance(each, ConflictError) for each in outcomes if each is not None)
    assert rows(bench.path, "SELECT value FROM items WHERE id = 1") == [(2,)]
    await bench.engine.dispose()


@pytest.mark.parametrize("access", ["auto", "write"])
async def test_an_idle_reader_gives_way(tmp_path, access):
    """It has only read, and waits for something else; it goes on as if nothing had happened."""
    bench = await Bench.ready(tmp_path / "app.db", stall_after=0.01)
    engine = bench.engine.execution_options(qsession_access=access)
    async with engine.connect() as connection:
        assert await connection.scalar(SUM) == 0
        assert bench.engine.stats().holder is not None
        gate = asyncio.Event()
        gate.set()
        assert await asyncio.create_task(outer(bench, gate)) == 5
        assert bench.engine.stats().taken_away == 1
        assert await connection.scalar(SUM) == (0 if access == "write" else 5)
    await bench.check()
    await bench.engine.dispose()


@pytest.mark.parametrize(("access", "stall_after"), [("auto", NEVER), ("write", 0.05)])
async def test_a_long_select_gives_way(tmp_path, access, stall_after):
    """A report that runs for minutes delays nobody: the writer does not wait for its end."""
    bench = await Bench.ready(tmp_path / "app.db", stall_after=stall_after)
    async with bench.engine.connect() as connection:
        await connection.execution_options(qsession_access=access)
        report = asyncio.create_task(connection.execute(COUNT_ENDLESSLY))
        await eventually(lambda: bench.engine.stats().holder is not None)
        gate = asyncio.Event()
        gate.set()
        assert await asyncio.wait_for(asyncio.create_task(outer(bench, gate)), PATIENCE) == 5
        assert not report.done()
        assert bench.engine.stats().taken_away == 1
        report.cancel()
        with pytest.raises(asyncio.CancelledError):
            await report
    await bench.check()
    await bench.engine.dispose()


async def test_one_that_has_written_keeps_it(tmp_path):
    """However long it idles: the others wait until it ends."""
    bench = await Bench.ready(tmp_path / "app.db", stall_after=0.001)
    gate, go = asyncio.Event(), asyncio.Event()
    holder = asyncio.create_task(outer(bench, gate))
    await eventually(lambda: bench.engine.stats().holder is not None)
    go.set()
    waiter = asyncio.create_task(outer(bench, go))
    await eventually(lambda: bench.engine.stats().waiting == 1)
    (watch,) = bench.engine.pool.write_queue.watch._watches.values()
    await eventually(lambda: watch._idle_ticks > 5)
    assert not waiter.done()
    gate.set()
    assert await asyncio.wait_for(asyncio.gather(holder, waiter), PATIENCE) == [5, 10]
    assert bench.engine.stats().taken_away == 0
    assert rows(bench.path, "SELECT DISTINCT value FROM items") == [(2,)]
    await bench.check()
    await bench.engine.dispose()


async def test_max_hold_begins_with_the_ticket_that_is_held(tmp_path):
    """A transaction that has lost its ticket may hold the next one for as long, and no longer."""
    bench = await Bench.ready(tmp_path / "app.db", stall_after=0.01, max_hold=0.1)
    async with bench.engine.connect() as connection:
        assert await connection.scalar(SUM) == 0
        work = connection.sync_connection.connection.transaction.work
        first = work.limit.timer
        async with bench.engine.connect() as other:
            await other.execute(text("PRAGMA user_version=5"))
            await other.commit()
        await connection.execute(RAISE)
        assert first.cancelled()
        assert work.limit.timer.when() > first.when()
        await eventually(lambda: bench.engine.stats().holder is None)
        with pytest.raises(HoldTimeout):
            await connection.execute(RAISE)
    await bench.check()
    await bench.engine.dispose()


async def write(engine):
    async with engine.begin() as connection:
        await connection.execute(RAISE)


async def test_a_snapshot_gives_way_when_its_statement_has_ended(tmp_path):
    """The holder of the ticket waits for no connection that somebody idles with."""
    bench = await Bench.ready(
        tmp_path / "app.db", stall_after=0.01, pool_size=1, max_overflow=0, pool_timeout=NEVER
    )
    begun, gate = threading.Event(), threading.Event()

    @event.listens_for(bench.engine.sync_engine, "connect")
    def connect(connection, _record):
        connection.create_function("gate", 0, lambda: begun.set() or gate.wait(PATIENCE))

    await bench.engine.dispose()
    engine = bench.engine
    readers, writers = (
        engine.execution_options(qsession_access=access) for access in ("read", "write")
    )
    async with readers.connect() as reader, writers.connect() as slow:
        running = asyncio.create_task(slow.execute(text("SELECT gate(), value FROM items")))
        await eventually(begun.is_set)
        await reader.execute(SUM)
        writing = contextvars.Context().run(asyncio.create_task, write(engine))
        await eventually(lambda: engine.sync_engine.pool.wants_room)
        gate.set()
        await running
        await asyncio.wait_for(writing, PATIENCE)
    await bench.check()
    await bench.engine.dispose()


async def test_those_who_keep_a_connection_write_before_one_without(tmp_path):
    """All connections are kept, the one in reserve as well, by those who wait for the ticket: its
    holder does not wait for a connection meanwhile.
    """
    bench = await Bench.ready(
        tmp_path / "app.db", stall_after=0.01, pool_size=1, max_overflow=0, pool_timeout=NEVER
    )
    engine = bench.engine
    first, second = await engine.connect(), await engine.connect()
    for connection in (first, second):
        await connection.get_raw_connection()
    assert engine.pool.reserve_is_kept
    without = asyncio.create_task(write(engine))
    await eventually(lambda: engine.pool._pool.waiting == 1)
    for connection in (first, second):
        await asyncio.wait_for(connection.execute(RAISE), PATIENCE)
        await connection.commit()
    assert not without.done()
    await first.close()
    await asyncio.wait_for(without, PATIENCE)
    await second.close()
    await bench.check()
    await engine.dispose()


async def test_a_stream_of_an_ended_transaction_gives_way(tmp_path):
    """Who waits for the ticket has no connection, nor one that a stream of his has kept."""
    bench = await Bench.ready(
        tmp_path / "app.db", stall_after=0.01, pool_size=1, max_overflow=0, pool_timeout=NEVER
    )
    engine = bench.engine
    async with engine.connect() as holder, engine.connect() as other:
        stream = await other.stream(text("SELECT value FROM items"))
        await other.commit()
        await holder.execute(RAISE)
        writing = asyncio.create_task(other.execute(RAISE))
        await eventually(lambda: engine.stats().waiting == 1 and engine.stats().in_use == 1)
        await holder.commit()
        await asyncio.wait_for(writing, PATIENCE)
        assert len(await stream.all()) == 5
    await bench.check()
    await engine.dispose()


async def test_a_snapshot_of_another_loop_gives_way(tmp_path):
    """It idles with the connection that is kept for the holder of the ticket, in a loop that turns;
    all others read.
    """
    bench = await Bench.ready(
        tmp_path / "app.db", stall_after=0.01, pool_size=1, max_overflow=0, pool_timeout=NEVER
    )
    engine = bench.engine
    readers, writers = (
        engine.execution_options(qsession_access=access) for access in ("read", "write")
    )
    idles, over = threading.Event(), threading.Event()

    async def idle():
        async with writers.connect() as connection:
            await connection.execute(SUM)
            idles.set()
            await asyncio.to_thread(over.wait, PATIENCE)
            with pytest.raises(ConflictError):
                await connection.execute(RAISE)

    thread = threading.Thread(target=asyncio.run, args=(idle(),))
    thread.start()
    await eventually(idles.is_set)
    async with readers.connect() as reader:
        await reader.execute(SUM)
        await asyncio.wait_for(write(engine), PATIENCE)
    over.set()
    await asyncio.to_thread(thread.join)
    await bench.check()
    await engine.dispose()


async def test_no_turn_with_a_ticket_that_was_taken_away(tmp_path, monkeypatch):
    """Its loop stood still, so the ticket passed on; other engines do not wait for this one."""
    bench = await Bench.ready(tmp_path / "app.db")
    queue, turn = bench.engine.pool.write_queue.queue, bench.engine.pool.write_queue.turn
    wait = queue.wait

    async def late(ticket, timeout):
        await wait(ticket, timeout)
        assert queue.take_away(ticket)
        return ticket.state

    monkeypatch.setattr(queue, "wait", late)

    async def read():
        async with bench.engine.connect() as connection:
            await connection.execution_options(qsession_access="write")
            return await connection.scalar(SUM)

    async with bench.engine.begin() as connection:
        await connection.execute(RAISE)
        reader = asyncio.create_task(read())
        await eventually(lambda: queue.waiting == 1)
    assert await reader == 5
    assert queue.holder is None
    assert not turn.held
    await bench.check()
    await bench.engine.dispose()
