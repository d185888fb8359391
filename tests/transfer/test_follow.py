"""A copy that follows its source: on each kind of target the same promises."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys

import pytest
from copy_databases import ask, made, tables
from following import NOTES, PEOPLE, SCRIPT, At, followed, leftovers, plain, same, source
from sqlalchemy.exc import ArgumentError

from qsession import CopyError, copy, create_async_engine
from qsession.testing import When, cancel_at
from qsession.transfer.events import Stage
from qsession.transfer.following.run import clean, follow
from qsession.transfer.following.source import open_source
from qsession.transfer.options import Options, url_of
from qsession.transfer.schema import BOOKS

KINDS = [
    "sqlite",
    *(pytest.param(kind, marks=pytest.mark.servers) for kind in ("asyncpg", "psycopg", "asyncmy")),
]
each_kind = pytest.mark.parametrize("kind", KINDS)


def all_sorts(raw: sqlite3.Connection, n: int) -> None:
    """Each sort of write once. ``n`` makes them others each time."""
    raw.execute("INSERT INTO people (name, boss) VALUES (?, 1)", (f"new {n}",))
    raw.execute("UPDATE people SET id = id + 100 WHERE name = ?", (f"new {n}",))
    raw.execute("UPDATE people SET boss = id WHERE name = ?", (f"new {n}",))
    raw.execute("INSERT OR REPLACE INTO people (name) VALUES ('Bob')")  # another id
    raw.execute("INSERT INTO notes (person, body) VALUES (1, ?)", ("'é' \\ %s :x {" * n,))
    raw.execute("INSERT OR REPLACE INTO words VALUES (?, 2)", (f"word {n}",))
    raw.execute("UPDATE OR REPLACE words SET number = 2 WHERE word = 'one'")
    raw.execute("INSERT INTO words VALUES ('two', 2) ON CONFLICT DO UPDATE SET number = NULL")
    raw.execute("INSERT OR IGNORE INTO words VALUES ('one', 99)")
    raw.execute("UPDATE places SET x = -y, y = x WHERE what = 'a'")
    raw.execute("INSERT OR REPLACE INTO places VALUES (1, 2, ?)", (str(n),))
    raw.execute("INSERT INTO entries VALUES (?, 'x'), (?, 'x')", (n, n))
    raw.execute("DELETE FROM entries WHERE x = 2")
    raw.execute("BEGIN")
    raw.execute("SAVEPOINT s")
    raw.execute("DELETE FROM people")
    raw.execute("ROLLBACK TO s")
    raw.execute("INSERT INTO words VALUES (?, NULL)", (f"kept {n}",))
    raw.execute("COMMIT")


@each_kind
async def test_whatever_is_written_meanwhile(new, tmp_path, kind):
    """While rows are copied, followed and compared; after that the source takes no more."""
    file, url = source(tmp_path), await new(kind)
    with plain(file) as raw:
        move = await followed(
            file,
            url,
            At(
                copying=lambda: all_sorts(raw, 1),
                following=lambda: all_sorts(raw, 2),
                comparing=lambda: all_sorts(raw, 3),
            ),
        )
        assert await same(file, url)
        assert move.changes > 30
        assert BOOKS not in await tables(url)
        for refused in (
            "INSERT INTO entries VALUES (1, '')",
            "DELETE FROM notes",
            "REPLACE INTO entries VALUES (1, '')",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="has moved to"):
                raw.execute(refused)
    assert "qsession_follow_1" not in leftovers(file)


@each_kind
async def test_unique_values_exchanged(new, tmp_path, kind):
    """Two rows have taken each other's value, and no order of single changes would do."""
    file, url = source(tmp_path), await new(kind)

    def exchange():
        with plain(file) as raw:
            raw.execute("BEGIN")
            raw.execute("UPDATE words SET number = -number")
            raw.execute("UPDATE words SET number = 3 + number")
            raw.execute("COMMIT")

    await followed(file, url, At(following=exchange, comparing=exchange))
    assert await same(file, url)


