"""Litestream itself copies a database that is in use, and restores it."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from cancelling import assert_free, rows
from copier import wal_of
from sqlalchemy import text

from qsession import create_async_engine, create_engine
from qsession.sqlite.durability import checkpoint

FOUND = shutil.which("litestream", path=str(Path(sys.executable).parent)) or ""
HAS_A_WHEEL = sys.platform == "linux" and platform.machine() == "x86_64"
"""Whether the dev extra has it."""
pytestmark = pytest.mark.skipif(
    not FOUND and not ("CI" in os.environ and HAS_A_WHEEL), reason="litestream is not installed"
)
BEGINS_ANEW = "snap=true reason="
"""What Litestream logs when it copies the whole database, as somebody else restarted the WAL."""
INSERT = text("INSERT INTO notes (body) VALUES (randomblob(2000))")
CONFIG = """
socket:
  enabled: true
  path: {socket}
logging:
  level: debug
dbs:
  - path: {folder}/app.db
    monitor-interval: 50ms
    checkpoint-interval: 200ms
    min-checkpoint-page-count: 50
    truncate-page-n: {truncate}
    replica:
      type: file
      path: {folder}/replica
      sync-interval: 50ms
"""
"""Checkpoints are run much more often than by default."""


class Litestream:
    """Litestream on ``app.db`` of a folder."""

    def __init__(self, folder: Path, sockets: Path, truncate: int = 500_000) -> None:
        self.folder, self.socket = folder, sockets / "socket"
        self.config = folder / "litestream.yml"
        self.config.write_text(CONFIG.format(folder=folder, socket=self.socket, truncate=truncate))
        self.log = folder / "litestream.log"

    @contextmanager
    def running(self):
        """It has copied all when it ends."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [FOUND, "replicate", "-config", str(self.config)], stdout=log, stderr=log
            )
        try:
            while not self.socket.exists():
                assert process.poll() is None, self.log.read_text()
                time.sleep(0.01)
            self.sync()
            yield
            process.terminate()
            assert process.wait(timeout=60) == 0, self.log.read_text()
        finally:
            process.kill()
            process.wait()
            self.socket.unlink(missing_ok=True)

    def sync(self) -> None:
        """Wait until all that was committed before is in the replica."""
        database = str(self.folder / "app.db")
        self._run("sync", "-wait", "-socket", str(self.socket), database)

    def restored(self, name: str) -> Path:
        """A new file with what the replica has."""
        target = self.folder / name
        self._run("restore", "-o", str(target), f"file://{self.folder / 'replica'}")
        return target

    def _run(self, *args: str) -> None:
        done = subprocess.run(
            [FOUND, *args], capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr + self.log.read_text()


def content_of(path):
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [line for line in raw.iterdump() if "_litestream_seq" not in line]


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "app.db"
    with closing(sqlite3.connect(made, isolation_level=None)) as raw:
        raw.execute("PRAGMA journal_mode=WAL")
        raw.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, body BLOB)")
    return made


@pytest.fixture
def often(monkeypatch):
    """With own checkpoints, one is due after each few commits."""
    monkeypatch.setattr(checkpoint, "PAGES", 5)
    monkeypatch.setattr(checkpoint, "LOOK_EVERY", 2)


@pytest.fixture
def sockets():
    """A folder with a short name: the name of a socket may have about 100 bytes."""
    with TemporaryDirectory() as made:
        yield Path(made)


@pytest.mark.parametrize("truncate", [500_000, 100])
async def test_what_is_acknowledged_is_restored(path, tmp_path, sockets, truncate):
    """Tasks and a thread write while it copies and runs its checkpoints, PASSIVE ones and, with the
    lower limit, TRUNCATE ones. No transaction fails. After each of three syncs, the restored file
    has all that was acknowledged before it; at the end it is as the source.
    """
    litestream = Litestream(tmp_path, sockets, truncate)
    acknowledged: list[int] = []
    working, salts = True, set()

    async def write():
        while working:
            async with engine.begin() as connection:
                made = await connection.execute(INSERT)
            acknowledged.append(made.lastrowid)

    async def read_and_write():
        """Litestream writes in between, but not to what was read."""
        while working:
            async with engine.begin() as connection:
                lowest = await connection.scalar(text("SELECT min(id) FROM notes")) or 0
                await connection.execute(
                    text("INSERT INTO notes (id) VALUES (:id)"), {"id": lowest - 1}
                )
            acknowledged.append(lowest - 1)

    def write_in_a_thread():
        while working:
            with beside.begin() as connection:
                made = connection.execute(INSERT)
            acknowledged.append(made.lastrowid)

    with litestream.running():
        engine = create_async_engine(f"sqlite+aiosqlite:///{path}?checkpoints=external")
        beside = create_engine(f"sqlite:///{path}", checkpoints="external")
        tasks = [asyncio.create_task(each()) for each in (write, write, read_and_write)]
        tasks.append(asyncio.create_task(asyncio.to_thread(write_in_a_thread)))
        try:
            for each in range(3):
                enough = len(acknowledged) + 150
                while len(acknowledged) < enough and not any(task.done() for task in tasks):
                    salts.add(wal_of(path)[0])
                    await asyncio.sleep(0)
                before = set(acknowledged)
                await asyncio.to_thread(litestream.sync)
                found = await asyncio.to_thread(litestream.restored, f"restored-{each}.db")
                assert before <= {row for (row,) in rows(found, "SELECT id FROM notes")}
        finally:
            working = False
            await asyncio.gather(*tasks)
        await engine.dispose()
        beside.dispose()
    assert len(salts - {b""}) > 1  # it has restarted the WAL
    assert BEGINS_ANEW not in litestream.log.read_text()
    assert content_of(litestream.restored("end.db")) == content_of(path)
    assert_free(path)


async def work(path, checkpoints):
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", checkpoints=checkpoints)
    for _ in range(100):
        async with engine.begin() as connection:
            await connection.execute(INSERT)
    await engine.dispose()


async def test_it_never_has_to_begin_anew(path, tmp_path, sockets, often):
    """Where qsession would run a checkpoint after each few commits: the WAL is always as Litestream
    has left it, also when the application begins and ends.
    """
    litestream = Litestream(tmp_path, sockets)
    with litestream.running():
        for _ in range(3):
            await work(path, "external")
    assert content_of(litestream.restored("end.db")) == content_of(path)
    log = litestream.log.read_text()
    assert BEGINS_ANEW not in log
    assert "msg=checkpoint" in log


async def test_it_begins_anew_after_own_checkpoints(path, tmp_path, sockets, often):
    """The test above can fail: with the default setting, while Litestream is not there to keep the
    WAL. What it restores is as the source.
    """
    litestream = Litestream(tmp_path, sockets)
    with litestream.running():
        await work(path, "own")
    await work(path, "own")
    with litestream.running():
        await work(path, "external")
    assert BEGINS_ANEW in litestream.log.read_text()
    assert content_of(litestream.restored("end.db")) == content_of(path)
