"""What lies where a copy is to be: a database that is in use, or what one has left behind."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from contextlib import closing

import pytest
from cancelling import rows
from sqlalchemy import text

from qsession import create_async_engine
from qsession.tools.backup import BackupError, back_up

COUNT = "SELECT count(*) FROM t"


def made(path, values, mode="delete", page_size=4096):
    """A database with a table, and an index, of so many values."""
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute(f"PRAGMA page_size={page_size}")
        raw.execute(f"PRAGMA journal_mode={mode}")
        raw.execute("CREATE TABLE t (x)")
        raw.execute("CREATE INDEX i ON t (x)")
        raw.executemany("INSERT INTO t VALUES (?)", [(f"{path.name} {n}",) for n in range(values)])
    return path


def crashed(path, values, mode="wal"):
    """A database as a program has left it that was killed behind, or in, a transaction."""
    alive = made(path.with_name("alive.db"), 10, mode)
    raw = sqlite3.connect(alive, isolation_level=None)
    raw.execute("PRAGMA cache_size=1")  # so that it writes before the COMMIT
    raw.execute("BEGIN")
    raw.executemany("INSERT INTO t VALUES (?)", [("late" * 100,)] * values)
    if mode == "wal":
        raw.execute("COMMIT")
    for end in ("", "-wal", "-shm", "-journal"):
        if os.path.exists(f"{alive}{end}"):
            shutil.copy(f"{alive}{end}", f"{path}{end}")
    raw.close()
    return path


def whole(path):
    return rows(path, "PRAGMA integrity_check") == [("ok",)]


def listed(folder):
    return sorted(each.name for each in folder.iterdir() if "alive" not in each.name)


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_what_a_killed_program_has_left(mode, tmp_path):
    """Its log is a part of what is replaced: it does not come back over the copy."""
    good = made(tmp_path / "good.db", 3000)
    bad = crashed(tmp_path / "app.db", 500, mode)
    back_up(good, bad, replace=True)
    assert listed(tmp_path) == ["app.db", "good.db"]
    assert rows(bad, COUNT) == [(3000,)]
    assert whole(bad)


@pytest.mark.parametrize("end", ["-wal", "-journal", "-shm"])
@pytest.mark.parametrize("replace", [False, True])
def test_what_is_left_of_a_database_that_was_removed(end, replace, tmp_path):
    """Nobody knows what it holds, or who still uses it: it is named, and nothing is done."""
    good = made(tmp_path / "good.db", 10)
    left = tmp_path / f"app.db{end}"
    left.write_bytes(b"commits")
    with pytest.raises(BackupError, match=rf"does not exist, and .*app\.db{end}'.* move them away"):
        back_up(good, tmp_path / "app.db", replace=replace)
    assert listed(tmp_path) == sorted([left.name, "good.db"])
    assert left.read_bytes() == b"commits"


def test_damaged_target(tmp_path):
    """It is replaced when it is alone; beside a log, which may be in use, it is not."""
    good = made(tmp_path / "good.db", 10)
    bad = crashed(tmp_path / "app.db", 500)
    bad.write_bytes(b"no database at all" * 1000)
    log = tmp_path / "app.db-wal"
    log.write_bytes(b"nor a log")
    with pytest.raises(BackupError, match=r"cannot be read .*app\.db-wal"):
        back_up(good, bad, replace=True)
    assert bad.read_bytes().startswith(b"no database")
    log.unlink()
    back_up(good, bad, replace=True)
    assert rows(bad, COUNT) == [(10,)]


async def test_an_application_is_running(tmp_path):
    """Its engine keeps what it had, and its commits; the message says what to do."""
    good = made(tmp_path / "good.db", 10)
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}")
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE t (x)"))
    with pytest.raises(
        BackupError, match=r"app\.db' is in use.*: stop the programs that have it open"
    ):
        back_up(good, tmp_path / "app.db", replace=True)
    async with engine.begin() as connection:
        await connection.execute(text("INSERT INTO t VALUES (1)"))
    await engine.dispose()
    assert rows(tmp_path / "app.db", "SELECT x FROM t") == [(1,)]
    back_up(good, tmp_path / "app.db", replace=True)
    assert rows(tmp_path / "app.db", COUNT) == [(10,)]


def test_a_connection_that_idles_without_wal(tmp_path):
    """It holds no lock, and then sees and writes to the copy, not to a file without a name."""
    good, path = made(tmp_path / "good.db", 10), made(tmp_path / "app.db", 1)
    with closing(sqlite3.connect(path)) as idle:
        assert idle.execute(COUNT).fetchone() == (1,)
        back_up(good, path, replace=True)
        assert idle.execute(COUNT).fetchone() == (10,)
        with idle:
            idle.execute("INSERT INTO t VALUES (1)")
    assert rows(path, COUNT) == [(11,)]


def test_a_transaction_without_wal(tmp_path):
    """It holds a lock."""
    good, path = made(tmp_path / "good.db", 10), made(tmp_path / "app.db", 1)
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(BackupError, match="is in use"):
            back_up(good, path, replace=True)
    assert rows(path, COUNT) == [(2,)]


@pytest.mark.parametrize("mode", ["wal", "truncate", "persist"])
@pytest.mark.parametrize("page_size", [512, 4096, 16384])
def test_any_kind_of_database_is_replaced(mode, page_size, tmp_path):
    """Pages of another size, and a longer or a shorter file."""
    good = made(tmp_path / "good.db", 1000, "wal")
    for values in (1, 5000):
        path = made(tmp_path / f"{values}.db", values, mode, page_size)
        back_up(good, path, replace=True)
        assert rows(path, COUNT) == [(1000,)]
        assert whole(path)
        assert path.stat().st_size == good.stat().st_size


def test_broken_off(tmp_path, monkeypatch):
    """A replaced database is as it was, its journal mode included, if the copy fails at the end."""
    good, path = made(tmp_path / "good.db", 1000), made(tmp_path / "app.db", 1, "wal")

    class Failing(sqlite3.Connection):
        def backup(self, target, **options):
            if not options:
                with pytest.raises(sqlite3.OperationalError, match="locked"):
                    rows(path, COUNT)
                raise KeyboardInterrupt
            super().backup(target, **options)

    connect = sqlite3.connect
    with monkeypatch.context() as patched:
        patched.setattr(sqlite3, "connect", lambda *a, **kw: connect(*a, factory=Failing, **kw))
        with pytest.raises(KeyboardInterrupt):
            back_up(good, path, replace=True)
    assert rows(path, COUNT) == [(1,)]
    assert rows(path, "PRAGMA journal_mode") == [("wal",)]
    assert listed(tmp_path) == ["app.db", "good.db"]


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes among the files")
def test_what_is_no_file(tmp_path):
    """A pipe would be waited for."""
    good = made(tmp_path / "good.db", 1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BackupError, match="not a regular file"):
        back_up(good, tmp_path / "pipe", replace=True)


def mode(path):
    return path.stat().st_mode & 0o777


on_posix = pytest.mark.skipif(sys.platform == "win32", reason="modes and links of POSIX")


@on_posix
@pytest.mark.parametrize(("umask", "of_copy"), [(0, 0o640), (0o022, 0o640), (0o077, 0o600)])
def test_nobody_else_may_read_the_copy(umask, of_copy, tmp_path):
    """It has the mode of its source from the beginning, or less."""
    good = made(tmp_path / "good.db", 10)
    good.chmod(0o640)
    seen = []

    def progress(*_):
        (unfinished,) = tmp_path.glob("*.unfinished")
        seen.append(mode(unfinished))

    before = os.umask(umask)
    try:
        back_up(good, tmp_path / "copy.db", progress=progress)
    finally:
        os.umask(before)
    assert set(seen) == {of_copy}
    assert mode(tmp_path / "copy.db") == of_copy


@on_posix
def test_a_source_that_may_not_be_written_to(tmp_path):
    """Its copy may be, by its owner."""
    good = made(tmp_path / "good.db", 10)
    good.chmod(0o444)
    back_up(good, tmp_path / "copy.db")
    assert mode(tmp_path / "copy.db") == 0o644 & ~umask_now()


def umask_now():
    now = os.umask(0)
    os.umask(now)
    return now


@on_posix
@pytest.mark.parametrize("damaged", [False, True])
def test_who_has_the_file_keeps_it(damaged, tmp_path):
    """A file that is replaced keeps its mode and, as far as this user may, its owner."""
    good, path = made(tmp_path / "good.db", 10), made(tmp_path / "app.db", 1)
    if damaged:
        path.write_text("no database" * 1000)
    path.chmod(0o604)
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
    owner = path.stat().st_uid
    back_up(good, path, replace=True)
    assert (mode(path), path.stat().st_uid) == (0o604, owner)
    assert rows(path, COUNT) == [(10,)]


@pytest.mark.parametrize("end", ["-wal", "-journal", "-shm", "-qsession", "-qsession-next", "-WAL"])
@pytest.mark.parametrize("there", [False, True])
def test_a_file_of_a_database(end, there, tmp_path):
    """Of the source or of another one: a copy in its place would damage that."""
    good, other = made(tmp_path / "good.db", 10), made(tmp_path / "other.db", 10)
    for path in (good, other):
        target = path.with_name(path.name + end)
        if there:
            target.write_bytes(b"")
        with pytest.raises(BackupError, match=rf"{end}' belongs to the database .*{path.name}"):
            back_up(good, target, replace=True)
        assert target.exists() == there
        assert whole(path)


@on_posix
@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("replace", [False, True])
def test_a_symbolic_link(there, replace, tmp_path):
    """It stays, and the copy is where it leads."""
    good, kept = made(tmp_path / "good.db", 10), tmp_path / "kept"
    kept.mkdir()
    if there:
        made(kept / "real.db", 1)
    link = tmp_path / "latest.db"
    link.symlink_to("kept/real.db")
    if there and not replace:
        with pytest.raises(FileExistsError):
            back_up(good, link)
        return
    back_up(good, link, replace=replace)
    assert link.is_symlink()
    assert rows(kept / "real.db", COUNT) == [(10,)]
    assert listed(kept) == ["real.db"]


@on_posix
def test_symbolic_links_in_a_circle(tmp_path):
    """They lead nowhere."""
    good = made(tmp_path / "good.db", 10)
    (tmp_path / "a.db").symlink_to("b.db")
    (tmp_path / "b.db").symlink_to("a.db")
    with pytest.raises(FileExistsError):
        back_up(good, tmp_path / "a.db")
    assert listed(tmp_path) == ["a.db", "b.db", "good.db"]


@pytest.mark.parametrize("killed", [False, True])
def test_another_name_by_a_hard_link(killed, tmp_path):
    """As of yesterday's copy, where copies are linked to save room: it keeps what it has."""
    good, path = made(tmp_path / "good.db", 10), tmp_path / "app.db"
    if killed:
        crashed(path, 500)
    else:
        made(path, 510)
    os.link(path, tmp_path / "old.db")
    back_up(good, path, replace=True)
    assert rows(path, COUNT) == [(10,)]
    assert rows(tmp_path / "old.db", COUNT) == [(510,)]
    assert whole(path)
    assert whole(tmp_path / "old.db")
    assert "app.db-wal" not in listed(tmp_path)
