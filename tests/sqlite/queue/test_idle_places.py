"""A holder that gets to a line where others have idled for long gives the ticket up at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cancelling import PATIENCE, Bench, eventually, rows
from sqlalchemy import text

from qsession import ConflictError
from qsession.sqlite.driver import recent
from qsession.sqlite.queue.idle_places import IdlePlaces, place_of

NEVER = 3600.0
MINE = text("UPDATE items SET value = value + 1 WHERE id = 1")
OTHER = text("UPDATE items SET value = value + 1 WHERE id = 2")
READ = text("SELECT value FROM items WHERE id = 1")


@pytest.fixture(params=["auto", "write"])
async def bench(request: Any, tmp_path: Path) -> AsyncIterator[Bench]:
    """No holder idles for as long as its stall_after."""
    options = {"qsession_access": request.param}
    made = await Bench.ready(
        tmp_path / "a.db", stall_after=NEVER, pool_size=5, execution_options=options
    )
    yield made
    await made.check()
    await made.engine.dispose()


def places(bench: Bench) -> IdlePlaces:
    found: IdlePlaces = bench.engine.pool.write_queue.watch.places
    return found


async def sleeper(bench: Bench, begin: asyncio.Event, gate: asyncio.Event) -> None:
    """It reads, asks another service, and writes."""
    async with bench.engine.begin() as connection:
        await begin.wait()
        await connection.execute(READ)
        await gate.wait()
        await connection.execute(MINE)


async def change(bench: Bench, statement: Any) -> None:
    async with bench.engine.begin() as connection:
        await connection.execute(statement)


async def asleep(bench: Bench) -> tuple[asyncio.Task[None], asyncio.Event]:
    """A sleeper that has the ticket and idles, and what it waits for."""
    begin, gate = asyncio.Event(), asyncio.Event()
    begin.set()
    task = asyncio.create_task(sleeper(bench, begin, gate))
    queue = bench.engine.pool.write_queue.queue
    await eventually(lambda: queue.holder is not None and not queue.holder.owner.running)
    assert queue.holder is not None
    assert queue.holder.owner.task is task
    return task, gate


async def test_a_line_is_learnt_when_a_holder_has_stalled_there(tmp_path: Path) -> None:
    """From the first stall on."""
    bench = await Bench.ready(tmp_path / "a.db", stall_after=0.01, pool_size=5)
    task, gate = await asleep(bench)
    place = place_of(task)
    assert place not in places(bench)
    await asyncio.wait_for(asyncio.create_task(change(bench, OTHER)), PATIENCE)
    assert place in places(bench)
    gate.set()
    await task
    await bench.check()
    await bench.engine.dispose()


async def test_whoever_comes_gets_the_ticket_at_once(bench: Bench) -> None:
    """The sleeper stands at a line that is known, and somebody begins to wait."""
    task, gate = await asleep(bench)
    places(bench).note(place_of(task), long=True)
    await asyncio.wait_for(asyncio.create_task(change(bench, OTHER)), PATIENCE)
    assert bench.engine.stats().taken_away == 1
    gate.set()
    await task
    assert rows(bench.path, "SELECT value FROM items WHERE id < 3") == [(1,), (1,)]


async def test_whoever_waits_gets_the_ticket_when_the_sleeper_has_read(bench: Bench) -> None:
    """It gets to the line while somebody waits already; nobody else comes."""
    task, gate = await asleep(bench)
    known = place_of(task)
    gate.set()
    await task
    places(bench).note(known, long=True)
    begin, gate = asyncio.Event(), asyncio.Event()
    async with bench.engine.begin() as first:
        await first.execute(OTHER)
        begin.set()
        task = asyncio.create_task(sleeper(bench, begin, gate))
        await eventually(lambda: bench.engine.stats().waiting == 1)
        waiting = asyncio.create_task(change(bench, OTHER))
        await eventually(lambda: bench.engine.stats().waiting == 2)
    await asyncio.wait_for(waiting, PATIENCE)
    assert place_of(task) == known
    gate.set()
    await task
    assert rows(bench.path, "SELECT value FROM items WHERE id < 3") == [(2,), (2,)]


async def test_one_that_goes_on_sooner_takes_the_line_off_the_table(bench: Bench) -> None:
    """It has lost the ticket once too often; the next one there keeps it."""
    task, gate = await asleep(bench)
    place = place_of(task)
    places(bench).note(place, long=True)
    await asyncio.wait_for(asyncio.create_task(change(bench, OTHER)), PATIENCE)
    gate.set()
    await task
    assert place not in places(bench)


async def test_what_it_has_read_is_validated(bench: Bench) -> None:
    """It loses no update: what it read was changed by the one that got the ticket."""
    task, gate = await asleep(bench)
    places(bench).note(place_of(task), long=True)
    await asyncio.wait_for(asyncio.create_task(change(bench, MINE)), PATIENCE)
    gate.set()
    with pytest.raises(ConflictError):
        await task
    assert rows(bench.path, "SELECT value FROM items WHERE id = 1") == [(1,)]


async def test_a_place_is_the_lines_that_a_task_waits_at() -> None:
    """The same for two tasks that stand at the same line, and another one for another line."""

    async def wait(gate: asyncio.Event, number: int) -> None:
        if number == 1:
            await gate.wait()
        else:
            await gate.wait()

    gate = asyncio.Event()
    tasks = [asyncio.create_task(wait(gate, number)) for number in (1, 1, 2)]
    await asyncio.sleep(0)
    first, same, other = map(place_of, tasks)
    assert first == same != other
    gate.set()
    await asyncio.gather(*tasks)
    assert place_of(tasks[0]) is None
    assert place_of(None) is None


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The place that was not seen for longest is forgotten."""
    monkeypatch.setattr(recent, "TEXTS", 2)
    table = IdlePlaces()
    assert not table
    for place in (1, 2, 1, 3):
        table.note(place, long=True)
    assert [place in table for place in (1, 2, 3)] == [True, False, True]
    table.note(1, long=False)
    table.note(None, long=True)
    assert len(table) == 1
