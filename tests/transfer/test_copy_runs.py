"""`qsession.copy` beside others, on connections that break, and between names of one database."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from contextlib import contextmanager
from decimal import Decimal

import pytest
from copy_databases import ask, made, tables
from sqlalchemy import URL, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from typer.testing import CliRunner

from qsession import CopyError, copy, create_async_engine
from qsession.cli import app
from qsession.sqlite.processes.turn import FileTurn
from qsession.transfer import books, loading, new_file, reading, run, target
from qsession.transfer.digest import Digest
from qsession.transfer.kinds import Kind, Wanted
from qsession.transfer.values import Unfit, converter

SERVERS = ("asyncpg", "psycopg", "asyncmy")
MANY = """
CREATE TABLE t (id INTEGER PRIMARY KEY, word TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)
INSERT INTO t SELECT i, 'word ' || i FROM n;
CREATE TABLE u (id INTEGER PRIMARY KEY);
INSERT INTO u SELECT id FROM t;
"""


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Ten rows at a time."""
    monkeypatch.setattr(reading, "BATCH_ROWS", 10)
    monkeypatch.setattr(reading, "_FIRST_ROWS", 10)


class Beside:
    """A copy that has written its first rows when the tables of another one are to be dropped."""

    def __init__(self, source, url):
        self.wrote = asyncio.Event()
        self.arguments = source, url
        self.drop = target._drop
        self.copying = None

    def note(self, step):
        if step.done:
            self.wrote.set()

    async def __call__(self, engine, traces):
        if self.copying is not None:  # this is its own end
            return
        self.copying = asyncio.ensure_future(copy(*self.arguments, verify=True, progress=self.note))
        await self.wrote.wait()
        await self.drop(engine, traces)


@pytest.mark.servers
@pytest.mark.parametrize("check", [True, False])
async def test_tables_that_another_copy_fills(new, tmp_path, monkeypatch, check):
    """A check, or a copy that failed, drops the tables that it made: not with rows of another."""
    source, here = made(tmp_path / "s.db", MANY), await new("asyncmy")
    beside = Beside(source, here)
    monkeypatch.setattr(target, "_drop", beside)

    def fail(step):
        raise RuntimeError("stopped")

    if check:
        report = await copy(source, here, check=True)
        assert report.notes[0].startswith("this copy made the tables t, u, and they stay")
    else:
        with pytest.raises(
            CopyError, match=r"stopped\. The target is as it was; this .* tables t, u, and"
        ):
            await copy(source, here, progress=fail)
    assert (await beside.copying).rows == 1000
    assert await ask(here, "SELECT count(*) FROM t") == [(500,)]
    assert await ask(here, "SELECT count(*) FROM u") == [(500,)]


@pytest.mark.servers
async def test_tables_that_are_used_for_long(new, tmp_path, monkeypatch):
    """They are left to whoever uses them, who is held up by nothing, and so is the check."""
    source, here = made(tmp_path / "s.db", MANY), await new("asyncmy")
    drop = target._drop
    monkeypatch.setattr(target, "_ATTEMPTS", 2)
    monkeypatch.setattr(target, "_PAUSE", 0)

    async def beside(engine, traces):
        others = create_async_engine(here)
        async with others.begin() as other:
            await other.execute(text("SELECT * FROM t"))
            await drop(engine, traces)
            await other.execute(text("INSERT INTO u VALUES (7)"))
        await others.dispose()

    monkeypatch.setattr(target, "_drop", beside)
    report = await copy(source, here, check=True)
    assert "others use them" in report.notes[0]
    assert await ask(here, "SELECT id FROM u") == [(7,)]


async def test_tables_that_are_dropped_meanwhile(tmp_path, monkeypatch):
    """A copy that relied on the tables of another one does not leave them out silently."""
    monkeypatch.setattr(run, "missing_tables", lambda connection, declared: [])
    source = made(tmp_path / "s.db", MANY)
    with pytest.raises(CopyError, match=r"t, u in the target is not a table .* another copy"):
        await copy(source, f"sqlite+aiosqlite:///{tmp_path / 'target.db'}")


