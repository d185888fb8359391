"""What a copy leaves as it is: its source always, and with ``check`` the rows of the target."""

from __future__ import annotations

import hashlib
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from plain_rows import dump
from sqlalchemy import URL
from typer.testing import CliRunner

from qsession import CopyError, copy
from qsession.cli import app
from qsession.transfer.reading import open_engine
from qsession.transfer.schema import reflect
from qsession.transfer.sqlite_schema import LOST
from qsession.urls import with_driver

TABLE = (
    "CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER(11)); INSERT INTO t VALUES (1, 2), (2, 3)"
)


def made(path: Path, sql: str = TABLE, mode: str = "DELETE") -> str:
    """A database by plain sqlite3, and its URL."""
    with closing(sqlite3.connect(path)) as raw:
        raw.execute(f"PRAGMA journal_mode={mode}")
        raw.executescript(sql)
    return f"sqlite:///{path}"


def contents(folder: Path) -> dict[str, str]:
    """Names and contents of all files."""
    return {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in folder.iterdir()}


@pytest.mark.parametrize("mode", ["DELETE", "TRUNCATE", "WAL"])
@pytest.mark.parametrize("check", [True, False])
async def test_the_source_has_the_same_bytes_afterwards(
    tmp_path: Path, mode: str, check: bool
) -> None:
    """It stays in the journal mode that it has, and nothing is left beside it."""
    folder = tmp_path / "of a % user?"
    folder.mkdir()
    made(folder / "s.db", mode=mode)
    before = contents(folder)
    source = URL.create("sqlite", database=str(folder / "s.db"))
    report = await copy(source, f"sqlite:///{tmp_path}/t.db", check=check)
    assert report.rows == 2
    assert contents(folder) == before
    assert (tmp_path / "t.db").exists() is not check


async def test_a_target_with_rows_can_be_checked(tmp_path: Path) -> None:
    """With ``replace``, as the message says: its rows count for deleted, and are there after."""
    source = made(tmp_path / "s.db")
    target = made(tmp_path / "t.db", TABLE.replace("VALUES (1, 2)", "VALUES (1, 9)"))
    before = dump(tmp_path / "t.db")
    with pytest.raises(CopyError, match=r"there are rows in t\..*--replace"):
        await copy(source, target, check=True)
    report = await copy(source, target, check=True, replace=True)
    assert (report.rows, report.written) == (2, False)
    assert dump(tmp_path / "t.db") == before


def test_the_command_checks_a_target_with_rows(tmp_path: Path) -> None:
    """``--check --replace``."""
    source, target = made(tmp_path / "s.db"), made(tmp_path / "t.db")
    before = dump(tmp_path / "t.db")
    shown = CliRunner().invoke(app, ["copy", source, target, "--check", "--replace"])
    assert shown.exit_code == 0, shown.output
    assert "nothing was written" in shown.output
    assert dump(tmp_path / "t.db") == before


@pytest.mark.parametrize("mode", ["DELETE", "TRUNCATE", "WAL"])
@pytest.mark.parametrize("rows", [True, False])
async def test_a_check_leaves_the_bytes_of_its_target(
    tmp_path: Path, mode: str, rows: bool
) -> None:
    """It is not switched to WAL mode, a table that is missing is not made, nothing is beside it."""
    source = made(tmp_path / "s.db", f"{TABLE}; CREATE TABLE more (id INTEGER PRIMARY KEY)")
    folder = tmp_path / "target"
    folder.mkdir()
    target = made(folder / "t.db", TABLE if rows else TABLE.partition(";")[0], mode)
    before = contents(folder)
    if rows:
        with pytest.raises(CopyError, match="rows in t"):
            await copy(source, target, check=True)
    report = await copy(source, target, check=True, replace=rows)
    assert [each.rows for each in report.tables] == [0, 2]
    assert contents(folder) == before


