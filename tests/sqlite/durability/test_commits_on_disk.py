"""What an acknowledgement is worth: the disk was told before, and a killed process lost nothing."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections import Counter

import pytest
from cancelling import assert_free, eventually, rows
from engines import metadata, notes
from folders import TESTS
from load_child import TASKS
from shims import build, needs_shim
from sqlalchemy import insert, select, text, update

from qsession import DurabilityError
from qsession.sqlite.driver.setup import FULL
from qsession.testing import held_disk

SLOW_MACHINE = 60.0


def child(path, log, durability="full", times=20, limit=0, **env):
    """A process that writes, started."""
    numbers = [str(times), str(limit)]
    command = [sys.executable, TESTS / "load_child.py", path, log, durability, *numbers]
    return subprocess.Popen(command, env={**os.environ, **env})


def words(log):
    """The complete lines of a log, each in words."""
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return [line.split() for line in lines if line.endswith("\n")]


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    """A library that tells when the write-ahead log is written and synced."""
    return build("sync_log", tmp_path_factory.mktemp("shim"))


@needs_shim
@pytest.mark.parametrize("durability", ["full", "normal"])
def test_synced_before_it_is_acknowledged(tmp_path, shim, durability):
    """Between executing and acknowledging, its log was written, and then an fsync() ran elsewhere.

    This shows that the call was made in time, for the right file, by a thread that is not the
    loop's, and for many transactions at once. It does not show what the disk makes of the call,
    nor that the bytes written before it are the right ones: for that, see the test that kills.
    """
    path, log = tmp_path / "app.db", tmp_path / "log"
    watched = child(path, log, durability, LD_PRELOAD=shim, SYNC_LOG=str(log))
    assert watched.wait(SLOW_MACHINE) == 0
    events = words(log)
    (loop,) = (words[1] for words in events if words[0] == "loop")
    assert not any(kind in ("synced", "other") and by == loop for kind, by in events)
    start = events.index(["loop", loop])
    counts = Counter(kind for kind, _ in events[start:])
    assert counts["acknowledged"] == TASKS * 20
    stages: dict[str, str] = {}  # of each transaction that is not acknowledged yet
    covered: dict[str, set[str]] = {}  # by thread: what an fsync that runs makes durable
    unsynced = shared = 0
    for kind, which in events[start:]:
        if kind == "executed":
            stages[which] = kind
        elif kind == "write":
            stages.update(dict.fromkeys((run for run in stages if stages[run] == "executed"), kind))
        elif kind == "syncing":
            covered[which] = {run for run in stages if stages[run] == "write"}
            shared = max(shared, len(covered[which]))
        elif kind == "synced":
            stages.update(dict.fromkeys(covered[which] & stages.keys(), kind))
        elif kind == "acknowledged":
            unsynced += stages.pop(which) != "synced"
    if durability == "full":
        assert unsynced == 0
        assert shared > 1
    else:
        assert unsynced > counts["acknowledged"] / 2
    assert_free(path)


def test_killed_under_load(tmp_path):
    """Five times over: what was acknowledged is there whole, what was not is whole or absent."""
    path = tmp_path / "app.db"
    acknowledged = set()
    for turn in range(5):
        log = tmp_path / f"log{turn}"
        victim = child(path, log, times=1_000_000)
        deadline = time.monotonic() + SLOW_MACHINE
        while sum(kind == "acknowledged" for kind, _ in words(log)) < 100 * (turn + 1):
            assert time.monotonic() < deadline
            assert victim.poll() is None
            time.sleep(0.02)
        victim.kill()
        victim.wait()
        acknowledged |= {int(run) for kind, run in words(log) if kind == "acknowledged"}
        found = dict(rows(path, "SELECT run, count(*) FROM marks GROUP BY run"))
        assert set(found.values()) == {3}
        assert acknowledged <= set(found)
        assert rows(path, "PRAGMA integrity_check") == [("ok",)]
        assert_free(path)


@pytest.mark.parametrize("limit", [60_000, 100_000, 160_000])
def test_no_room_under_load(tmp_path, limit):
    """At a limit on the size of files: who is acknowledged is there, and who failed is not."""
    path, log = tmp_path / "app.db", tmp_path / "log"
    assert child(path, log, limit=limit).wait(SLOW_MACHINE) == 0
    events = words(log)
    told = {
        kind: {int(run) for word, run in events if word == kind}
        for kind in ("acknowledged", "failed")
    }
    found = dict(rows(path, "SELECT run, count(*) FROM marks GROUP BY run"))
    assert set(found.values()) == {3}
    assert set(found) == told["acknowledged"]
    assert told["failed"]
    at = next(number for number, (kind, _) in enumerate(events) if kind == "room")
    assert Counter(kind for kind, _ in events[at:])["acknowledged"] == TASKS
    assert int(events[-1][1]) > 1
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]
    assert_free(path)


async def test_the_driver_s_connection_syncs_what_it_commits(make):
    """Nobody hears of a commit there, so SQLite itself waits for the disk."""
    engine = make()
    async with engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        cursor = await driver.execute("PRAGMA main.synchronous")
        assert await cursor.fetchone() == (FULL,)


async def test_a_commit_behind_the_driver_s_own_waits_for_the_disk(make):
    """What had been written when the application took the driver is synced by commit()."""
    engine = make()
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    with held_disk() as disk:
        async with engine.connect() as connection:
            await connection.execute(insert(notes), {"id": 1})
            driver = (await connection.get_raw_connection()).driver_connection
            await driver.commit()
            committing = asyncio.create_task(connection.commit())
            await eventually(lambda: committing.done() or not disk.is_quiet)
            assert not committing.done()
            disk.open()
            await committing


@pytest.mark.parametrize(
    "statement",
    [
        select(notes.c.body).with_for_update(),
        update(notes).values(id=notes.c.id).returning(notes.c.body),
    ],
    ids=["FOR UPDATE", "RETURNING"],
)
async def test_strict_returns_only_what_is_on_disk(make, statement):
    """Also what takes the lock waits for the commits whose rows it shows."""
    engine = make(durability="strict")
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
        await connection.execute(insert(notes), {"id": 1, "body": "old"})

    async def write():
        async with engine.begin() as connection:
            await connection.execute(update(notes).values(body="new"))

    async def read():
        async with engine.connect() as connection:
            return await connection.scalar(statement)

    with held_disk() as disk:
        writer = asyncio.create_task(write())
        running = await disk.begun()
        reader = asyncio.create_task(read())
        await eventually(lambda: reader.done() or len(engine.pool._syncer._waiters) == 2)
        assert not reader.done()
        disk.open()
        running.end()
        assert await reader == "new"
        await writer


async def test_a_commit_that_sqlite_syncs_behind_a_failed_sync(make):
    """Behind frames that the disk has lost it would be lost as well: nothing is acknowledged
    before a checkpoint.
    """
    engine = make()
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    async with engine.connect() as own, engine.connect() as reader:
        await own.execute(text("PRAGMA synchronous=FULL"))
        with held_disk() as disk:
            await reader.execution_options(qsession_access="read")
            await reader.execute(select(notes.c.id))  # it keeps the WAL from being reused
            async with engine.connect() as connection:
                await connection.execute(insert(notes), {"id": 1})
                committing = asyncio.create_task(connection.commit())
                (await disk.begun()).fail()
                with pytest.raises(DurabilityError):
                    await committing
            await own.execute(insert(notes), {"id": 2})
            with pytest.raises(DurabilityError):
                await own.commit()
            await own.rollback()
        await reader.rollback()
        await own.execute(insert(notes), {"id": 3})
        await own.commit()
