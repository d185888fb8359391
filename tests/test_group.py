"""One COMMIT for transactions that waited for one another: who joins, and when it closes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from cancelling import PATIENCE, Item, rows
from grouping import (
    ADD,
    AGES,
    COUNT,
    RAISE,
    Gate,
    marks,
    patient,
    ready,
    together,
    traced,
    waiters,
    whole,
    write,
)
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from qsession.sqlite import group
from qsession.sqlite.processes.turn import FileTurn


@pytest.fixture
async def bench(tmp_path, monkeypatch):
    """An engine that is found whole and free after the test."""
    async with whole(tmp_path / "app.db", monkeypatch) as made:
        yield made


async def test_one_commit_for_all_who_waited(bench):
    """Each member but the first runs under a savepoint, and one COMMIT ends them all."""
    sent = traced(bench)
    before = bench.engine.stats()
    assert await together(bench, *(write(bench, run) for run in range(1, 6))) == [None] * 5
    member = ["SAVEPOINT", "INSERT", "RELEASE"]
    assert sent == ["BEGIN IMMEDIATE", "INSERT", *member * 5, "COMMIT"]
    after = bench.engine.stats()
    assert (after.groups - before.groups, after.commits - before.commits) == (1, 6)
    assert marks(bench) == list(range(6))


async def test_none_is_acknowledged_before_the_commit(bench, monkeypatch):
    """While the COMMIT has not run, nobody has got an answer and nobody outside sees a row."""
    gate = Gate(monkeypatch, group, "_commit")
    made = await waiters(bench, *(write(bench, run) for run in range(1, 4)))
    first = asyncio.create_task(made.go())
    await gate.is_reached()
    await asyncio.wait([first, *made.tasks], timeout=0)
    assert not any(task.done() for task in [first, *made.tasks])
    assert marks(bench) == []
    gate.opened.set()
    assert await first == [None] * 3
    await made.first.close()


async def test_cancelled_again_and_again(bench, monkeypatch):
    """As AnyIO does in each turn of the loop: nothing is piled up, and the COMMIT is waited for."""
    gate = Gate(monkeypatch, group, "_commit")
    sent = []
    commit = group.Group.commit
    monkeypatch.setattr(
        group.Group, "commit", lambda made, *args: (sent.append(made), commit(made, *args))
    )
    made = await waiters(bench, write(bench, 1), write(bench, 2))
    first = asyncio.create_task(made.go())
    await gate.is_reached()
    (waiting,) = sent[0]._waiting.values()
    before = len(waiting)
    for _ in range(100):
        made.tasks[0].cancel()
        await asyncio.sleep(0)
    assert len(waiting) == before + 1
    assert not made.tasks[0].done()
    gate.opened.set()
    cancelled, finished = await first
    assert isinstance(cancelled, asyncio.CancelledError)
    assert finished is None
    assert marks(bench) == [0, 1, 2]
    await made.first.close()


async def test_all_is_there_when_commit_returns(bench):
    """At the moment of each acknowledgement another connection sees the whole group."""
    seen = []

    async def look(run):
        await write(bench, run)
        seen.append(marks(bench))

    await together(bench, *(look(run) for run in range(1, 4)))
    assert seen == [[0, 1, 2, 3]] * 3


async def test_nobody_waits_so_there_is_no_group(bench):
    """A single writer commits at once, by itself."""
    sent = traced(bench)
    await write(bench, 1)
    assert sent == ["BEGIN IMMEDIATE", "INSERT", "COMMIT"]


@pytest.mark.parametrize(("size", "commits"), [(1, 6), (2, 3), (3, 2), (4, 2), (6, 1)])
async def test_closes_when_it_is_full(tmp_path, monkeypatch, size, commits):
    """A group has ``group_size`` members at the most; with one there are no savepoints."""
    patient(monkeypatch)
    bench = await ready(tmp_path / "app.db", group_size=size)
    sent = traced(bench)
    await together(bench, *(write(bench, run) for run in range(1, 6)))
    assert sent.count("COMMIT") == commits
    assert sent.count("SAVEPOINT") == 6 - commits
    assert marks(bench) == list(range(6))
    await bench.check()
    await bench.engine.dispose()


async def test_closes_when_it_is_old(bench, monkeypatch):
    """Past its age a group is closed by the next member that finishes, though others wait."""
    monkeypatch.setattr(group, "MAX_AGE", 0.0)
    sent = traced(bench)
    await together(bench, *(write(bench, run) for run in range(1, 4)))
    assert sent.count("COMMIT") == 4


@pytest.mark.parametrize(
    ("age", "groups", "wanted", "closes"),
    [
        (0.0, 1, True, False),
        (group.MAX_AGE, 1, False, True),
        (group.MAX_AGE, 1, True, False),
        (group.MAX_AGE, 2, True, True),
        (group.SHARED_AGE, 1, True, True),
    ],
)
def test_age_of_a_group(age, groups, wanted, closes):
    """Those that follow each other in one turn get no more time for being waited for."""
    turn = SimpleNamespace(age=age, groups=groups, wanted=lambda: wanted)
    one = group.Group(driver=None)
    assert one.closes(waiting=1, size=64, turn=turn) == closes
    assert one.closes(waiting=0, size=64, turn=turn)


@pytest.mark.parametrize(("longest", "commits"), [(AGES, 1), (0.0, 4)])
async def test_lasts_longer_where_another_process_waits(bench, monkeypatch, longest, commits):
    """Who is left behind when the turn on the file is given up waits for all the others."""
    monkeypatch.setattr(group, "MAX_AGE", 0.0)
    monkeypatch.setattr(group, "SHARED_AGE", longest)
    monkeypatch.setattr(FileTurn, "wanted", lambda _: True)
    sent = traced(bench)
    await together(bench, *(write(bench, run) for run in range(1, 4)))
    assert sent.count("COMMIT") == commits


@pytest.mark.parametrize("cancelled", [0, 1])
async def test_closes_when_the_next_one_gives_up(bench, cancelled):
    """The one it waited for is cancelled in the queue: the group goes to the disk at once."""
    sent = traced(bench)
    made = await waiters(bench, write(bench, 1), write(bench, 2))
    going = asyncio.create_task(made.go())
    await asyncio.sleep(0)
    made.tasks[cancelled].cancel()
    outcomes = await asyncio.wait_for(going, PATIENCE)
    await made.first.close()
    assert isinstance(outcomes[cancelled], asyncio.CancelledError) or marks(bench) == [0, 1, 2]
    assert sent.count("COMMIT") >= 1


async def test_rollback_of_a_member_undoes_that_member_only(bench):
    """What members wrote before it and after it stays."""

    async def undo(run):
        async with bench.engine.connect() as connection:
            await connection.execute(ADD, {"run": run})
            await connection.execute(RAISE)
            await connection.rollback()

    sent = traced(bench)
    assert await together(bench, write(bench, 1), undo(2), write(bench, 3)) == [None] * 3
    assert marks(bench) == [0, 1, 3]
    assert rows(bench.path, "SELECT sum(value) FROM items") == [(0,)]
    assert sent.count("COMMIT") == 1


@pytest.mark.parametrize("end", ["commit", "rollback", "close"])
async def test_who_only_read_waits_for_the_fate_of_what_it_read(bench, monkeypatch, end):
    """A reader in the group saw rows that are not durable yet; it ends once they are."""
    gate = Gate(monkeypatch, group, "_commit")

    async def look():
        connection = await bench.engine.connect()
        seen = (await connection.execute(COUNT)).scalar()
        await getattr(connection, end)()
        await connection.close()
        return seen

    made = await waiters(bench, write(bench, 1), look())
    going = asyncio.create_task(made.go())
    await gate.is_reached()
    await asyncio.wait(made.tasks, timeout=0)
    assert not made.tasks[1].done()
    gate.opened.set()
    assert (await going)[1] == 6
    await made.first.close()


async def test_order_is_that_of_the_queue(bench):
    """Members run, and see one another, in the order in which they asked for the ticket."""

    async def count(run):
        async with bench.engine.begin() as connection:
            seen = (await connection.execute(COUNT)).scalar()
            await connection.execute(ADD, {"run": run})
            return seen

    sent = traced(bench)
    assert await together(bench, *(count(run) for run in range(1, 6))) == [3, 6, 9, 12, 15]
    assert sent.count("COMMIT") == 1
    assert marks(bench) == list(range(6))


@pytest.mark.parametrize("lock", [False, True])
async def test_read_modify_write_loses_nothing(bench, lock):
    """Members that read, compute and write, with and without FOR UPDATE, see each other's work."""
    query = select(Item).where(Item.id == 1)

    async def add():
        async with AsyncSession(bench.engine) as session:
            item = (await session.scalars(query.with_for_update() if lock else query)).one()
            item.value += 1
            await session.commit()

    for run in range(3):  # from the second round on its texts are known for short ones
        sent = traced(bench)
        assert await together(bench, *(add() for _ in range(8)), run=run) == [None] * 8
    assert rows(bench.path, "SELECT value FROM items WHERE id = 1") == [(24,)]
    assert sent.count("COMMIT") == 1


async def test_savepoints_inside_members(bench):
    """One is rolled back, one released, in a member that commits and in one that rolls back."""

    async def member(run, keep):
        async with bench.engine.connect() as connection:
            await connection.execute(ADD, {"run": run})
            async with connection.begin_nested() as lost:
                await connection.execute(ADD, {"run": run})
                await lost.rollback()
            async with connection.begin_nested():
                await connection.execute(RAISE)
            await (connection.commit() if keep else connection.rollback())

    sent = traced(bench)
    await together(bench, member(1, True), member(2, False), member(3, True))
    assert marks(bench) == [0, 1, 3]
    assert rows(bench.path, "SELECT DISTINCT value FROM items") == [(2,)]
    assert sent.count("COMMIT") == 1


async def test_durability_normal_groups_as_well(tmp_path, monkeypatch):
    """The setting changes what a COMMIT costs, not who shares it."""
    patient(monkeypatch)
    bench = await ready(tmp_path / "app.db", durability="normal")
    sent = traced(bench)
    await together(bench, write(bench, 1), write(bench, 2))
    assert sent.count("COMMIT") == 1
    await bench.check()
    await bench.engine.dispose()