@each_kind
async def test_keys_that_change_their_case(new, tmp_path, kind):
    """To the target they may be one key, also where one statement names one and the next the other.

    A hundred are named at once, so a pair is torn apart.
    """
    script = """
    PRAGMA journal_mode=WAL;
    CREATE TABLE t (k VARCHAR(9) COLLATE NOCASE PRIMARY KEY);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 120)
    INSERT INTO t SELECT 'a' || i FROM n;
    """
    file, url = source(tmp_path, script), await new(kind)
    if kind == "asyncmy":
        await ask(url, "CREATE TABLE t (k VARCHAR(9) PRIMARY KEY) COLLATE utf8mb4_general_ci")

    def change():
        with plain(file) as raw:
            raw.execute("INSERT INTO t VALUES ('first')")
            raw.execute("UPDATE t SET k = upper(k) WHERE k <> 'first'")

    await followed(file, url, At(following=change))
    assert await same(file, url, {"t": "k"})


async def test_keys_that_are_null(tmp_path):
    """SQLite takes NULL in a primary key, for many rows, and with keys that are equal otherwise."""
    script = """
    PRAGMA journal_mode=WAL;
    CREATE TABLE t (j TEXT, k TEXT COLLATE NOCASE, n INTEGER, PRIMARY KEY (j, k));
    INSERT INTO t VALUES (NULL, 'A', 1), (NULL, NULL, 2), (NULL, NULL, 3), ('x', 'y', 4);
    """
    file, url = source(tmp_path, script), f"sqlite+aiosqlite:///{tmp_path / 'target.db'}"

    def change():
        with plain(file) as raw:
            raw.execute("INSERT INTO t VALUES (NULL, 'a', 5), (NULL, NULL, 6)")
            raw.execute("DELETE FROM t WHERE n = 2")
            raw.execute("UPDATE t SET j = NULL WHERE n = 4")

    await followed(file, url, At(following=change))
    assert await same(file, url, {"t": "j, k, n"})


@each_kind
async def test_references_in_a_circle(new, tmp_path, kind):
    """What refers to each other comes and goes together; cascades are those of the source."""
    script = """
    PRAGMA journal_mode=WAL;
    CREATE TABLE a (id INTEGER PRIMARY KEY, b INTEGER REFERENCES b ON DELETE CASCADE
        DEFERRABLE INITIALLY DEFERRED);
    CREATE TABLE b (id INTEGER PRIMARY KEY, a INTEGER REFERENCES a ON DELETE CASCADE
        DEFERRABLE INITIALLY DEFERRED);
    INSERT INTO a VALUES (1, 1), (2, 2);
    INSERT INTO b VALUES (1, 2), (2, 1);
    """
    file, url = source(tmp_path, script), await new(kind)

    def change():
        with plain(file) as raw:
            raw.execute("BEGIN")
            raw.execute("INSERT INTO a VALUES (3, 3), (4, 3)")
            raw.execute("INSERT INTO b VALUES (3, 4)")
            raw.execute("COMMIT")
            raw.execute("DELETE FROM a WHERE id = 1")

    await followed(file, url, At(following=change))
    assert await ask(url, "SELECT id, b FROM a ORDER BY id") == [(3, 3), (4, 3)]
    assert await same(file, url, {"a": "id, b", "b": "id, a"})


@each_kind
async def test_a_parent_that_changes_keeps_its_children(new, tmp_path, kind):
    """It is deleted and inserted again in the target, and ON DELETE CASCADE does nothing there."""
    file, url = source(tmp_path), await new(kind)
    await ask(url, PEOPLE, NOTES)

    def rename():
        with plain(file) as raw:
            raw.execute("UPDATE people SET name = name || '!'")

    await followed(file, url, At(following=rename))
    assert await same(file, url)
    await ask(
        url,
        *(["PRAGMA foreign_keys=ON"] if kind == "sqlite" else []),
        "DELETE FROM people WHERE id = 1",
    )
    if kind != "sqlite":  # a connection of the test's engine may be another one there
        assert await ask(url, "SELECT id FROM notes ORDER BY id") == [(3,), (4,)]


@each_kind
async def test_numbers_go_on(new, tmp_path, kind):
    """Past those of rows that came and went while the source was followed."""
    file, url = source(tmp_path), await new(kind)

    def come_and_go():
        with plain(file) as raw:
            raw.execute("INSERT INTO people VALUES (70, 'x', NULL)")
            raw.execute("DELETE FROM people WHERE id = 70")

    await followed(file, url, At(following=come_and_go))
    await ask(url, "INSERT INTO people (name) VALUES ('next')")
    assert await ask(url, "SELECT id FROM people WHERE name = 'next'") == [(71,)]