async def end_the_others(url):
    """End all other connections to a database, as an administrator does."""
    if url.startswith("postgresql"):
        others = "FROM pg_stat_activity WHERE datname = current_database()"
        await ask(url, f"SELECT pg_terminate_backend(pid) {others} AND pid <> pg_backend_pid()")
        return
    others = "FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()"
    for (number,) in await ask(url, f"SELECT id {others}"):
        await ask(url, f"KILL {number}")


@pytest.fixture
def lose(monkeypatch):
    """Has a copy lose its connections to a database, once, before it writes its sixth batch."""
    write, written = loading.write, []

    def prepare(url):
        async def losing(*arguments):
            written.append(True)
            if len(written) == 6:
                await end_the_others(url)
            await write(*arguments)

        monkeypatch.setattr(loading, "write", losing)

    return prepare


@pytest.mark.servers
@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("resume", [False, True])
async def test_a_connection_that_is_lost(new, tmp_path, lose, kind, resume):
    """What is told is the loss and what is left, not that a ROLLBACK failed afterwards."""
    source, here = made(tmp_path / "s.db", MANY), await new(kind)
    lose(here)
    left = "Go on with --resume" if resume else "The target is as it was$"
    with pytest.raises(CopyError, match=f"the target, .* at 127.*, refused rows of t: .*{left}"):
        await copy(source, here, resume=resume)
    assert await tables(here) == ({"t", "u", "qsession_copy"} if resume else set())
    assert (await copy(source, here, resume=resume, verify=True)).rows == 1000


@pytest.mark.servers
@pytest.mark.parametrize("kind", SERVERS)
async def test_a_connection_that_is_lost_at_commit(new, tmp_path, monkeypatch, kind):
    """Nobody knows then what the server has done, so nothing is promised of the target."""
    source, here = made(tmp_path / "s.db", MANY), await new(kind)

    async def lose_it(*arguments):
        await end_the_others(here)
        return []

    monkeypatch.setattr(run, "past_the_rows", lose_it)
    with pytest.raises(CopyError, match="not known whether COMMIT took effect"):
        await copy(source, here)


@pytest.mark.servers
@pytest.mark.parametrize("kind", SERVERS)
async def test_a_source_that_is_lost(new, tmp_path, lose, kind):
    """The connection that is read from ends in the middle: nothing is kept."""
    there, here = await new(kind), f"sqlite+aiosqlite:///{tmp_path / 'target.db'}"
    await copy(made(tmp_path / "s.db", MANY), there)
    lose(there)
    with pytest.raises(CopyError, match=r"source, .* at 127\..*The target is as it was"):
        await copy(there, here)
    assert not list(tmp_path.glob("target*"))


