"""``checkpoints="external"``: another program copies the WAL and runs the checkpoints."""

from __future__ import annotations

import asyncio
import errno
import logging
import shutil
import sqlite3
import sys
from contextlib import closing

import pytest
from cancelling import rows
from copier import Copier, content_of, wal_of
from project import FAMILY, Project
from sqlalchemy import event, text

import qsession
from qsession import DurabilityError, create_async_engine, create_engine, create_pool
from qsession.sqlite.durability import checkpoint
from qsession.sqlite.processes.lock_file import checkpoint_name
from qsession.testing import slow_disk
from qsession.tools.backup import back_up
from qsession.tools.doctor import Level, examine

COMMITS = 4 * checkpoint.LOOK_EVERY
INSERT = "INSERT INTO blobs (data) VALUES (zeroblob(20000))"
KEEPS_THE_WAL = sys.version_info >= (3, 12)
"""Whether SQLite can be told to leave the WAL when the last connection closes."""


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """With ``checkpoints="own"``, one commit of these tests and the next make a checkpoint due."""
    monkeypatch.setattr(checkpoint, "PAGES", 5)


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "app.db"
    with closing(sqlite3.connect(made, isolation_level=None)) as raw:
        raw.execute("PRAGMA journal_mode=WAL")
        raw.execute("CREATE TABLE blobs (id INTEGER PRIMARY KEY, data BLOB)")
    return made


def url_of(path, checkpoints="external"):
    return f"sqlite+aiosqlite:///{path}?checkpoints={checkpoints}"


async def by_engine(path, checkpoints):
    engine = create_async_engine(url_of(path, checkpoints))
    for _ in range(COMMITS):
        async with engine.begin() as connection:
            await connection.execute(text(INSERT))
    return engine