@each_kind
async def test_a_row_that_does_not_fit(new, tmp_path, kind):
    """It is named; the source is as it was, and the target says that it is not complete."""
    file, url = source(tmp_path), await new(kind)

    def spoil():
        with plain(file) as raw:
            raw.execute("PRAGMA foreign_keys=OFF")
            raw.execute("INSERT INTO notes VALUES (9, 999, '')")

    with pytest.raises(CopyError, match=r"people|is behind the source"):
        await followed(file, url, At(following=spoil))
    assert not leftovers(file)
    assert BOOKS in await tables(url)
    with plain(file) as raw:
        raw.execute("DELETE FROM notes WHERE id = 9")
    with pytest.raises(CopyError, match="not complete"):
        await followed(file, url)
    await followed(file, url, replace=True)
    assert await same(file, url)
    assert BOOKS not in await tables(url)


ORPHANS = {
    "a child": ["INSERT INTO notes VALUES (9, 999, '')"],
    "a parent": ["DELETE FROM people WHERE id = 1"],
    "a parent's key": ["UPDATE people SET id = 900 WHERE id = 4"],
    "a circle": ["UPDATE people SET boss = 77 WHERE id = 3"],
}


@pytest.mark.parametrize("statements", ORPHANS.values(), ids=ORPHANS)
@each_kind
async def test_orphans_of_the_last_moment(new, tmp_path, kind, statements):
    """SQLite was not told to refuse them. Each is found, also after all rows were compared."""
    file, url = source(tmp_path), await new(kind)

    def spoil():
        with plain(file) as raw:
            raw.execute("PRAGMA foreign_keys=OFF")
            for statement in statements:
                raw.execute(statement)

    with pytest.raises(CopyError, match=r"people|notes_person_fkey"):
        await followed(file, url, At(comparing=spoil))
    assert not leftovers(file)
    assert BOOKS in await tables(url)


@each_kind
async def test_cancelled_while_it_follows(new, tmp_path, kind):
    """It has taken over what had changed; then the source is as it was, and the target not done."""
    file, url = source(tmp_path), await new(kind)
    twice = asyncio.Event()

    def follows(step):
        if step.stage is not Stage.FOLLOWING:
            return
        if step.done:
            twice.set()
            return
        with plain(file) as raw:
            all_sorts(raw, 1)

    task = asyncio.create_task(followed(file, url, follows, switch=False))
    await twice.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as told:
        await task
    if sys.version_info >= (3, 11):  # errors have no notes before
        assert "is behind the source" in told.value.__notes__[0]
    assert not leftovers(file)
    assert BOOKS in await tables(url)
    assert await same(file, url)
    with pytest.raises(CopyError, match="not complete"):
        await copy(f"sqlite:///{file}", url)
    await copy(f"sqlite:///{file}", url, replace=True, verify=True)
    assert BOOKS not in await tables(url)


@each_kind
async def test_writers_are_let_in_again(new, tmp_path, kind):
    """The switch takes too long: it is given up, and writes to the source go on."""
    file, url = source(tmp_path), await new(kind)
    with pytest.raises(CopyError, match="given up"):
        await followed(file, url, pause=1e-9)
    assert not leftovers(file)
    assert BOOKS in await tables(url)
    with plain(file) as raw:
        all_sorts(raw, 1)


@pytest.mark.servers
@pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
async def test_foreign_keys_of_postgresql_are_what_they_were(new, tmp_path, kind):
    """With their actions, validated, and not deferrable, also after an attempt that failed."""
    file, url = source(tmp_path), await new(kind)
    query = (
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE contype = 'f' ORDER BY 1"
    )
    await ask(url, PEOPLE, NOTES)
    await copy(f"sqlite:///{file}", url)
    before = await ask(url, query)
    assert len(before) == 2
    assert all("ON DELETE CASCADE" in definition for _, definition in before)
    with pytest.raises(CopyError, match="given up"):
        await followed(file, url, replace=True, pause=1e-9)
    assert await ask(url, query) != before
    await followed(file, url, replace=True)
    assert await ask(url, query) == before


