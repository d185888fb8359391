"""What people are told: which side, which host, how many, and what is left after Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from copy_databases import SERVERS, ask, made, tables
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from typer.testing import CliRunner, Result

from qsession import CopyError, copy
from qsession.cli import app
from qsession.transfer.collations import collations_in
from qsession.transfer.notes import notes_of
from qsession.transfer.problems import Problems
from qsession.transfer.wording import counted, reason_of
from qsession.urls import place_of

SCRIPT = "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT); INSERT INTO t VALUES (1, 'a'), (2, 'b');"


def run(*arguments: object) -> Result:
    """The command."""
    return CliRunner().invoke(app, ["copy", *map(str, arguments)])


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("sqlite:///a.db", "the file 'a.db'"),
        ("postgresql+asyncpg://me:secret@db.example.com/x", "PostgreSQL at db.example.com"),
        ("postgresql://me:secret@[::1]:5433/x", "PostgreSQL at [::1]:5433"),
        ("postgresql:///x?host=/run/pg&password=secret", "PostgreSQL at /run/pg"),
        ("postgresql://", "PostgreSQL at the default host"),
        ("mysql+asyncmy://me:secret@h/x", "MySQL or MariaDB at h"),
        ("mariadb://me:secret@h:3307/x?passwd=secret", "MariaDB at h:3307"),
        ("mssql://me:secret@h/x", "mssql at h"),
    ],
)
def test_a_place_has_no_password(url: str, place: str) -> None:
    """No user and no parameter either."""
    assert place_of(make_url(url)) == place


@pytest.mark.parametrize("number", [0, 1, 2, 1234])
def test_numbers_agree_with_their_nouns(number: int) -> None:
    """1 row, and 0, 2 or 1,234 rows."""
    assert counted(number, "row") == {1: "1 row"}.get(number, f"{number:,} rows")


ORPHAN, TYPE = "refers to a row of p that is not there", "longer than 3 characters"
ZONE = "a timestamp without a time zone: say which one was meant (--zone)"
WAYS = [
    ((TYPE,), False, "1 value of 1 kind does not fit", "a column of another type, or", "foreign"),
    ((TYPE, TYPE), False, "2 values of 1 kind do not fit", "--metadata", "foreign"),
    ((ORPHAN,), False, "1 value of 1 kind does not fit", "without the foreign key", "type"),
    ((ORPHAN,), True, "1 value of 1 kind does not fit", "qsession backup", "type"),
    ((ORPHAN, TYPE), False, "2 values of 2 kinds do not fit", "type and without the", "backup"),
    ((ZONE,), False, "1 value of 1 kind does not fit", "--zone UTC", "--metadata"),
]


@pytest.mark.parametrize(("reasons", "files", "head", "way", "other"), WAYS)
def test_each_kind_of_problem_has_its_way_out(
    reasons: tuple[str, ...], files: bool, head: str, way: str, other: str
) -> None:
    """And no other one, which would not help."""
    problems = Problems()
    for number, reason in enumerate(reasons):
        problems.add("t", "c", {"id": number}, "value", reason)
    first, *rows, last = problems.told(files, by_models=False).splitlines()
    assert first == f"{head} into the target:"
    assert rows[0].startswith("  t.c: ")
    assert way in last
    assert other not in last


@pytest.mark.parametrize(
    ("statement", "names"),
    [
        ("CREATE TABLE t (a TEXT COLLATE unicase, b TEXT collate NOCASE)", {"unicase", "NOCASE"}),
        ('CREATE TABLE t (a TEXT COLLATE "de ""x""", b COLLATE [a b])', {'de ""x""', "a b"}),
        ("CREATE INDEX i ON t (a COLLATE `c`, b COLLATE 'd')", {"c", "d"}),
        ("CREATE TABLE t (collate_by TEXT)", set()),
    ],
)
def test_names_of_collations(statement: str, names: set[str]) -> None:
    """In each kind of quotes that SQLite takes."""
    assert collations_in(statement) == names


