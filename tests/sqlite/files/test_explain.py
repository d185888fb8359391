"""What an error of SQLite's means: the file or link that is in the way is named."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import ArgumentError, OperationalError

from qsession import create_async_engine, create_engine
from qsession.errors import SQLITE_CANTOPEN, SQLITE_READONLY
from qsession.sqlite import pool
from qsession.sqlite.files.explain import hint


def broken_link(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere" / "b.db")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Path.mkdir, "is a folder"),
        (broken_link, "is a symbolic link to .*b.db', and the folder .*nowhere' does not exist"),
        (link_to_itself, "is no path that can be followed: "),
        (os.mkfifo, "is a device or a pipe, and not a file"),
    ],
)
async def test_what_is_no_file(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    """It is said what it is, and not that the permissions or the disk were to blame."""
    make(tmp_path / "a.db")
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'a.db'}")
    with pytest.raises(OperationalError, match=message):
        async with engine.connect():
            pass
    await engine.dispose()


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
@pytest.mark.parametrize("code", [SQLITE_CANTOPEN, SQLITE_READONLY])
def test_a_file_of_the_wal_that_another_user_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, code: int
) -> None:
    """The database and its folder are in order, so it is named."""
    for each in ("", "-wal", "-shm"):
        (tmp_path / f"a.db{each}").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith(suffix))
    error: Any = sqlite3.OperationalError("SQLite's own words")
    error.sqlite_errorcode = code
    said = hint(error, str(tmp_path / "a.db"))
    assert said is not None
    assert f"a.db{suffix}', which belongs to it, " in said


def test_no_descriptor_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The permissions are in order, and are not blamed. What was opened to find out is closed."""
    error: Any = sqlite3.OperationalError("SQLite's own words")
    error.sqlite_errorcode = SQLITE_CANTOPEN
    closed: list[int] = []
    left = iter((101, 102))

    def opened(path: str, flags: int) -> int:
        try:
            return next(left)
        except StopIteration:
            raise OSError(errno.EMFILE, "Too many open files") from None

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", opened)
        patch.setattr(os, "close", closed.append)
        said = hint(error, str(tmp_path / "a.db"))
    assert said is not None
    assert "may open no more files" in said
    assert closed == [101, 102]
    assert "check the permissions" in (hint(error, str(tmp_path / "a.db")) or "")


@pytest.mark.parametrize("with_wal", [True, False])
async def test_what_a_replaced_file_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_wal: bool
) -> None:
    """SQLite takes the old WAL for one of the new file, so the error says what to do about it."""
    monkeypatch.setattr(pool, "LOOK_AGAIN", 0.0)
    path = tmp_path / "a.db"
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    async with engine.begin() as connection:
        await connection.exec_driver_sql("CREATE TABLE t (a)")
    with closing(sqlite3.connect(tmp_path / "new.db")) as other:
        other.execute("CREATE TABLE t (a)")
    os.replace(tmp_path / "new.db", path)
    if not with_wal:
        os.unlink(f"{path}-wal")
    with pytest.raises(OperationalError, match="was replaced by another file") as raised:
        async with engine.connect() as connection:
            await connection.exec_driver_sql("SELECT * FROM t")
    assert ("a.db-wal' may belong to the old file" in str(raised.value)) is with_wal
    await engine.dispose()


def test_two_slashes() -> None:
    """The URL is shown as it was given."""
    with pytest.raises(ArgumentError, match=r"Invalid SQLite URL: sqlite\+\w+://app.db\n"):
        create_async_engine("sqlite+aiosqlite://app.db")


@pytest.mark.skipif(os.name == "nt", reason="Windows deletes no file that is open")
@pytest.mark.skipif(sys.version_info < (3, 11), reason="the driver gave no extended codes yet")
def test_a_file_that_was_deleted_while_a_program_had_it_open(tmp_path: Path) -> None:
    """The WAL of the old file lies beside the new one; the disk is not to blame."""
    script = f"""
import sys
from sqlalchemy import create_engine, inspect
engine = create_engine("sqlite+qsession:///{tmp_path / "a.db"}")
try:
    inspect(engine).get_table_names()
except Exception as error:
    print(error)
"""
    engine = create_engine(f"sqlite:///{tmp_path / 'a.db'}")
    for number in range(5):
        with engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE TABLE t{number} (x)")
    (tmp_path / "a.db").unlink()
    command = [sys.executable, "-c", script]
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run(command, capture_output=True, text=True, env=paths, check=True).stdout
    assert "it was deleted, replaced or cut while a program had it open" in said
    engine.dispose()
    said = subprocess.run(command, capture_output=True, text=True, env=paths, check=True).stdout
    assert said == ""