async def test_all_engines_wait_at_the_switch(tmp_path):
    """A write that comes meanwhile waits for its turn, and is refused; one before it is moved."""
    file, target = source(tmp_path), f"sqlite+aiosqlite:///{tmp_path / 'target.db'}"
    engine = create_async_engine(f"sqlite+aiosqlite:///{file}")
    tasks = []

    async def write(line):
        async with engine.begin() as connection:
            await connection.exec_driver_sql("INSERT INTO entries VALUES (7, ?)", (line,))

    def start(step):
        if step.stage is Stage.SWITCHING:
            tasks.extend(asyncio.ensure_future(write(str(n))) for n in range(20))

    await followed(file, target, start)
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    await engine.dispose()
    refused = [each for each in ended if each is not None]
    assert all("has moved to" in str(each) for each in refused)
    assert await ask(target, "SELECT count(*) FROM entries WHERE x = 7") == [(20 - len(refused),)]
    assert await same(file, target)


async def test_migrated_meanwhile(tmp_path):
    """A table that was changed stops the copy. What changes no table does not."""
    file = source(tmp_path)

    def harmless():
        with plain(file) as raw:
            raw.execute("VACUUM")
            raw.execute("ANALYZE")
            raw.execute("CREATE INDEX i ON notes (body)")
            raw.execute("CREATE VIEW v AS SELECT 1")

    await followed(file, f"sqlite+aiosqlite:///{tmp_path / 'target.db'}", At(following=harmless))
    assert await clean(url_of(f"sqlite:///{file}"))
    for number, statement in enumerate(
        (
            "ALTER TABLE notes ADD COLUMN more TEXT",
            "CREATE TABLE another (id INTEGER PRIMARY KEY)",
            "DROP TABLE notes",
            "ALTER TABLE entries RENAME TO others",
            "CREATE UNIQUE INDEX u ON places (what)",
            "DROP TRIGGER qsession_follow_1_insert",
        )
    ):

        def migrate(statement=statement):
            with plain(file) as raw:
                raw.execute(statement)

        with pytest.raises(CopyError, match="tables of the source were changed"):
            await followed(file, f"sqlite:///{tmp_path / f'{number}.db'}", At(following=migrate))
        assert not leftovers(file)


async def test_tables_of_litestream(tmp_path):
    """They may come and change while it follows, and afterwards: a program replicates by them."""
    file = source(tmp_path)

    def replicate():
        with plain(file) as raw:
            raw.execute("CREATE TABLE IF NOT EXISTS _litestream_seq (id INTEGER PRIMARY KEY, s)")
            raw.execute("INSERT OR REPLACE INTO _litestream_seq VALUES (1, 2)")

    await followed(
        file,
        f"sqlite:///{tmp_path / 'target.db'}",
        At(following=replicate, comparing=replicate, switching=replicate),
    )
    replicate()


async def test_what_cannot_be_followed(tmp_path):
    """A file that is not in WAL mode, one that is followed already, a server, a closed file."""
    file, target = source(tmp_path), f"sqlite+aiosqlite:///{tmp_path / 'target.db'}"
    again = []

    async def second():
        with pytest.raises(CopyError, match="another process follows"):
            await followed(file, f"sqlite:///{tmp_path / 'other.db'}")
        with pytest.raises(CopyError, match="another process follows"):
            await clean(url_of(f"sqlite:///{file}"))

    await followed(
        file, target, At(following=lambda: again.append(asyncio.ensure_future(second())))
    )
    await again[0]
    with pytest.raises(CopyError, match="has moved to the file"):
        await followed(file, f"sqlite:///{tmp_path / 'other.db'}")
    with pytest.raises(CopyError, match="has moved to the file"):
        await followed(file, target)
    with pytest.raises(ArgumentError):
        await followed("postgresql://x", target)
    url = made(tmp_path / "rollback.db", "CREATE TABLE t (id INTEGER PRIMARY KEY)")
    with pytest.raises(CopyError, match="WAL mode"):
        await followed(tmp_path / "rollback.db", target)
    assert await ask(url.replace("aiosqlite:///", "aiosqlite:////.."), "PRAGMA journal_mode")


async def test_only_the_tables_of_the_models(tmp_path):
    """Others may change in any way."""
    from sqlalchemy import Column, Integer, MetaData, Table, Text

    metadata = MetaData()
    Table("entries", metadata, Column("x", Integer), Column("line", Text))
    file, target = source(tmp_path), f"sqlite+aiosqlite:///{tmp_path / 'target.db'}"
    with plain(file) as raw:
        await followed(file, target, At(following=lambda: all_sorts(raw, 1)), metadata=metadata)
    assert await tables(target) == {"entries"}
    assert await same(file, target, {"entries": "x, line"})