@pytest.mark.servers
@pytest.mark.parametrize("kind", SERVERS)
def test_a_database_that_cannot_be_opened(tmp_path: Path, kind: str) -> None:
    """The side and the host are named, on either side; the password is not."""
    source = tmp_path / "s.db"
    made(source, SCRIPT)
    shut = make_url(SERVERS[kind]).set(port=1, password="secret", database="x")
    unknown = make_url(SERVERS[kind]).set(database="qsession_none")
    places = {
        "asyncpg": "PostgreSQL at 127.0.0.1",
        "psycopg": "PostgreSQL at 127.0.0.1",
        "asyncmy": "MySQL or MariaDB at 127.0.0.1",
    }
    for url in (shut, unknown):
        given = url.render_as_string(hide_password=False)
        for side, arguments in (("target", (source, given)), ("source", (given, source))):
            done = run(*arguments)
            assert done.exit_code == 2, done.output
            assert f"Nothing was copied: the {side}, {places[kind]}" in done.output
            assert "secret" not in done.output
            assert "MySQL server" not in done.output


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:secret/db",
        "mysql://user:secret",
        "postgresql://me:x@127.0.0.1:1/d?nonsense=1&password=secret",
        "mssql://me:secret@h/d",
        "nonsense://me:secret@h/d",
    ],
)
@pytest.mark.parametrize("command", ["copy", "doctor"])
def test_no_password_is_shown_of_a_wrong_url(tmp_path: Path, command: str, url: str) -> None:
    """Not even where a user forgot the host, and the password is taken for the port."""
    made(tmp_path / "s.db", SCRIPT)
    others = [str(tmp_path / "s.db")] if command == "copy" else []
    done = CliRunner().invoke(app, [command, *others, url])
    assert done.exit_code in (1, 2)
    assert isinstance(done.exception, SystemExit)
    assert "secret" not in done.output