async def by_tasks(path, checkpoints):
    engine = create_async_engine(url_of(path, checkpoints))

    async def write():
        for _ in range(COMMITS // 4):
            async with engine.begin() as connection:
                await connection.execute(text(INSERT))

    await asyncio.gather(*(write() for _ in range(4)))
    return engine


async def by_pool(path, checkpoints):
    pool = await create_pool(url_of(path, checkpoints))
    for _ in range(COMMITS):
        await pool.execute(INSERT)
    return pool


async def by_threads(path, checkpoints):
    engine = create_engine(f"sqlite:///{path}", checkpoints=checkpoints)

    def write():
        for _ in range(COMMITS):
            with engine.begin() as connection:
                connection.execute(text(INSERT))

    await asyncio.to_thread(write)
    return engine


async def with_a_listener(path, checkpoints):
    """A listener that asks for checkpoints is overruled."""
    engine = create_async_engine(url_of(path, checkpoints))

    @event.listens_for(engine.sync_engine, "connect")
    def often(connection, record):
        connection.cursor().execute("PRAGMA wal_autocheckpoint=3")

    for _ in range(COMMITS):
        async with engine.begin() as connection:
            await connection.execute(text(INSERT))
    return engine


async def with_an_attached_file(path, checkpoints):
    """SQLite's automatic checkpoint, which attached files need, would be for all files."""
    engine = create_async_engine(url_of(path, checkpoints))
    async with engine.connect() as connection:
        await connection.execute(text(f"ATTACH '{path}-other' AS other"))
        for _ in range(COMMITS):
            await connection.execute(text(INSERT))
            await connection.commit()
    return engine


WAYS = [by_engine, by_tasks, by_pool, by_threads, with_a_listener, with_an_attached_file]


def names_in(folder):
    return {each.name for each in folder.iterdir()}


async def disposed(made):
    close = getattr(made, "close", made.dispose if hasattr(made, "dispose") else None)
    if (ending := close()) is not None:
        await ending


@pytest.mark.parametrize("way", WAYS)
async def test_the_wal_is_only_added_to(path, way):
    """Nobody runs a checkpoint: the WAL has all commits, and not a byte of the file changes."""
    with closing(sqlite3.connect(path)) as outside:
        outside.execute("SELECT count(*) FROM blobs").fetchall()
        before = path.read_bytes()
        made = await way(path, "external")
        salt, size = wal_of(path)
        assert size > COMMITS * 20_000
        await disposed(made)
        assert wal_of(path) == (salt, size)
        assert path.read_bytes() == before
    assert checkpoint_name(path.name) not in names_in(path.parent)
    assert rows(path, "SELECT count(*) FROM blobs") == [(COMMITS,)]


@pytest.mark.parametrize("way", WAYS)
async def test_with_own_checkpoints_the_file_changes(path, way):
    """The test above can fail: the same load with the default setting."""
    before = path.read_bytes()
    made = await way(path, "own")
    await disposed(made)
    assert path.read_bytes() != before


@pytest.mark.skipif(not KEEPS_THE_WAL, reason="Python 3.12 and later can tell SQLite to")
@pytest.mark.parametrize("way", WAYS)
async def test_the_last_to_close_leaves_the_wal(path, way):
    """Also where no other program has the file open. The next one that opens it finds all."""
    before = path.read_bytes()
    made = await way(path, "external")
    found = wal_of(path)
    await disposed(made)
    assert wal_of(path) == found
    assert path.read_bytes() == before
    engine = create_async_engine(url_of(path))
    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM blobs")) == COMMITS
    await engine.dispose()
    assert wal_of(path) == found


@pytest.mark.skipif(KEEPS_THE_WAL, reason="Python 3.12 and later keep the WAL")
async def test_the_last_to_close_moves_the_wal_before_python_3_12(path):
    """SQLite does that, and cannot be told not to: nothing is lost."""
    await disposed(await by_engine(path, "external"))
    assert f"{path.name}-wal" not in names_in(path.parent)
    assert rows(path, "SELECT count(*) FROM blobs") == [(COMMITS,)]


async def test_a_program_that_copies_the_wal_misses_nothing(path, tmp_path):
    """Under load, its replica is as the source at each of its syncs. It restarts the WAL, and
    nobody else does.
    """
    engine = create_async_engine(url_of(path))
    copier = Copier(path, tmp_path / "replica.db", checkpoint_at=40)
    working = True

    async def write(number):
        while working:
            async with engine.begin() as connection:
                await connection.execute(
                    text("INSERT INTO blobs (data) VALUES (randomblob(:size))"),
                    {"size": 500 * number},
                )

    async def read():
        while working:
            async with engine.connect() as connection:
                await connection.execute(text("SELECT max(id) FROM blobs"))

    tasks = [asyncio.create_task(write(each)) for each in range(1, 5)]
    tasks.append(asyncio.create_task(read()))
    try:
        while copier.checkpoints < 5 or copier.compared < 20:
            await asyncio.to_thread(copier.sync)
            await asyncio.sleep(0)
    finally:
        working = False
        await asyncio.gather(*tasks)
    await asyncio.to_thread(copier.sync)
    await engine.dispose()
    await asyncio.to_thread(copier.sync)
    copier.close()
    assert content_of(tmp_path / "replica.db")


@pytest.mark.parametrize("checkpoints", ["external", "own"])
async def test_nothing_happens_in_a_gap_of_the_other_program(path, checkpoints):
    """It lets go of its read transaction for a moment, in which the application commits. With own
    checkpoints, the WAL may be restarted by then, and what it had not copied is gone.
    """
    engine = create_async_engine(url_of(path, checkpoints))
    async with engine.begin() as connection:
        await connection.execute(text(INSERT))
    salt, _ = wal_of(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as outside:
        outside.execute("BEGIN")
        outside.execute("SELECT count(*) FROM blobs").fetchone()
        outside.execute("ROLLBACK")
        for _ in range(COMMITS):
            async with engine.begin() as connection:
                await connection.execute(text(INSERT))
        outside.execute("BEGIN")
        outside.execute("SELECT count(*) FROM blobs").fetchone()
        assert (wal_of(path)[0] == salt) is (checkpoints == "external")
    await engine.dispose()


async def test_migrations_leave_the_wal(tmp_path, monkeypatch):
    """By the engine and by a URL, with a backup, while the other program has the file open."""
    monkeypatch.delenv("QSESSION_URL", raising=False)
    monkeypatch.setattr(sys, "path", sys.path[:])
    project = Project(tmp_path)
    with closing(sqlite3.connect(project.file, isolation_level=None)) as outside:
        outside.execute("PRAGMA journal_mode=WAL")
        outside.execute("CREATE TABLE blobs (id INTEGER PRIMARY KEY, data BLOB)")
        outside.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        before = project.file.read_bytes()
        project.add(FAMILY)
        await qsession.upgrade(
            url=url_of(project.file), config=project.config, backup=tmp_path / "before.db"
        )
        salt, size = wal_of(project.file)
        project.add(f"for _ in range({COMMITS}): op.execute('{INSERT}')")
        engine = create_async_engine(url_of(project.file))
        await qsession.upgrade(engine=engine, config=project.config)
        await engine.dispose()
        assert project.file.read_bytes() == before
        assert wal_of(project.file)[0] == salt
        assert wal_of(project.file)[1] > size
        assert outside.execute("SELECT count(*) FROM blobs").fetchone() == (COMMITS,)


async def test_a_migration_does_not_drop_the_tables_of_litestream(tmp_path, monkeypatch):
    """autogenerate compares the database with the models, which do not have them."""
    monkeypatch.delenv("QSESSION_URL", raising=False)
    monkeypatch.setattr(sys, "path", sys.path[:])
    project = Project(tmp_path)
    project.execute(
        "CREATE TABLE _litestream_seq (id INTEGER PRIMARY KEY, seq INTEGER)",
        "CREATE TABLE _litestream_lock (id INTEGER)",
        "CREATE TABLE no_model (id INTEGER)",
    )
    from alembic import command

    await asyncio.to_thread(command.revision, project.config, "any", autogenerate=True)
    (written,) = (tmp_path / "migrations" / "versions").glob("*any.py")
    assert "drop_table('no_model')" in written.read_text().replace('"', "'")
    assert "_litestream" not in written.read_text()


@pytest.mark.parametrize("look", ["backup", "doctor"])
async def test_tools_that_read_leave_the_wal(path, tmp_path, look):
    """Nobody else has the file open, so they close last. The WAL is as a killed program left it."""
    made = await by_engine(path, "external")
    killed = tmp_path / "killed.db"
    shutil.copy(path, killed)
    shutil.copy(f"{path}-wal", f"{killed}-wal")
    await disposed(made)
    found, before = wal_of(killed), killed.read_bytes()
    if look == "backup":
        await asyncio.to_thread(back_up, killed, tmp_path / "copy.db")
        assert rows(tmp_path / "copy.db", "SELECT count(*) FROM blobs") == [(COMMITS,)]
    else:
        findings = await asyncio.to_thread(examine, str(killed))
        assert {each.level for each in findings} <= {Level.OK, Level.NOTE}
    assert wal_of(killed) == found
    assert killed.read_bytes() == before


async def test_after_a_failed_sync_it_waits_for_the_other_program(path):
    """No commit is acknowledged before the WAL was restarted, and no checkpoint runs here."""
    engine = create_async_engine(url_of(path))

    async def write():
        async with engine.begin() as connection:
            await connection.execute(text("INSERT INTO blobs (data) VALUES (1)"))

    await write()
    with closing(sqlite3.connect(path, isolation_level=None)) as outside:
        with slow_disk(error=errno.EIO):
            with pytest.raises(DurabilityError):
                await write()
        before, (salt, _) = path.read_bytes(), wal_of(path)
        for _ in range(2):
            with pytest.raises(DurabilityError, match="leaves that to another program"):
                await write()
        assert path.read_bytes() == before
        assert wal_of(path)[0] == salt

        # A checkpoint without a restart: later commits would stand behind the lost frames.
        outside.execute("BEGIN")
        outside.execute("SELECT count(*) FROM blobs").fetchone()
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            assert other.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[0] == 0
        with pytest.raises(DurabilityError):
            await write()
        assert wal_of(path)[0] == salt

        outside.execute("ROLLBACK")
        outside.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
        with slow_disk() as disk:
            await write()
            assert disk.syncs == 1  # the commit itself is in the new WAL, which is synced
        assert wal_of(path)[0] != salt
        await write()
    await engine.dispose()
    assert rows(path, "SELECT count(*) FROM blobs") == [(7,)]


async def test_a_wal_that_nobody_restarts_is_told_once(path, caplog):
    """It grows past ``wal_warn``: the size, and what to look at. One that is large and is written
    again from its start is fine.
    """
    engine = create_async_engine(url_of(path), wal_warn=1_000_000)

    async def write(times):
        for _ in range(times):
            async with engine.begin() as connection:
                await connection.execute(text(INSERT))

    with (
        closing(sqlite3.connect(path, isolation_level=None)) as outside,
        caplog.at_level(logging.WARNING, "qsession"),
    ):
        await write(10 * checkpoint.LOOK_EVERY)
        (warning,) = [each.getMessage() for each in caplog.records]
        assert "has grown to 1 MiB. With checkpoints='external', another program must" in warning
        outside.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        await write(checkpoint.LOOK_EVERY)
        assert len(caplog.records) == 1
        async with engine.connect() as reader:
            await reader.execution_options(qsession_access="read")
            await reader.execute(text("SELECT count(*) FROM blobs"))
            await write(8 * checkpoint.LOOK_EVERY)
        assert len(caplog.records) == 2
        assert "a long reader is in its way (the oldest here is" in caplog.records[1].getMessage()
        outside.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
        await engine.dispose()
        engine = create_async_engine(url_of(path), wal_warn=1_000_000)
        await write(3 * checkpoint.LOOK_EVERY)
        assert wal_of(path)[1] > 1_000_000
        assert len(caplog.records) == 2
        await engine.dispose()