async def test_clean_lets_writes_in_again(tmp_path):
    """After a switch, to go back; a second time there is nothing to do."""
    file, url = source(tmp_path), url_of(f"sqlite:///{tmp_path / 'source.db'}")
    await followed(file, f"sqlite+aiosqlite:///{tmp_path / 'target.db'}")
    assert await clean(url)
    assert not leftovers(file)
    assert not await clean(url)
    assert not leftovers(file)
    with plain(file) as raw:
        all_sorts(raw, 1)


async def test_clean_where_the_mode_was_changed(tmp_path):
    """A file that was left, and is no longer in WAL mode, is cleaned all the same."""
    file, url = source(tmp_path), url_of(f"sqlite:///{tmp_path / 'source.db'}")
    await followed(file, f"sqlite+aiosqlite:///{tmp_path / 'target.db'}")
    with plain(file) as raw:
        assert raw.execute("PRAGMA journal_mode=DELETE").fetchone() == ("delete",)
    assert await clean(url)
    assert not leftovers(file)


@pytest.mark.parametrize("when", [When.ASKED, When.ANSWERED])
async def test_cancelled_at_any_suspension(tmp_path, when):
    """The source is as it was, or has moved and the target is complete; nothing in between."""
    moved = 0

    async def has_ended(at):
        nonlocal moved
        folder = tmp_path / str(at)
        folder.mkdir()
        file, target = source(folder), f"sqlite+aiosqlite:///{folder / 'target.db'}"
        ended = await cancel_at(followed(file, target), at, when)
        found = await tables(target)
        if leftovers(file):
            assert "qsession_moved_1_insert" in leftovers(file)
            assert BOOKS not in found
            assert await same(file, target)
            moved += 1
        else:
            assert BOOKS in found or not found
            with plain(file) as raw:
                all_sorts(raw, 1)
        return ended

    at, step = 1, 19
    while not await has_ended(at):
        at += step
    assert moved
    assert at > 50
    if when is When.ASKED:  # of the switch, which is at the end, each one
        for each in range(at - 2 * step + 1, at):
            if each != at - step:
                await has_ended(each)


@each_kind
@pytest.mark.parametrize("stage", ["following", "switching"])
async def test_another_copy_into_the_same_target(new, tmp_path, kind, stage):
    """It has begun anew there, and is complete: the one that follows stops, and its rows stay."""
    file, url = source(tmp_path), await new(kind)
    made(tmp_path / "other.db", SCRIPT + "UPDATE words SET word = 'other' WHERE number = 1;")
    copies = []

    def begin():
        with plain(file) as raw:
            raw.execute("UPDATE words SET word = word || '!'")
        copies.append(subprocess.run(
            [sys.executable, "-m", "qsession", "copy", tmp_path / "other.db", url, "--replace"],
            capture_output=True, check=True, timeout=60,
        ))  # fmt: skip

    with pytest.raises(CopyError, match=r"another copy.*source goes on as before\Z"):
        await followed(file, url, At(**{stage: begin}))
    assert copies
    assert not leftovers(file)
    assert await ask(url, "SELECT word FROM words WHERE number = 1") == [("other",)]
    assert await same(tmp_path / "other.db", url)
    assert BOOKS not in await tables(url)


async def test_writers_that_take_long_are_waited_for(tmp_path):
    """For an hour, as a copy that gives up begins anew. The URL may say otherwise."""
    file = source(tmp_path)
    for url, seconds in (
        (f"sqlite:///{file}", 3600),
        (f"sqlite+qsession:///{file}?queue_timeout=7", 7),
    ):
        async with open_source(url_of(url)) as opened:
            assert opened.writing.dialect.settings.queue_timeout == seconds


async def test_a_source_that_cannot_be_written_to(tmp_path):
    """It says so, and not that triggers stay there."""
    file = source(tmp_path)
    options = Options(None, False, False, False, False, None, None)
    url = url_of(f"sqlite:///file:{file}?mode=ro&uri=true")
    with pytest.raises(CopyError, match="readonly") as told:
        await follow(url, url_of(f"sqlite:///{tmp_path / 'target.db'}"), options)
    assert "stay" not in str(told.value)
    assert not (tmp_path / "target.db").exists()
