"""What a connection is set to before its listeners."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from qsession.sqlite.driver.setup import FULL, prepare


def opened(path: Path) -> sqlite3.Connection:
    raw = sqlite3.connect(path, isolation_level=None, timeout=0)
    assert prepare(raw, FULL)
    return raw


def test_a_connection_that_has_not_read_counts(tmp_path: Path) -> None:
    """Another one that is closed is not the last: it neither locks the file nor deletes the WAL.

    A read that met this lock failed with "no such table", of a table that was there.
    """
    path = tmp_path / "a.db"
    with closing(opened(path)) as idle:
        with closing(opened(path)) as writes:
            writes.execute("CREATE TABLE notes (id)")
        assert (tmp_path / "a.db-wal").stat().st_size > 0
        assert idle.execute("SELECT count(*) FROM notes").fetchone() == (0,)
    assert not (tmp_path / "a.db-wal").exists()


def test_somebody_in_the_way_is_told(tmp_path: Path) -> None:
    """Whoever opens the connection tries again."""
    path = tmp_path / "a.db"
    opened(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as raw:
            assert not prepare(raw, FULL)
            other.close()
            assert prepare(raw, FULL)
