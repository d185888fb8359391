"""Copies of a database that others write to."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import threading
from contextlib import closing

import pytest
from cancelling import PATIENCE, assert_free, rows
from foreign import IN_ROLLBACK_MODE, program
from sqlalchemy import text

from qsession import create_async_engine
from qsession.tools import backup
from qsession.tools.backup import BackupError, back_up

PAIR = text("UPDATE accounts SET balance = balance + (CASE id WHEN 1 THEN -1 ELSE 1 END)")

MANY = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 500)"
    " SELECT randomblob(4000) FROM n"
)


@pytest.fixture
async def engine(tmp_path):
    """An engine on a file with two accounts, and some hundred pages beside them."""
    made = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}")
    async with made.begin() as connection:
        await connection.execute(text("CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance)"))
        await connection.execute(text("INSERT INTO accounts VALUES (1, 0), (2, 0)"))
        await connection.execute(text("CREATE TABLE blobs (data BLOB)"))
        await connection.execute(text(f"INSERT INTO blobs {MANY}"))
    yield made
    await made.dispose()
    assert_free(tmp_path / "app.db")


def left_over(folder):
    return [each.name for each in folder.iterdir() if "unfinished" in each.name]


def test_a_program_that_keeps_the_file_locked_is_named(tmp_path, monkeypatch):
    """In a rollback journal, an exclusive lock keeps readers out as well."""
    monkeypatch.setattr(backup, "BUSY_TIMEOUT", 0.05)
    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("CREATE TABLE t (x)")
    with program(path, IN_ROLLBACK_MODE) as other:
        named = rf"locked for longer than 0.05 s by pid {other.pid}\b"
        with pytest.raises(BackupError, match=named):
            back_up(path, tmp_path / "b.db")
    assert not (tmp_path / "b.db").exists()
    assert left_over(tmp_path) == []


async def test_writers_go_on_and_the_copy_is_of_one_moment(engine, tmp_path, monkeypatch):
    """Between any two steps others commit, through the queue, and it does not start again."""
    monkeypatch.setattr(backup, "PAGES", 16)
    committed = 0
    seen = []
    loop = asyncio.get_running_loop()

    async def commit():
        nonlocal committed
        async with engine.begin() as connection:
            await connection.execute(PAIR)
        committed += 1

    def progress(done, total):
        seen.append((done, total))
        asyncio.run_coroutine_threadsafe(commit(), loop).result(PATIENCE)

    await commit()
    target = tmp_path / "copy.db"
    await asyncio.to_thread(back_up, tmp_path / "app.db", target, progress=progress)
    steps, total = len(seen), seen[-1][1]
    assert steps > 10
    assert [done for done, _ in seen] == [min(16 * (each + 1), total) for each in range(steps)]
    assert committed == steps + 1
    assert rows(target, "SELECT balance FROM accounts") == [(-1,), (1,)]
    assert rows(target, "PRAGMA integrity_check") == [("ok",)]
    assert rows(target, "SELECT count(*) FROM blobs") == rows(
        tmp_path / "app.db", "SELECT count(*) FROM blobs"
    )
    assert not left_over(tmp_path)


async def test_rollback_journal(tmp_path):
    """A database that is not in WAL mode is copied as well, and stays as it is."""
    with closing(sqlite3.connect(tmp_path / "old.db")) as old, old:
        old.execute("CREATE TABLE t (x)")
        old.execute("INSERT INTO t VALUES (1)")
    back_up(tmp_path / "old.db", tmp_path / "copy.db")
    assert rows(tmp_path / "copy.db", "SELECT x FROM t") == [(1,)]
    assert rows(tmp_path / "old.db", "PRAGMA journal_mode") == [("delete",)]


async def test_existing_target(engine, tmp_path):
    """It is replaced only if that is asked for, and never by the database itself."""
    async with engine.begin() as connection:
        await connection.execute(PAIR)
    source, target = tmp_path / "app.db", tmp_path / "copy.db"
    target.write_text("mine")
    with pytest.raises(FileExistsError, match=r"copy\.db"):
        back_up(source, target)
    assert target.read_text() == "mine"
    back_up(source, target, replace=True)
    assert rows(target, "SELECT balance FROM accounts") == [(-1,), (1,)]
    with pytest.raises(FileExistsError):
        back_up(source, source, replace=True)
    with pytest.raises(FileNotFoundError, match=r"missing\.db"):
        back_up(tmp_path / "missing.db", tmp_path / "other.db")
    assert not (tmp_path / "missing.db").exists()
    assert not left_over(tmp_path)


async def test_target_that_comes_into_being_meanwhile(engine, tmp_path):
    """Somebody else's file is not overwritten."""
    target = tmp_path / "copy.db"
    with pytest.raises(FileExistsError):
        back_up(tmp_path / "app.db", target, progress=lambda *_: target.write_text("mine"))
    assert target.read_text() == "mine"
    assert not left_over(tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
async def test_broken_off(engine, tmp_path, error, monkeypatch):
    """Ctrl-C in the middle, or a full disk at the end: nothing is left, and nothing is locked."""

    def fail(*_):
        raise error

    if isinstance(error, OSError):
        monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(error)):
        back_up(
            tmp_path / "app.db", tmp_path / "copy.db", progress=fail if not error.args else None
        )
    assert not (tmp_path / "copy.db").exists()
    assert not left_over(tmp_path)
    monkeypatch.undo()
    async with engine.begin() as connection:
        await connection.execute(PAIR)