def test_a_driver_that_is_not_installed() -> None:
    """What to install is said."""
    missing = ModuleNotFoundError("No module named 'asyncpg'", name="asyncpg")
    assert "pip install 'qsession[postgres]'" in reason_of(missing)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("text.db", "file is not a database"), ("folder", "not a regular file")],
)
def test_a_source_that_is_no_database(tmp_path: Path, name: str, expected: str) -> None:
    """A sentence, not a traceback."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.db").write_text("something else" * 100)
    done = run(tmp_path / name, tmp_path / "t.db")
    assert done.exit_code == 2
    assert expected in " ".join(done.output.replace("│", "").split())
    assert not (tmp_path / "t.db").exists()


@pytest.mark.servers
async def test_a_function_that_sqlite_lacks(new: Any, tmp_path: Path) -> None:
    """A computed column may need one: the table is named, and the side."""
    script = SCRIPT.replace("v TEXT", "v TEXT, w AS (lower(v))")
    with closing(sqlite3.connect(tmp_path / "s.db")) as raw:
        raw.create_function("shout", 1, str.upper, deterministic=True)
        raw.executescript(script.replace("lower", "shout").replace("t VALUES", "t (id, v) VALUES"))
    source = f"sqlite:///{tmp_path}/s.db"
    with pytest.raises(CopyError, match=r"table t of the source, the file '.*', cannot be read"):
        await copy(source, await new("psycopg"))
    for check in (True, False):
        with pytest.raises(CopyError, match=r"the target, .*, refused 'CREATE TABLE t .*: shout"):
            await copy(source, f"sqlite:///{tmp_path}/t.db", check=check)


@pytest.mark.servers
async def test_what_a_server_does_not_make_is_named(new: Any, tmp_path: Path) -> None:
    """A key of MariaDB has a greatest length: the statement says which table it is."""
    columns = ", ".join(f"c{number} VARCHAR(200)" for number in range(9))
    key = ", ".join(f"c{number}" for number in range(9))
    source = made(tmp_path / "s.db", f"CREATE TABLE wide ({columns}, PRIMARY KEY ({key}));")
    with pytest.raises(CopyError) as refused:
        await copy(source, await new("asyncmy"))
    told = refused.value.message
    assert "the target, MariaDB at 127.0.0.1:3306, refused 'CREATE TABLE wide (" in told
    assert "Create the table there first. The target is as it was" in told


async def test_a_cancellation_notes_what_is_left(tmp_path: Path) -> None:
    """A note on the error that is raised anyway, as PEP 678 has it."""
    source, target = made(tmp_path / "s.db", SCRIPT), f"sqlite:///{tmp_path}/t.db"

    def cancel(step: object) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    # Not in a task of its own: Python 3.10 raises a new error for one who awaits that.
    with pytest.raises(asyncio.CancelledError) as cancelled:
        await copy(source, target, progress=cancel)
    assert notes_of(cancelled.value) == [
        f"The target is as it was. Target: the file '{tmp_path}/t.db'"
    ]
    assert not (tmp_path / "t.db").exists()


async def until(url: str, query: str) -> None:
    """Ask a server until it answers with something else than 0."""
    while not (await ask(url, query))[0][0]:
        await asyncio.sleep(0.01)


LEFT = {
    "sqlite": "The target is as it was. Target: the file",
    "psycopg": "The target is as it was. Target: PostgreSQL at 127.0.0.1:5432",
    "asyncmy": "The target is as it was. Target: MariaDB at 127.0.0.1:3306",
    "resume": "The target keeps what was copied so far. Go on with --resume, or begin anew",
    "check": "The target is as it was. Target: the file",
}


@pytest.mark.servers
@pytest.mark.skipif(os.name == "nt", reason="needs SIGINT for one process")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("how", LEFT)
async def test_ctrl_c(new: Any, tmp_path: Path, how: str, end: signal.Signals) -> None:
    """The copy stands at a table of the source that somebody has locked, and is interrupted."""
    source = await new("asyncpg")
    await ask(source, "CREATE TABLE t (id integer PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    target = f"sqlite:///{tmp_path}/new.db"
    if how not in ("sqlite", "check"):
        target = await new({"resume": "psycopg"}.get(how, how))
    options = {"resume": ["--resume"], "check": ["--check"]}.get(how, [])
    engine = create_async_engine(source)
    try:
        async with engine.connect() as locking:
            await locking.exec_driver_sql("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
            command = [sys.executable, "-m", "qsession.cli", "copy", source, target, *options]
            copying = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
            )
            waiting = "SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation "
            await until(source, f"{waiting} WHERE relname = 't' AND NOT granted")
            copying.send_signal(end)
            _, said = await copying.communicate()
    finally:
        await engine.dispose()
    assert copying.returncode == 128 + end, said
    told = said.decode()
    assert f"Interrupted. {LEFT[how]}" in told
    assert "Traceback" not in told
    assert not [name for name in os.listdir(tmp_path) if name.startswith("new.db")]
    if how not in ("sqlite", "check"):
        assert await tables(target) == ({"t", "qsession_copy"} if how == "resume" else set())


@pytest.mark.parametrize("name", ["calibre", "optuna"])
async def test_nothing_but_the_report_is_printed(tmp_path: Path, name: str) -> None:
    """No warning of a library, whatever Python is told to show."""
    script = (Path(__file__).parent / "schemas" / f"{name}.sql").read_text(encoding="utf-8")
    made(tmp_path / "s.db", script)
    command = ["-W", "always", "-m", "qsession.cli", "copy", "s.db", "t.db", "--verify"]
    copying = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    shown, said = await copying.communicate()
    assert (copying.returncode, said) == (0, b"")
    assert b"copied and verified" in shown


@pytest.mark.servers
async def test_texts_that_mariadb_takes_for_equal(new: Any, tmp_path: Path) -> None:
    """The message says with which collation the table is to be created, and that works."""
    script = "CREATE TABLE t (k TEXT PRIMARY KEY); INSERT INTO t VALUES ('a'), ('A'), ('a ');"
    source, here = made(tmp_path / "s.db", script), await new("asyncmy")
    with pytest.raises(CopyError, match=r"t: Duplicate entry .* COLLATE utf8mb4_nopad"):
        await copy(source, here)
    await ask(here, "CREATE TABLE t (k VARCHAR(9) COLLATE utf8mb4_nopad_bin PRIMARY KEY)")
    assert (await copy(source, here, verify=True)).rows == 3
