"""An application that starts while a copy is made that is to replace its database."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing

import pytest
from cancelling import rows

from qsession.tools.backup import BackupError, back_up

COUNT = "SELECT count(*) FROM t"


def made(path, values, mode="wal"):
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute(f"PRAGMA journal_mode={mode}")
        raw.execute("CREATE TABLE t (x)")
        raw.executemany("INSERT INTO t VALUES (?)", [(path.name * 100,)] * values)
    return path


class Application:
    """It begins to use a database when the copy is nearly done."""

    def __init__(self, path):
        self.path = path
        self.raw = None

    def start(self, *_):
        if self.raw is None:
            self.raw = sqlite3.connect(self.path, timeout=0, isolation_level=None)
            self.begin()

    def begin(self):
        self.raw.execute("PRAGMA journal_mode=WAL")
        self.raw.execute("CREATE TABLE IF NOT EXISTS t (x)")
        self.raw.execute("INSERT INTO t VALUES (1)")


class Brief(Application):
    """It has ended when the copy is done."""

    def begin(self):
        super().begin()
        self.raw.close()


class Reading(Application):
    """It is in a transaction that reads."""

    def begin(self):
        self.raw.execute("BEGIN")
        self.raw.execute(COUNT)


class Idle(Application):
    """It has opened the file, and done nothing yet."""

    def begin(self):
        pass


@pytest.fixture
def good(tmp_path):
    return made(tmp_path / "good.db", 1000)


def whole(path):
    return rows(path, "PRAGMA integrity_check") == [("ok",)]


def linked(folder, mode):
    path = made(folder / "app.db", 500, mode)
    os.link(path, folder / "old.db")
    return path


MODES = pytest.mark.parametrize("mode", ["wal", "delete", "persist"])


@MODES
@pytest.mark.parametrize(
    ("kind", "why", "count"),
    [
        (Reading, "is in use", 500),
        (Application, "another program wrote to", 501),
        (Brief, "another program wrote to", 501),
    ],
)
def test_hard_links(mode, kind, why, count, good, tmp_path):
    """Its log would lie beside another file, or what it has committed be gone."""
    path = linked(tmp_path, mode)
    application = kind(path)
    with pytest.raises(BackupError, match=why):
        back_up(good, path, replace=True, progress=application.start)
    application.raw.close()
    assert rows(path, COUNT) == [(count,)]
    assert whole(path)
    assert path.samefile(tmp_path / "old.db")


@MODES
def test_hard_links_and_a_connection_that_has_done_nothing(mode, good, tmp_path):
    """It cannot write to the file that has lost this name."""
    path = linked(tmp_path, mode)
    application = Idle(path)
    back_up(good, path, replace=True, progress=application.start)
    with closing(application.raw) as raw:
        for statement in ("PRAGMA journal_mode=WAL", "INSERT INTO t VALUES (1)"):
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                raw.execute(statement)
        assert not os.path.exists(f"{path}-wal")
        assert not os.path.exists(f"{path}-journal")
        assert rows(path, COUNT) == [(1000,)]
    assert whole(path)
    assert rows(tmp_path / "old.db", COUNT) == [(500,)]
    assert whole(tmp_path / "old.db")


def test_hard_links_and_a_log_that_comes_to_be(good, tmp_path):
    """Nobody knows whose it is: the database is as it was."""
    path = linked(tmp_path, "delete")
    log = tmp_path / "app.db-wal"
    with pytest.raises(BackupError, match="another program wrote to"):
        back_up(good, path, replace=True, progress=lambda *_: log.write_bytes(b"commits"))
    assert log.read_bytes() == b"commits"
    log.unlink()
    assert rows(path, COUNT) == [(500,)]
    assert path.samefile(tmp_path / "old.db")


@pytest.mark.parametrize("replace", [False, True])
def test_there_was_no_database(replace, good, tmp_path):
    """What it makes meanwhile is its own."""
    application = Application(tmp_path / "app.db")
    with pytest.raises(FileExistsError, match="another program created"):
        back_up(good, application.path, replace=replace, progress=application.start)
    application.raw.execute("INSERT INTO t VALUES (1)")
    application.raw.close()
    assert rows(application.path, COUNT) == [(2,)]
    assert whole(application.path)
    assert not list(tmp_path.glob("*.unfinished"))


def test_there_was_no_database_nor_are_there_links(good, tmp_path, monkeypatch):
    """As on FAT: it is renamed if it might replace one, unless an application was quicker."""
    path = tmp_path / "app.db"

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(PermissionError):
        back_up(good, path)
    back_up(good, path, replace=True)
    assert rows(path, COUNT) == [(1000,)]
    path.unlink()
    application = Application(path)

    def refuse_late(*_):
        application.start()
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse_late)
    with pytest.raises(PermissionError):
        back_up(good, path, replace=True)
    application.raw.close()
    assert rows(path, COUNT) == [(1,)]


def test_there_was_something_else(good, tmp_path):
    """No database when the copy begins; when it is done, that of an application."""
    path = tmp_path / "app.db"
    path.write_bytes(b"no database" * 1000)
    application = Application(path)

    def progress(*_):
        if application.raw is None:
            path.write_bytes(b"")
            application.start()

    with pytest.raises(BackupError, match=r"app\.db-wal"):
        back_up(good, path, replace=True, progress=progress)
    application.raw.close()
    assert rows(path, COUNT) == [(1,)]
    assert whole(path)