async def test_a_check_makes_no_file(tmp_path: Path) -> None:
    """Nor a file beside it; a folder that is not there is told, as a copy would."""
    folder = tmp_path / "target"
    folder.mkdir()
    source = made(tmp_path / "s.db")
    assert (await copy(source, f"sqlite:///{folder}/t.db", check=True)).rows == 2
    assert contents(folder) == {}
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        await copy(source, f"sqlite:///{folder}/none/t.db", check=True)


KILLED = """
import os, sqlite3, sys
raw = sqlite3.connect(sys.argv[1])
raw.execute("PRAGMA journal_mode=WAL")
raw.executescript(sys.argv[2])
os.kill(os.getpid(), 9)
"""


def killed(path: Path) -> str:
    """A database whose last program was killed: what it has committed is in its WAL."""
    subprocess.run([sys.executable, "-c", KILLED, path, TABLE], check=False)
    assert Path(f"{path}-wal").stat().st_size > 0
    return f"sqlite:///{path}"


@pytest.mark.parametrize("check", [True, False])
async def test_a_wal_that_a_killed_program_has_left_stays_as_it_is(
    tmp_path: Path, check: bool
) -> None:
    """Its rows are read. It is not moved into the file of a source, or of a checked target."""
    folder = tmp_path / "killed"
    folder.mkdir()
    left = killed(folder / "s.db")

    def kept() -> dict[str, str]:
        return {name: each for name, each in contents(folder).items() if "-shm" not in name}

    before = kept()
    assert (await copy(left, f"sqlite:///{tmp_path}/t.db", check=check)).rows == 2
    assert kept() == before
    other = made(tmp_path / "other.db")
    assert (await copy(other, left, check=True, replace=True)).rows == 2
    assert kept() == before


async def test_a_check_leaves_an_unfinished_copy_as_it_is(tmp_path: Path) -> None:
    """To begin anew would delete how far it came; to look whether all fits does not."""
    source = made(tmp_path / "s.db")
    books = "CREATE TABLE qsession_copy (name, rows_done, digest, completing)"
    progress = "INSERT INTO qsession_copy VALUES ('t', 1, '0', NULL)"
    target = made(tmp_path / "t.db", f"{TABLE}; {books}; {progress}")
    before = dump(tmp_path / "t.db")
    await copy(source, target, check=True, replace=True)
    assert dump(tmp_path / "t.db") == before


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE c (id INTEGER PRIMARY KEY, p REFERENCES gone)",
        "CREATE TABLE p (a, b, PRIMARY KEY (a, b)); CREATE TABLE c (id INTEGER, p REFERENCES p)",
        "CREATE TABLE p (a); CREATE TABLE c (id INTEGER PRIMARY KEY, p REFERENCES p)",
    ],
    ids=["no table", "a key of two columns", "no key"],
)
async def test_a_foreign_key_to_no_primary_key_does_not_stop_a_copy(
    tmp_path: Path, sql: str
) -> None:
    """SQLite takes it, so a file may have one; for another database it is named as lost."""
    source = made(tmp_path / "s.db", f"{sql}; INSERT INTO c VALUES (1, NULL)")
    assert (await copy(source, f"sqlite:///{tmp_path}/t.db")).rows == 1
    assert "REFERENCES" in "".join(dump(tmp_path / "t.db"))
    engine = open_engine(with_driver(source))
    async with engine.connect() as connection:
        reflected = await connection.run_sync(reflect)
    await engine.dispose()
    assert not reflected.tables["c"].foreign_keys
    (lost,) = reflected.tables["c"].info[LOST]
    assert lost.startswith("the foreign key of p to ")


def test_a_type_with_a_length_that_it_cannot_have_is_copied_in_silence(tmp_path: Path) -> None:
    """INTEGER(11), as in files that come from MySQL: warnings are errors in these tests."""
    source = made(tmp_path / "s.db")
    done = CliRunner().invoke(app, ["copy", source, str(tmp_path / "t.db")])
    assert done.exit_code == 0, done.output
