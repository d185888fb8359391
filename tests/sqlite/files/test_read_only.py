"""A database that may be read and not written: the file, its folder, or by its URL."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from odd_child import NOBODY
from odd_ground import run
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from qsession import create_async_engine
from qsession.sqlite.files.read_only import frozen_uri, is_stranded


class Ground:
    """A folder of its own, which any user may enter, with a database in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.chmod(0o755)
        self.path = self.folder / "a.db"

    def make(self, wal: bool) -> None:
        """A table of one row; the file is left as a program leaves it that ended cleanly."""
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute(f"PRAGMA journal_mode={'WAL' if wal else 'DELETE'}")
            connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)")
            connection.execute("INSERT INTO t (b) VALUES ('x')")
            connection.commit()

    def strand(self) -> None:
        """Leave changes in the log, as after a crash, and nothing but the two files."""
        copy = self.folder / "copy.db"
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("INSERT INTO t (b) VALUES ('y')")
            connection.commit()
            for suffix in ("", "-wal"):
                Path(f"{copy}{suffix}").write_bytes(Path(f"{self.path}{suffix}").read_bytes())
        for suffix in ("", "-wal"):
            Path(f"{copy}{suffix}").replace(f"{self.path}{suffix}")

    def protect(self, what: str) -> None:
        """Take away the right to write the file, the folder, or both."""
        if os.geteuid() == 0:
            for each in (*self.folder.iterdir(), self.folder):
                os.chown(each, NOBODY, NOBODY)
        if what in ("file", "both"):
            for each in self.folder.iterdir():
                each.chmod(0o444)
        if what in ("folder", "both"):
            self.folder.chmod(0o555)


@pytest.fixture
def ground() -> Iterator[Ground]:
    """A ground outside of pytest's own folders, which other users may not enter."""
    folder = Path(tempfile.mkdtemp(prefix="ground-"))
    yield Ground(folder)
    folder.chmod(0o755)
    shutil.rmtree(folder)


WHY = {
    "file": "the file is read-only for this user",
    "folder": "is read-only for this user, and SQLite needs a file there",
    "both": "the file is read-only for this user",
}


@pytest.mark.parametrize("what", ["file", "folder", "both"])
@pytest.mark.parametrize("wal", [True, False], ids=["wal", "rollback"])
def test_read_only_ground_is_read_and_a_write_says_why_not(
    ground: Ground, wal: bool, what: str
) -> None:
    """Reads work wherever the file can be opened at all; a write names the reason, every time."""
    ground.make(wal)
    ground.protect(what)
    for form, (before, error, after) in run("read_only", ground.path).items():
        assert (before, after) == (1, 1), form
        assert error.startswith("OperationalError: (sqlite3.OperationalError) attempt to write a ")
        assert f"{ground.path!s}" in error
        assert ("its URL makes it read-only" if form else WHY[what]) in error


def test_changes_that_cannot_be_read_are_not_passed_over(ground: Ground) -> None:
    """A log with committed changes in a read-only folder is an error, never an older state."""
    ground.make(wal=True)
    ground.strand()
    ground.protect("both")
    seen = run("read_only", ground.path)
    for form in ("", "mode=ro"):
        for error in seen[form]:
            assert "has committed changes in its '-wal' file, which cannot be read" in error


def test_a_folder_that_may_not_be_entered(ground: Ground) -> None:
    """What is there and closed to this user is not said to be missing."""
    ground.make(wal=True)
    ground.folder.chmod(0o000)
    for error in run("read_only", ground.path)[""]:
        assert "unable to open database file" in error
        assert "check the permissions of the file and its folder" in error


@pytest.mark.skipif(os.geteuid() != 0, reason="needs two users")
def test_somebody_writes_where_we_cannot(ground: Ground) -> None:
    """What was read while another user changed the file is not returned; the next look is fine."""
    ground.make(wal=True)
    ground.folder.chmod(0o755)
    seen = run("changed_beside", ground.path)
    assert (seen["before"], seen["after"]) == (1, 2)
    assert "Another user changed the database file" in seen["during"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs two users")
def test_a_snapshot_keeps_its_lock(ground: Ground) -> None:
    """Without WAL a reader keeps others from writing, also while more connections are opened."""
    ground.make(wal=False)
    ground.folder.chmod(0o755)
    assert run("locked_beside", ground.path) == {"write": "database is locked"}


@pytest.mark.parametrize("query", ["mode=ro", "immutable=1", "mode=ro&immutable=1"])
async def test_read_only_by_url(tmp_path: Path, query: str) -> None:
    """A URL that says read-only is believed: reads work, a write names the URL as the reason."""
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        connection.execute("CREATE TABLE t (a)")
    url = f"sqlite+aiosqlite:///file:{tmp_path}/a.db?{query}&uri=true"
    engine = create_async_engine(url)
    for _ in range(2):
        async with engine.connect() as connection:
            assert (await connection.execute(text("SELECT count(*) FROM t"))).scalar() == 0
        with pytest.raises(
            OperationalError, match="can be read but not written: its URL makes it read-only"
        ):
            async with engine.begin() as connection:
                await connection.execute(text("INSERT INTO t VALUES (1)"))
    assert engine.stats().holder is None
    await engine.dispose()


async def test_nothing_to_read(tmp_path: Path) -> None:
    """No file, where the URL forbids to make one; and a folder in its place."""
    for name, message in (
        (f"file:{tmp_path}/a.db?mode=ro&uri=true", "does not exist"),
        (str(tmp_path), "is a folder"),
    ):
        engine = create_async_engine(f"sqlite+aiosqlite:///{name}")
        with pytest.raises(OperationalError, match=message):
            async with engine.connect():
                pass
        await engine.dispose()


def test_frozen_uri_only_where_nothing_else_works(tmp_path: Path) -> None:
    """A file is opened as immutable only if it is in WAL mode and its folder is read-only."""
    path = tmp_path / "a 100%#?.db"
    assert frozen_uri(str(path), uri=False) is None
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (a)")
    assert frozen_uri(str(path), uri=False) is None
    assert not is_stranded(str(path))
    assert frozen_uri(":memory:", uri=False) is None
    assert frozen_uri("", uri=False) is None
