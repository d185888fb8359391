"""The checkpointer: where it runs, what it bounds, whom it names."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from contextlib import closing

import pytest
from cancelling import eventually
from sqlalchemy import event, text

from qsession import create_async_engine
from qsession.sqlite.durability import checkpoint

BLOB = 40_000


@pytest.fixture
async def engine(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "PAGES", 1_000)
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}")
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE blobs (id INTEGER PRIMARY KEY, data BLOB)"))
    yield engine
    await engine.dispose()


@pytest.fixture
def threads(monkeypatch):
    """The threads that checkpoints ran in."""
    seen: list[threading.Thread] = []
    original = checkpoint.Checkpointer._checkpoint

    def noted(self, raw):
        seen.append(threading.current_thread())
        original(self, raw)

    monkeypatch.setattr(checkpoint.Checkpointer, "_checkpoint", noted)
    return seen


async def write(engine, times):
    for _ in range(times):
        async with engine.begin() as connection:
            await connection.execute(
                text("INSERT INTO blobs (data) VALUES (zeroblob(:size))"), {"size": BLOB}
            )


async def finished(engine, readers=0):
    """Wait until no checkpoint runs: whoever runs one has not given the connection back."""
    await eventually(lambda: engine.stats().in_use == readers)


async def test_wal_is_bounded(engine, tmp_path, threads):
    """Writers come without a pause; the WAL stays within a few times its limit."""
    limit = engine.pool.checkpointer
    await asyncio.gather(*(write(engine, 200) for _ in range(8)))
    await finished(engine)
    assert threads
    size = (tmp_path / "app.db-wal").stat().st_size
    assert size < 2 * checkpoint.GROWN * limit._limit < 8 * 200 * BLOB


async def test_never_on_the_loop(engine, threads):
    """A checkpoint runs in the thread of a connection, never in that of the event loop."""
    await write(engine, 10 * checkpoint.LOOK_EVERY)
    await finished(engine)
    assert threads
    assert threading.main_thread() not in threads


async def test_no_automatic_checkpoint(engine):
    """A COMMIT never brings a checkpoint along: SQLite's own is off."""
    async with engine.begin() as connection:
        pages = await connection.scalar(text("PRAGMA wal_autocheckpoint"))
    assert pages == 0


@pytest.mark.parametrize("mark", [5_000_000, None])
async def test_reader_that_pins_the_wal_is_named(engine, caplog, mark):
    """A snapshot left open while the WAL grows past ``wal_warn`` is named once, or never."""
    engine.pool.checkpointer.wal_warn = mark
    reader = engine.execution_options(qsession_access="read")
    with caplog.at_level(logging.WARNING, "qsession"):
        async with reader.connect() as connection:
            await connection.execute(text("SELECT count(*) FROM blobs"))
            for _ in range(12):
                await write(engine, checkpoint.LOOK_EVERY)
                await finished(engine, readers=1)
    warnings = [each.getMessage() for each in caplog.records]
    assert len(warnings) == (mark is not None)
    if mark is None:
        return
    assert "SELECT count(*) FROM blobs" in warnings[0]
    assert asyncio.current_task().get_name() in warnings[0]


async def test_a_stream_that_pins_the_wal_is_named(engine, caplog):
    """It holds a snapshot until it is closed, also in access ``auto``."""
    engine.pool.checkpointer.wal_warn = 5_000_000
    async with engine.connect() as connection:
        await write(engine, 9)  # the first rows are fetched at once
        stream = await connection.stream(text("SELECT id FROM blobs"))
        with caplog.at_level(logging.WARNING, "qsession"):
            for _ in range(16):
                await write(engine, checkpoint.LOOK_EVERY)
                await finished(engine, readers=1)
        await stream.close()
    (warning,) = [each.getMessage() for each in caplog.records]
    assert "SELECT id FROM blobs" in warning


async def test_listener_turns_it_off(tmp_path, threads):
    """Who sets wal_autocheckpoint to 0 leaves checkpoints to another program, and gets none."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}")

    @event.listens_for(engine.sync_engine, "connect")
    def no_checkpoints(connection, record):
        connection.cursor().execute("PRAGMA wal_autocheckpoint=0")

    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE blobs (id INTEGER PRIMARY KEY, data BLOB)"))
    await write(engine, 10 * checkpoint.LOOK_EVERY)
    assert not threads
    await engine.dispose()


async def test_another_process_in_the_way(engine, tmp_path, threads):
    """A checkpoint that finds the file locked gives up quietly; the next one is made."""
    await write(engine, 8 * checkpoint.LOOK_EVERY)
    await finished(engine)
    other = sqlite3.connect(tmp_path / "app.db", timeout=0, isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT * FROM blobs").fetchone()
    await write(engine, 8 * checkpoint.LOOK_EVERY)
    await finished(engine)
    other.close()
    before = len(threads)
    await write(engine, 8 * checkpoint.LOOK_EVERY)
    await finished(engine)
    assert len(threads) > before


def attach(path):
    """A listener for "connect" that attaches a database in WAL mode."""
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA journal_mode=WAL")
        raw.execute("CREATE TABLE far (data BLOB)")

    def listen(connection, record):
        connection.cursor().execute(f"ATTACH '{path}' AS other")

    return listen


async def autocheckpoint(engine):
    async with engine.begin() as connection:
        return await connection.scalar(text("PRAGMA wal_autocheckpoint"))


async def test_attached_by_a_listener(tmp_path, threads):
    """The WAL of another database that is attached is checkpointed: by SQLite, as all are then."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}")
    event.listen(engine.sync_engine, "connect", attach(tmp_path / "other.db"))
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE blobs (id INTEGER PRIMARY KEY, data BLOB)"))
    assert await autocheckpoint(engine) == 1_000
    for _ in range(15):
        async with engine.begin() as connection:
            await connection.execute(text("INSERT INTO other.far VALUES (zeroblob(1000000))"))
            await connection.execute(text("INSERT INTO blobs (data) VALUES (zeroblob(1000000))"))
    for name in ("app.db", "other.db"):
        assert (tmp_path / f"{name}-wal").stat().st_size < 8_000_000
    assert not threads
    await engine.dispose()


async def test_attached_for_a_while(engine, tmp_path):
    """The automatic checkpoint is on where another database is attached, and nowhere else."""
    attach(tmp_path / "other.db")
    automatic = text("PRAGMA wal_autocheckpoint")
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text(f"ATTACH '{tmp_path / 'other.db'}' AS other"))
        assert await connection.scalar(automatic) == 1_000
        assert await autocheckpoint(engine) == 0
        assert engine.pool.checkpointer._limit > 0
        await connection.execute(text("DETACH other"))
        assert await connection.scalar(automatic) == 0
