"""Programs of the kit: they hold, commit, stop, crash, and are ended with their block."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest
from cancelling import assert_free, eventually, rows

from qsession.testing import Program, cancel_at_every_await, foreign_writer

INSERT = "INSERT INTO t VALUES (1)"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with an empty table, in WAL mode."""
    with closing(sqlite3.connect(tmp_path / "a b?.db")) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (a)")
    return tmp_path / "a b?.db"


def is_locked(path: Path) -> bool:
    """Whether somebody holds the write lock."""
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        return False


def test_it_holds_the_lock_until_told(path: Path) -> None:
    """In its block nobody else writes; `finish` returns when it has committed."""
    with foreign_writer(path, INSERT, INSERT) as other:
        assert is_locked(path)
        other.finish()
        assert not is_locked(path)
        assert rows(path, "SELECT a FROM t") == [(1,), (1,)]
    assert_free(path)


async def test_it_is_killed_at_the_end(path: Path) -> None:
    """What it was not told to commit is rolled back, also behind an error in the block."""
    with pytest.raises(KeyError):
        async with foreign_writer(path, INSERT) as other:
            assert is_locked(path)
            raise KeyError
    assert other.wait() == (1 if sys.platform == "win32" else -signal.SIGKILL)
    assert rows(path, "SELECT a FROM t") == []
    assert_free(path)


def test_a_statement_that_fails(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The block does not begin; the program says itself what was wrong."""
    with pytest.raises(RuntimeError, match="before it called held"):
        with foreign_writer(path, "INSERT INTO missing VALUES (1)"):
            pytest.fail("it has not the lock")
    assert "no such table" in capfd.readouterr().err
    assert_free(path)


def test_a_program_that_fails_behind_its_hold() -> None:
    """`finish` tells."""
    with Program("print('ready', flush=True)\nheld()\nsys.exit(3)") as other:
        with pytest.raises(RuntimeError, match="exit code 3"):
            other.finish()


def test_it_finds_modules_and_gets_arguments(tmp_path: Path) -> None:
    """Modules as here, the arguments as text."""
    code = "import cancelling\nopen(sys.argv[1], 'w').write(sys.argv[2])\nheld()"
    with Program(code, tmp_path / "said", 7) as other:
        assert (tmp_path / "said").read_text() == "7"
        other.finish()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs the state of a process")
def test_stopped_and_going_on(path: Path) -> None:
    """A stopped program stays, with its lock, until it goes on."""

    def state() -> str:
        return Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[0]

    with foreign_writer(path) as other:
        other.stop()
        while state() != "T":
            os.sched_yield()
        other.let_go()
        assert is_locked(path)
        other.go_on()
        assert other.wait() == 0
    with foreign_writer(path) as other:
        other.stop()  # and is killed like this
    assert_free(path)


async def test_the_start_can_be_cancelled(path: Path) -> None:
    """Wherever that is, no program is left."""
    made: list[Program] = []

    async def start() -> None:
        made.append(foreign_writer(path, INSERT))
        async with made[-1]:
            await asyncio.sleep(0)

    async def check() -> None:
        assert made[-1].wait(0) != 0
        await eventually(lambda: not is_locked(path))

    assert await cancel_at_every_await(start, check) == 2