@pytest.mark.servers
@pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
async def test_rows_that_a_policy_hides(new, tmp_path, kind):
    """Row-level security is no way to lose rows: PostgreSQL refuses, as source and as target."""
    there, role = await new(kind), f"qsession_copy_{os.getpid()}_{kind}"
    await ask(
        there,
        "CREATE TABLE t (id integer PRIMARY KEY, word text)",
        "INSERT INTO t VALUES (1, 'mine'), (2, 'hidden')",
        f"CREATE ROLE {role} LOGIN PASSWORD 'secret'",
        f"GRANT ALL ON t TO {role}",
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY p ON t USING (word = 'mine')",
    )
    theirs = make_url(there).set(username=role, password="secret")
    file = f"sqlite+aiosqlite:///{tmp_path / 'file.db'}"
    try:
        with pytest.raises(CopyError, match="affected by row-level security"):
            await copy(theirs, file, verify=True)
        assert (await copy(there, file, verify=True)).rows == 2
        await ask(there, "DELETE FROM t WHERE word = 'mine'")
        with pytest.raises(CopyError, match="affected by row-level security"):
            await copy(file, theirs)
    finally:
        await ask(there, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


@pytest.mark.servers
@pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
async def test_the_rights_that_a_copy_needs(new, tmp_path, kind):
    """What is missing is told, and with what is named nothing is."""
    there, here = await new(kind), await new(kind)
    role = f"qsession_copy_rights_{os.getpid()}_{kind}"
    for each in there, here:
        await ask(each, "CREATE TABLE t (id serial PRIMARY KEY, word text)")
    await ask(there, "INSERT INTO t (word) VALUES ('a')", f"CREATE ROLE {role} LOGIN PASSWORD 's'")
    theirs = [make_url(each).set(username=role, password="s") for each in (there, here)]
    try:
        with pytest.raises(CopyError, match=r"permission denied.* A copy needs SELECT"):
            await copy(*theirs)
        await ask(there, f"GRANT SELECT ON t, t_id_seq TO {role}")
        with pytest.raises(CopyError, match=r"permission denied.* SELECT, INSERT and UPDATE"):
            await copy(*theirs)
        rights = f"GRANT SELECT, INSERT, UPDATE ON t TO {role}"
        await ask(here, rights, f"GRANT SELECT, UPDATE ON t_id_seq TO {role}")
        assert (await copy(*theirs, verify=True)).rows == 1
        await ask(here, f"GRANT TRUNCATE ON t TO {role}")
        await ask(here, f"GRANT CREATE ON SCHEMA public TO {role}")
        assert (await copy(*theirs, replace=True, resume=True)).rows == 1
    finally:
        await ask(there, f"DROP OWNED BY {role}")
        await ask(here, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def other_name(url, kind):
    """The same database under a name that looks like another one."""
    found = make_url(url)
    if kind == "asyncmy":
        return found.set(drivername="mariadb+asyncmy")
    query = {"host": f"{found.host}:{found.port}"}
    return URL.create(
        "postgresql+asyncpg", found.username, found.password, database=found.database, query=query
    )


@pytest.mark.servers
@pytest.mark.parametrize("kind", SERVERS)
async def test_two_names_of_one_database(new, tmp_path, kind):
    """It is neither emptied nor waited for; another database of the same server is another one."""
    there = await new(kind)
    await copy(made(tmp_path / "s.db", MANY), there)
    with pytest.raises(ArgumentError, match="the same database"):
        await asyncio.wait_for(copy(there, other_name(there, kind), replace=True), 20)
    assert await ask(there, "SELECT count(*) FROM t") == [(500,)]
    assert (await copy(there, await new(kind), replace=True, verify=True)).rows == 1000


async def test_two_names_of_one_file(tmp_path):
    """A hard link, a symbolic one, a detour."""
    made(tmp_path / "s.db", MANY)
    (tmp_path / "hard.db").hardlink_to(tmp_path / "s.db")
    (tmp_path / "soft.db").symlink_to("s.db")
    (tmp_path / "folder").mkdir()
    for name in ("s.db", "hard.db", "soft.db", "folder/../s.db"):
        with pytest.raises(ArgumentError, match="the same database"):
            file = f"sqlite+aiosqlite:///{tmp_path}/{name}"
            await copy(f"sqlite+aiosqlite:///{tmp_path}/s.db", file, replace=True)
    assert await ask(f"sqlite+aiosqlite:///{tmp_path}/s.db", "SELECT count(*) FROM t") == [(500,)]


def run_copy(*arguments):
    """The command; anything but an exit is raised as it is."""
    return CliRunner().invoke(app, ["copy", *map(str, arguments)], catch_exceptions=False)


WRONG_URLS = {
    "postgresql+asyncpg://me:secret@127.0.0.1:port/x": "not a database URL",
    "mysql+asyncmy://me:secret@127.0.0.1": "names no database",
    "postgresql+asyncpg://me:secret@127.0.0.1/x?foo=1": "'foo'",
    "postgresql+psycopg://me:secret@127.0.0.1/x?foo=1": '"foo"',
    "mysql+asyncmy://me:secret@127.0.0.1/x?foo=1": "'foo'",
}


@pytest.mark.parametrize("url", WRONG_URLS)
def test_wrong_urls(tmp_path, url):
    """Each is told in a sentence, without the password, and is an ArgumentError in code."""
    source = made(tmp_path / "s.db", MANY)
    done = run_copy(tmp_path / "s.db", url)
    assert done.exit_code == 2
    assert WRONG_URLS[url] in " ".join(done.output.replace("│", "").split())
    assert "secret" not in done.output
    with pytest.raises(SQLAlchemyError, match=WRONG_URLS[url]):
        asyncio.run(copy(source, url))


@pytest.mark.servers
@pytest.mark.parametrize("kind", ["asyncpg", "asyncmy"])
async def test_urls_that_say_no_driver(new, tmp_path, kind):
    """They get the one that create_pool takes, and sslmode is what asyncpg calls ssl."""
    there = make_url(await new(kind))
    bare = there.set(drivername=there.get_backend_name())
    if kind == "asyncpg":
        bare = bare.update_query_dict({"sslmode": "disable"})
    assert (await copy(made(tmp_path / "s.db", MANY), bare)).rows == 1000


@pytest.mark.parametrize("line", ["raise KeyError('key')", "x = = 1", "import sys; sys.exit()"])
def test_models_that_cannot_be_imported(tmp_path, monkeypatch, line):
    """The module and its error are named, whatever it raises."""
    made(tmp_path / "s.db", MANY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "broken_models.py").write_text(line)
    done = run_copy("s.db", "target.db", "--metadata", "broken_models:Base")
    assert done.exit_code == 2
    assert "'broken_models:Base' cannot be imported: " in done.output
    assert any(each in done.output for each in ("KeyError: 'key'", "SyntaxError", "SystemExit"))


@pytest.mark.servers
@pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
async def test_floats_of_32_bits(new, kind):
    """They arrive as they were, infinity and NaN included."""
    there, here = await new(kind), await new(kind)
    values = "(1, 1.1, 1.1), (2, 3.4e38, 0.1), (3, 'NaN', '-Infinity')"
    await ask(
        there,
        "CREATE TABLE t (id integer PRIMARY KEY, narrow real, wide float8)",
        f"INSERT INTO t VALUES {values}",
    )
    await copy(there, here, verify=True)
    same = "SELECT id FROM t WHERE (id, narrow, wide) IN (VALUES (1, 1.1::real, 1.1::float8), "
    same += "(2, 3.4e38, 0.1), (3, 'NaN', '-Infinity'))"
    assert await ask(here, f"SELECT count(*) FROM ({same}) AS s") == [(3,)]


@pytest.mark.servers
@pytest.mark.parametrize("levels", [300, 800])
async def test_json_of_many_levels(new, tmp_path, levels):
    """What can be read can be compared, too; what has too many levels is named by its row."""
    here, deep = await new("asyncpg"), f"{'[' * levels}1{']' * levels}"
    script = f"""
    CREATE TABLE t (id INTEGER PRIMARY KEY, j JSON);
    INSERT INTO t VALUES (1, '{deep}'), (2, '{deep.replace("[", '{"a":').replace("]", "}")}');
    """
    source = made(tmp_path / "s.db", script)
    assert (await copy(source, here, verify=True)).rows == 2
    await ask(source, f"INSERT INTO t VALUES (3, '{'[' * 100_000}{']' * 100_000}')")
    with pytest.raises(CopyError, match="nested too deeply") as refused:
        await copy(source, here, replace=True)
    assert [each.row for each in refused.value.problems] == ["id=3"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ('{"a": 1, "b": [1.50, true]}', '{"b":[15e-1,true],"a":1.0}', True),
        ("1", '"1"', False),
        ("[1, 2]", "[2, 1]", False),
        ("1", "true", False),
        (str(10**30), "1e30", True),
    ],
)
def test_json_by_value(one, other, same):
    """Numbers are the same in each notation, and none is a text."""
    first, second = Digest([Kind.JSON]), Digest([Kind.JSON])
    first.add([(one,)])
    second.add([(other,)])
    assert (first.text == second.text) is same


@pytest.mark.servers
@pytest.mark.parametrize("kind", ["sqlite", *SERVERS])
async def test_books_that_were_only_opened(new, tmp_path, kind):
    """A copy that was killed behind CREATE TABLE, which MySQL commits, is resumed like others."""
    source, here = made(tmp_path / "s.db", MANY), await new(kind)
    engine = create_async_engine(here)
    async with engine.begin() as connection:
        await connection.run_sync(books.books.create)
    await engine.dispose()
    assert (await copy(source, here, resume=True, verify=True)).rows == 1000
    assert await tables(here) == {"t", "u"}


@contextmanager
def failing_behind_the_rows(monkeypatch):
    """A copy fails once all of its rows are there."""

    async def fail(*arguments):
        raise CopyError("no")

    with monkeypatch.context() as patched:
        patched.setattr(run, "past_the_rows", fail)
        yield


@pytest.mark.servers
@pytest.mark.parametrize("kind", ["sqlite", *SERVERS])
async def test_books_that_a_failed_replacement_leaves(new, tmp_path, monkeypatch, kind):
    """What an earlier copy has done can still be gone on with; once it is replaced it cannot."""
    source, here = made(tmp_path / "s.db", MANY), await new(kind)

    with failing_behind_the_rows(monkeypatch):
        with pytest.raises(CopyError, match="no"):
            await copy(source, here, resume=True)
        with pytest.raises(CopyError, match=r"no\. The target is as it was"):
            await copy(source, here, replace=True)
    assert await ask(here, "SELECT name, rows_done FROM qsession_copy WHERE rows_done > 0")
    again = await copy(source, here, resume=True, verify=True)
    assert [each.already for each in again.tables] == [500, 500]
    assert await tables(here) == {"t", "u"}


@pytest.mark.servers
@pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
async def test_settings_of_each_transaction(new, tmp_path, kind):
    """They hold for all batches of a copy that can be resumed, not for the first of each table."""
    source, here = made(tmp_path / "s.db", MANY), await new(kind)
    await ask(
        here,
        "CREATE TABLE t (id bigint PRIMARY KEY, word text)",
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF NEW.id IN (1, 300) "
        "THEN PERFORM pg_sleep(0.5); END IF; RETURN NEW; END'",
        "CREATE TRIGGER slow BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION slow()",
        f"ALTER DATABASE {make_url(here).database} SET statement_timeout = '300ms'",
    )
    assert (await copy(source, here, resume=True)).rows == 1000


@pytest.mark.servers
@pytest.mark.parametrize("kind", ["sqlite", *SERVERS])
@pytest.mark.parametrize("resume", [False, True])
async def test_books_that_are_replaced(new, tmp_path, monkeypatch, kind, resume):
    """They are gone in the end, whatever the copy was told that has replaced them."""
    source, here = made(tmp_path / "s.db", MANY), await new(kind)

    with failing_behind_the_rows(monkeypatch):
        with pytest.raises(CopyError, match="no"):
            await copy(source, here, resume=True)
    report = await copy(source, here, replace=True, resume=resume, verify=True)
    assert (report.rows, report.notes) == (1000, ())
    assert await tables(here) == {"t", "u"}


async def test_a_source_that_has_changed(tmp_path):
    """The error says one thing to do, not two that contradict each other."""
    source, here = made(tmp_path / "s.db", MANY), f"sqlite+aiosqlite:///{tmp_path / 't.db'}"

    def stop(step):
        if step.done > 100:
            raise RuntimeError("stopped")

    with pytest.raises(CopyError, match="Go on with --resume"):
        await copy(source, here, resume=True, progress=stop)
    await ask(source, "UPDATE t SET word = 'other' WHERE id = 5")
    with pytest.raises(CopyError, match="Begin anew with --replace") as refused:
        await copy(source, here, resume=True)
    assert "Go on" not in str(refused.value)
    assert "the target keeps what was copied" in str(refused.value)
    assert (await copy(source, here, resume=True, replace=True, verify=True)).rows == 1000


def test_a_decimal_that_is_no_number():
    """NaN goes where the database knows it; infinity needs a column without limits."""
    takes = Wanted(Kind.NUMERIC, nan=True, precision=10, scale=2)
    assert converter(takes)(Decimal("NaN")).is_nan()
    for value in (Decimal("Infinity"), Decimal("-Infinity"), float("inf")):
        with pytest.raises(Unfit, match="infinity or NaN"):
            converter(takes)(value)
    for value in (Decimal("NaN"), float("nan")):
        with pytest.raises(Unfit, match="infinity or NaN"):
            converter(Wanted(Kind.NUMERIC, nan=False))(value)


async def test_a_file_that_another_one_makes_first(tmp_path, monkeypatch):
    """The copy is refused then, and leaves that file alone."""
    script = "CREATE TABLE t (id INTEGER PRIMARY KEY); INSERT INTO t VALUES (1);"
    file = tmp_path / "new.db"
    open_engine = target.open_engine

    def others_first(url, collations):
        made(file, script)
        return open_engine(url, collations)

    monkeypatch.setattr(target, "open_engine", others_first)
    with pytest.raises(CopyError, match="the target is not empty"):
        await copy(made(tmp_path / "s.db", script), f"sqlite+aiosqlite:///{file}")
    assert await ask(f"sqlite+aiosqlite:///{file}", "SELECT id FROM t") == [(1,)]


async def test_a_file_that_another_copy_waits_for(tmp_path, monkeypatch):
    """A copy that fails leaves its new file then, and the other one goes on with it."""
    slow = made(tmp_path / "slow.db", MANY.replace("500", "20000"))
    quick = made(tmp_path / "quick.db", "CREATE TABLE q (id INTEGER PRIMARY KEY);")
    target = f"sqlite+aiosqlite:///{tmp_path / 'new.db'}"
    waiting, turns, take = [], set(), FileTurn.take

    def noted(turn, *args):
        turns.add(turn)
        return take(turn, *args)

    def fail(step):
        if step.done and not waiting:
            waiting.append(asyncio.ensure_future(copy(quick, target)))
        if turns:
            raise CopyError("enough")

    monkeypatch.setattr(FileTurn, "take", noted)
    with pytest.raises(CopyError, match=r"enough.*it stays: others use it"):
        await copy(slow, target, progress=fail)
    assert (await waiting[0]).rows == 0
    assert await tables(target) == {"q"}


@pytest.mark.parametrize("waits", [False, True])
async def test_a_file_that_another_program_has_opened(tmp_path, waits):
    """A copy that fails leaves its new file to a plain sqlite3 that waits there, or idles."""
    source, file = made(tmp_path / "s.db", MANY), tmp_path / "new.db"
    others, writing = [], []

    def write():
        others[0].execute("CREATE TABLE mine (id INTEGER PRIMARY KEY)")
        others[0].commit()

    def fail(step):
        if step.done and not others:
            others.append(sqlite3.connect(file, check_same_thread=False, timeout=30))
            others[0].execute("SELECT count(*) FROM sqlite_master").fetchone()
            if waits:
                writing.append(asyncio.ensure_future(asyncio.to_thread(write)))
        if step.done > 400:
            raise CopyError("enough")

    with pytest.raises(CopyError, match="it stays: others use it"):
        await copy(source, f"sqlite+aiosqlite:///{file}", progress=fail)
    if waits:
        await writing[0]
    else:
        write()
    others[0].close()
    assert await tables(f"sqlite+aiosqlite:///{file}") == {"mine"}


async def test_a_file_that_is_replaced_before_its_turn(tmp_path):
    """What was opened is not what has the name then."""
    opened = new_file.open_or_make(tmp_path / "new.db")
    assert opened.made
    opened.refuse_another()
    opened.file.rename(tmp_path / "old.db")
    other = new_file.open_or_make(tmp_path / "new.db")
    assert other.made
    assert not new_file.open_or_make(tmp_path / "new.db").made
    with pytest.raises(CopyError, match="another copy, which failed, removed"):
        opened.refuse_another()


async def test_a_link_to_a_file_that_is_not_there(tmp_path):
    """A copy that fails removes the file, not the link."""
    source = made(tmp_path / "s.db", "CREATE TABLE t (id INTEGER PRIMARY KEY);")
    link, file = tmp_path / "link.db", tmp_path / "real.db"
    link.symlink_to(file)

    def fail(step):
        raise CopyError("enough")

    with pytest.raises(CopyError, match="enough"):
        await copy(source, f"sqlite+aiosqlite:///{link}", progress=fail)
    assert link.is_symlink()
    assert not file.exists()
