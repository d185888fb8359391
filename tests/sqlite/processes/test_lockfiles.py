"""Lock files in a folder that others may write to."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sqlite3
import sys
from contextlib import closing

import pytest
from cancelling import rows
from sqlalchemy import text

from qsession import create_async_engine
from qsession.sqlite.processes import lock_file
from qsession.sqlite.processes.lock_file import names
from qsession.sqlite.processes.lock_files import LockFiles, last_holder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX links and modes")


@pytest.fixture
def path(tmp_path):
    """A database that all may write to."""
    made = tmp_path / "app.db"
    with closing(sqlite3.connect(made)) as raw, raw:
        raw.execute("CREATE TABLE t (x)")
    made.chmod(0o666)
    return made


@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize("number", [0, 1])
async def test_a_link_to_another_file(link, number, path, tmp_path, caplog):
    """That file is left alone; writers go on, and a warning says what is missing."""
    victim = tmp_path / "victim"
    victim.write_text("12345 1.5")
    victim.chmod(0o600)
    link(victim, names(str(path))[number])
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    with caplog.at_level(logging.WARNING, "qsession"):
        for _ in range(2):
            async with engine.begin() as connection:
                await connection.execute(text("INSERT INTO t VALUES (1)"))
    await engine.dispose()
    assert rows(path, "SELECT count(*) FROM t") == [(2,)]
    assert victim.read_text() == "12345 1.5"
    assert victim.stat().st_mode & 0o777 == 0o600
    (warning,) = [each.getMessage() for each in caplog.records if "lock file" in each.message]
    assert names(str(path))[number] in warning
    assert last_holder(str(path)) is None


@pytest.mark.parametrize("number", [0, 1])
def test_an_empty_file_or_a_note_in_the_wrong_place(number, path, tmp_path):
    """Nothing is written into an empty file of somebody, nor is another file locked."""
    victim = tmp_path / "victim"
    victim.write_text("" if number else f"{1:<10} {1.5:<20.6f}\n")
    os.link(victim, names(str(path))[number])
    with pytest.raises(OSError, match="has hard links"):
        LockFiles(str(path))


def test_a_backup_that_links(path, tmp_path, caplog):
    """As by `cp -al`: the lock files are still known for what they are, and locked."""
    first = LockFiles(str(path))
    assert first.try_lock()
    for number, name in enumerate(names(str(path))):
        os.link(name, tmp_path / f"backup{number}")
    second = LockFiles(str(path))
    assert not second.try_lock()
    first.unlock()
    assert second.try_lock()
    assert last_holder(str(path))[0] == os.getpid()
    for each in (first, second):
        each.close()
    assert not caplog.records


@pytest.mark.skipif(os.geteuid() != 0 if hasattr(os, "geteuid") else True, reason="needs root")
def test_root_gives_them_to_the_owner_of_the_database(path):
    """Who could not lock them otherwise, where others may not write to the database."""
    path.chmod(0o640)
    os.chown(path, 65534, 65533)
    LockFiles(str(path)).close()
    for each in map(os.stat, names(str(path))):
        assert (each.st_uid, each.st_gid, each.st_mode & 0o777) == (65534, 65533, 0o640)


def test_a_pipe(path):
    """Nobody waits for its other end."""
    os.mkfifo(names(str(path))[1])
    with pytest.raises(OSError, match="not a regular file"):
        LockFiles(str(path))
    assert last_holder(str(path)) is None


def test_only_a_new_one_gets_the_mode_of_the_database(path):
    """One that was there may be a file that somebody else has put there."""
    hold = names(str(path))[1]
    with open(hold, "wb"):
        os.chmod(hold, 0o600)
    LockFiles(str(path)).close()
    assert [os.stat(each).st_mode & 0o777 for each in names(str(path))] == [0o666, 0o600]


def test_a_file_that_cannot_be_opened_is_told_once(path, caplog, monkeypatch):
    """As one of another user, whose rights are not those of the database."""
    monkeypatch.setattr(lock_file, "_warned", set())
    os.mkdir(names(str(path))[0])
    for _ in range(2):
        with pytest.raises(IsADirectoryError):
            LockFiles(str(path))
    assert len(caplog.records) == 1


@pytest.mark.parametrize("refused", ["no file", "no note"])
async def test_a_file_system_that_knows_only_databases(refused, path, monkeypatch):
    """As LiteFS by its source: it makes a database of each file and takes whole pages only. If it
    makes no file at all, writers go on as well.
    """
    beside = (*names(str(path)), lock_file.checkpoint_name(str(path)))
    opened: dict[int, str] = {}
    tried: list[str] = []
    original, write = os.open, os.write

    def open_file(name, flags, *mode):
        if name in beside and refused == "no file":
            tried.append(name)
            raise OSError(errno.ENOSYS, "no such files here", name)
        made = original(name, flags, *mode)
        opened[made] = name
        return made

    def write_file(file, data):
        if opened.get(file) in beside:
            tried.append(opened[file])
            raise OSError(errno.EIO, "not a whole page")
        return write(file, data)

    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(os, "write", write_file)
    engines = [create_async_engine(f"sqlite+aiosqlite:///{path}") for _ in range(2)]

    async def count(engine):
        for _ in range(20):
            async with engine.begin() as connection:
                await connection.execute(text("INSERT INTO t VALUES (1)"))

    await asyncio.gather(*(count(each) for each in engines))
    for each in engines:
        await each.dispose()
    monkeypatch.undo()
    assert tried
    assert rows(path, "SELECT count(*) FROM t") == [(40,)]