def test_damaged_source(tmp_path):
    """A copy that does not pass SQLite's own check is not kept."""
    path = tmp_path / "app.db"
    with closing(sqlite3.connect(path)) as made:
        made.execute("CREATE TABLE blobs (data BLOB)")
        made.execute(f"INSERT INTO blobs {MANY}")
        made.execute("CREATE INDEX of_blobs ON blobs (data)")
        made.commit()
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'of_blobs'"
        ((page,),) = made.execute(query)
        ((size,),) = made.execute("PRAGMA page_size")
    with path.open("r+b") as file:
        file.seek((page - 1) * size + 8)
        file.write(b"\xff" * 64)
    with pytest.raises(BackupError, match="was removed"):
        back_up(path, tmp_path / "copy.db")
    assert [each.name for each in tmp_path.iterdir()] == ["app.db"]


def test_no_room_for_the_copy(tmp_path, monkeypatch):
    """SQLite's error does not say which of the two files it is about."""
    with closing(sqlite3.connect(tmp_path / "app.db")) as made:
        made.execute("CREATE TABLE t (x)")

    class Full(sqlite3.Connection):
        def backup(self, target, **options):
            raise sqlite3.OperationalError("database or disk is full")

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **kw: connect(*a, factory=Full, **kw))
    with pytest.raises(OSError, match="No space left") as error:
        back_up(tmp_path / "app.db", tmp_path / "copy.db")
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(tmp_path))
    assert [each.name for each in tmp_path.iterdir()] == ["app.db"]


@pytest.mark.parametrize("changed", [False, True])
def test_wal_mode_in_a_folder_that_is_read_only(tmp_path, monkeypatch, changed):
    """SQLite cannot open it as it is. It is read all the same, unless somebody else changes it."""
    source = tmp_path / "app.db"
    with closing(sqlite3.connect(source)) as made:
        made.execute("PRAGMA journal_mode=WAL")
        made.execute("CREATE TABLE t (x)")
    address = f"{source.as_uri()}?immutable=1"
    monkeypatch.setattr(backup, "frozen_uri", lambda path, uri: address)

    def progress(*_):
        if changed:
            os.utime(source, ns=(1, 1))

    if changed:
        with pytest.raises(BackupError, match="another user changed"):
            back_up(source, tmp_path / "copy.db", progress=progress)
        assert not (tmp_path / "copy.db").exists()
    else:
        back_up(source, tmp_path / "copy.db", progress=progress)
        assert rows(tmp_path / "copy.db", "SELECT name FROM sqlite_master") == [("t",)]
    assert not (tmp_path / "app.db-shm").exists()


async def test_two_at_once(engine, tmp_path):
    """Each makes a copy of its own."""
    done = []

    def run(name):
        back_up(tmp_path / "app.db", tmp_path / name)
        done.append(name)

    threads = [threading.Thread(target=run, args=(f"{each}.db",)) for each in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        await asyncio.to_thread(each.join)
    assert sorted(done) == ["0.db", "1.db"]
