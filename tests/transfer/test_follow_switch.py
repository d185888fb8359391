"""The switch: writers wait until the application has its new URL, or until all is as it was."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest
from copy_databases import ask, cancelled_at, tables
from folders import ROOT
from following import NOTES, PEOPLE, At, followed, leftovers, plain, same, source

from qsession import CopyError, create_async_engine
from qsession.transfer.events import Stage
from qsession.transfer.following.run import clean
from qsession.transfer.following.source import Source, open_source
from qsession.transfer.options import url_of
from qsession.transfer.schema import BOOKS

KINDS = [
    "sqlite",
    *(pytest.param(kind, marks=pytest.mark.servers) for kind in ("asyncpg", "psycopg", "asyncmy")),
]
each_kind = pytest.mark.parametrize("kind", KINDS)
WRITE = "INSERT INTO entries VALUES (7, 'waited')"
ON_THE_TARGET = "UPDATE places SET what = 'written by the application' WHERE x = 1 AND y = 2"


@asynccontextmanager
async def writers(file, number):
    """Engines of their own, as other processes have them. `start` lets each write a row."""
    engines = [
        create_async_engine(f"sqlite+aiosqlite:///{file}", stall_after=0.1) for _ in range(number)
    ]

    async def write(engine):
        async with engine.begin() as connection:
            await connection.exec_driver_sql(WRITE)

    async def start():
        tasks = [asyncio.ensure_future(write(engine)) for engine in engines]
        while not all(waits(engine) for engine in engines):
            assert not any(task.done() for task in tasks)
            await asyncio.sleep(0.001)
        return tasks

    try:
        yield start
    finally:
        for engine in engines:
            await engine.dispose()


def waits(engine):
    """Whether its writer waits for the turn among the processes."""
    return engine.sync_engine.pool.write_queue.turn.waits


def is_locked(file):
    """Whether a program without qsession has to wait, and is not refused."""
    with sqlite3.connect(file, timeout=0) as raw, pytest.raises(sqlite3.Error) as told:
        raw.execute(WRITE)
    raw.close()
    return "database is locked" in str(told.value)


async def count(file_or_url):
    """The rows that a writer has written."""
    url = file_or_url if "://" in str(file_or_url) else f"sqlite+aiosqlite:///{file_or_url}"
    return (await ask(url, "SELECT count(*) FROM entries WHERE x = 7"))[0][0]


@each_kind
async def test_writers_wait_for_the_command(new, tmp_path, kind):
    """None is answered while it runs, the target has all rows by then, and says it is not done."""
    file, url = source(tmp_path), await new(kind)
    tasks = []

    async def command():
        tasks.extend(await start())
        assert is_locked(file)
        assert await same(file, url)
        assert BOOKS in await tables(url)
        await ask(url, ON_THE_TARGET)
        assert not any(task.done() for task in tasks)

    def write():
        with plain(file) as raw:
            raw.execute("INSERT INTO words VALUES ('last', 99)")

    async with writers(file, 2) as start:
        await followed(file, url, At(switching=write), switched=command)
        for told in await asyncio.gather(*tasks, return_exceptions=True):
            assert "has moved to" in str(told)
    assert await count(url) == await count(file) == 0
    assert BOOKS not in await tables(url)
    assert await ask(url, "SELECT what FROM places WHERE y = 2") == [
        ("written by the application",)
    ]


async def test_writers_stay_at_their_turn(tmp_path):
    """However often they look, a holder that is at work is not taken for one that stands still."""
    file = source(tmp_path)
    looks = 0

    async def command():
        nonlocal looks
        turn = engine.sync_engine.pool.write_queue.turn
        look = turn._look

        def counted(request):
            nonlocal looks
            looks += 1
            look(request)

        turn._look = counted
        task = asyncio.ensure_future(write())
        while looks < 20:
            await asyncio.sleep(0.001)
        assert turn.waits
        tasks.append(task)

    async def write():
        async with engine.begin() as connection:
            await connection.exec_driver_sql(WRITE)

    tasks = []
    engine = create_async_engine(f"sqlite+aiosqlite:///{file}")
    await followed(file, f"sqlite:///{tmp_path / 'target.db'}", switched=command)
    with pytest.raises(Exception, match="has moved to"):
        await tasks[0]
    await engine.dispose()


@each_kind
async def test_writers_go_on_if_the_command_fails(new, tmp_path, kind):
    """As if nothing had happened: the source is as it was, and the target says it is not done."""
    file, url = source(tmp_path), await new(kind)
    tasks, stages = [], []

    async def command():
        tasks.extend(await start())
        raise CopyError("the command ended with 3")

    async with writers(file, 2) as start:
        with pytest.raises(CopyError, match=r"ended with 3.* undone.* is behind the source"):
            await followed(file, url, lambda step: stages.append(step.stage), switched=command)
        await asyncio.gather(*tasks)
    assert stages[-1] is Stage.GOING_BACK
    assert not leftovers(file)
    assert await count(file) == 2
    assert BOOKS in await tables(url)
    await followed(file, url, replace=True)
    assert await same(file, url)
    assert BOOKS not in await tables(url)


@each_kind
async def test_the_target_was_written_to_when_the_command_fails(new, tmp_path, kind):
    """What the application wrote there is not given up. The same command ends the move."""
    file, url = source(tmp_path), await new(kind)

    async def command():
        await ask(url, ON_THE_TARGET)
        raise CopyError("the command ended with 3")

    with pytest.raises(CopyError, match=r"other rows by now, in places.*Run the same command"):
        await followed(file, url, switched=command)
    with plain(file) as raw, pytest.raises(sqlite3.IntegrityError, match="has moved to"):
        raw.execute(WRITE)
    assert BOOKS in await tables(url)
    with pytest.raises(CopyError, match="use --switch without --replace"):
        await followed(file, url, replace=True)
    with pytest.raises(CopyError, match="use --switch without --replace"):
        await followed(file, url, switch=False)
    called = []

    async def works():
        called.append(is_locked(file))

    move = await followed(file, url, switched=works)
    assert move.rows is None
    assert called == [True]
    assert BOOKS not in await tables(url)
    assert await ask(url, "SELECT what FROM places WHERE y = 2") == [
        ("written by the application",)
    ]
    assert "qsession_follow_1" not in leftovers(file)


@each_kind
async def test_the_target_cannot_be_compared_when_the_command_fails(new, tmp_path, kind):
    """It is not known what was written there, so the source stays closed, and can be opened."""
    file, url = source(tmp_path), await new(kind)

    async def command():
        await ask(url, "ALTER TABLE entries DROP COLUMN line")
        raise OSError("no such program")

    with pytest.raises(CopyError, match=r"no such program.*is not known whether the target"):
        await followed(file, url, switched=command)
    assert await clean(url_of(f"sqlite:///{file}"))
    with plain(file) as raw:
        raw.execute(WRITE)
    assert not leftovers(file)


@pytest.mark.parametrize("fails", [False, True])
async def test_cancelled_while_the_command_runs(tmp_path, fails):
    """It runs to its end, which decides: the move is complete, or undone."""
    file, url = source(tmp_path), f"sqlite+aiosqlite:///{tmp_path / 'target.db'}"
    runs, cancelled = asyncio.Event(), asyncio.Event()

    async def command():
        runs.set()
        await cancelled.wait()
        if fails:
            raise CopyError("the command ended with 3")

    async def go_on():
        await runs.wait()
        asyncio.get_running_loop().call_soon(cancelled.set)

    task = asyncio.create_task(followed(file, url, switched=command))
    goes_on = asyncio.create_task(go_on())
    await cancelled_at(task, runs)
    await goes_on
    assert (BOOKS in await tables(url)) is fails
    assert await same(file, url)
    if fails:
        assert not leftovers(file)
        with plain(file) as raw:
            raw.execute(WRITE)
    else:
        assert "qsession_moved_1_insert" in leftovers(file)


def killed_in_the_command(file, url):
    """A copier in a process of its own that is killed while the command runs."""
    ended = subprocess.run(
        [sys.executable, ROOT / "tests" / "follow_child.py", file, url],
        input=b"command 1\n",
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    assert ended.stdout.decode().strip() == str(-signal.SIGKILL)


@each_kind
async def test_killed_while_the_command_runs(new, tmp_path, kind):
    """The source takes no row that the target lacks, and the same command ends the move."""
    file, url = source(tmp_path), await new(kind)
    killed_in_the_command(file, url)
    with plain(file) as raw, pytest.raises(sqlite3.IntegrityError, match="has moved to"):
        raw.execute(WRITE)
    assert await same(file, url)
    assert BOOKS in await tables(url)
    await ask(url, ON_THE_TARGET)
    with pytest.raises(CopyError, match="has moved to"):
        await followed(file, f"sqlite:///{tmp_path / 'another.db'}")
    await followed(file, url)
    assert BOOKS not in await tables(url)
    assert await ask(url, "SELECT what FROM places WHERE y = 2") == [
        ("written by the application",)
    ]


async def test_killed_and_cleaned(tmp_path):
    """The other way out: the source takes writes, and the target still says it is not done."""
    file, url = source(tmp_path), f"sqlite+aiosqlite:///{tmp_path / 'target.db'}"
    killed_in_the_command(file, url)
    assert await clean(url_of(f"sqlite:///{file}"))
    assert not leftovers(file)
    with plain(file) as raw:
        raw.execute(WRITE)
    assert BOOKS in await tables(url)


@pytest.mark.servers
@pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
async def test_killed_between_the_target_and_the_source(new, tmp_path, kind, monkeypatch):
    """The foreign keys are back in the target by then. They are put off again, and come back."""
    file, url = source(tmp_path), await new(kind)
    await ask(url, PEOPLE, NOTES)
    keys = (
        "SELECT conname, pg_get_constraintdef(oid), convalidated FROM pg_constraint "
        "WHERE contype = 'f' ORDER BY 1"
    )

    class Killed(BaseException):
        """The process is gone: nothing is cleaned."""

    async def killed(self):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Source, "commit_and_hold", killed)
        patched.setattr("qsession.transfer.following.capture.remove", lambda *_, **__: False)
        with pytest.raises(Killed):
            await followed(file, url)
    assert "qsession_follow_1_insert" in leftovers(file)
    assert "qsession_moved_1_insert" not in leftovers(file)
    with plain(file) as raw:
        raw.execute("UPDATE people SET name = name || '!'")  # its children stay
    await followed(file, url, At(comparing=lambda: None))
    assert await same(file, url)
    found = await ask(url, keys)
    assert len(found) == 2
    assert all("DEFERRABLE" not in key and valid for _, key, valid in found)
    assert all("ON DELETE CASCADE" in key for _, key, _ in found)


async def test_what_is_held_is_on_the_disk(tmp_path):
    """The mark, before the command runs: a COMMIT of SQLite's own, with its fsync, and the lock."""
    file = source(tmp_path)
    async with open_source(url_of(f"sqlite:///{file}")) as opened, opened.hold() as writing:
        assert (await writing.exec_driver_sql("PRAGMA synchronous")).scalar() == 2
        await writing.exec_driver_sql("INSERT INTO entries VALUES (7, 'mark')")
        await opened.commit_and_hold()
        assert await count(file) == 1
        assert is_locked(file)
        await writing.exec_driver_sql("INSERT INTO entries VALUES (7, 'rolled back')")
    assert await count(file) == 1
    with plain(file) as raw:
        raw.execute(WRITE)
