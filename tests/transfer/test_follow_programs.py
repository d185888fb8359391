"""Any program of writes by plain sqlite3 while a copy follows: both have the same in the end."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import pytest
from copy_databases import database
from following import followed, plain, same, source
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SCRIPT = """
PRAGMA journal_mode=WAL;
CREATE TABLE parents (id INTEGER PRIMARY KEY, name TEXT NOT NULL DEFAULT 'd' UNIQUE, up INTEGER,
    number INTEGER, touched INTEGER);
CREATE UNIQUE INDEX positive ON parents (number) WHERE number > 0;
CREATE TABLE children (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES parents
    ON DELETE CASCADE ON UPDATE CASCADE, value TEXT);
CREATE TABLE pairs (a TEXT, b INTEGER, value TEXT UNIQUE ON CONFLICT REPLACE, PRIMARY KEY (b, a))
    WITHOUT ROWID;
CREATE TABLE words (word TEXT PRIMARY KEY, number INTEGER UNIQUE, half INTEGER AS (number / 2));
CREATE UNIQUE INDEX twice ON words (abs(number), lower(word));
CREATE TABLE bags (x INTEGER, y TEXT);
CREATE TRIGGER touch AFTER UPDATE OF name ON parents BEGIN
    UPDATE parents SET touched = coalesce(touched, 0) + 1 WHERE id = NEW.id; END;
CREATE TRIGGER spread AFTER INSERT ON bags WHEN NEW.x > 2 BEGIN
    INSERT OR REPLACE INTO words (word, number) VALUES ('from bag', NEW.x); END;
"""
COLUMNS = {
    "parents": "id, name, up, number, touched",
    "children": "id, parent, value",
    "pairs": "a, b, value",
    "words": "word, number",
    "bags": "x, y",
}
ON_SQLITE = SCRIPT.replace(
    "word TEXT PRIMARY KEY, number INTEGER UNIQUE, half",
    "word TEXT COLLATE NOCASE PRIMARY KEY, number INTEGER, half INTEGER UNIQUE",
).replace("half INTEGER UNIQUE INTEGER AS (number / 2)", "half INTEGER AS (number / 2) UNIQUE")

ids = st.integers(0, 4)
texts = st.sampled_from(["a", "A", "b", "B", "from bag"])
orr = st.sampled_from(["", " OR REPLACE", " OR IGNORE", " OR FAIL", " OR ABORT"])


def call(template: str, *values: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    """A statement with a conflict clause and values."""
    return st.tuples(orr.map(lambda o: template.replace("{or}", o)), st.tuples(*values))


statement = st.one_of(
    call(
        "INSERT{or} INTO parents (id, name, up, number) VALUES (?, ?, ?, ?)", ids, texts, ids, ids
    ),
    call("INSERT{or} INTO parents (name, number) VALUES (?, ?)", st.none() | texts, ids),
    call("UPDATE{or} parents SET id = ? WHERE id = ?", ids, ids),
    call("UPDATE{or} parents SET name = ?, number = ? WHERE id >= ?", texts, ids, ids),
    st.tuples(st.just("DELETE FROM parents WHERE id = ?"), st.tuples(ids)),
    call("INSERT{or} INTO children (parent, value) VALUES (?, ?)", ids, texts),
    st.tuples(st.just("UPDATE children SET id = -id, value = ?"), st.tuples(texts)),
    st.tuples(st.just("DELETE FROM children WHERE parent = ?"), st.tuples(ids)),
    call("INSERT{or} INTO pairs VALUES (?, ?, ?)", texts, ids, texts),
    call("UPDATE{or} pairs SET a = ?, b = ?, value = ? WHERE b = ?", texts, ids, texts, ids),
    st.tuples(st.just("DELETE FROM pairs WHERE a = ?"), st.tuples(texts)),
    call("INSERT{or} INTO words (word, number) VALUES (?, ?)", texts, ids),
    call("INSERT{or} INTO words (rowid, word, number) VALUES (?, ?, ?)", ids, texts, ids),
    call("UPDATE{or} words SET word = ?, number = ? WHERE number = ?", texts, ids, ids),
    call("UPDATE{or} words SET rowid = ? WHERE number = ?", ids, ids),
    st.tuples(
        st.just(
            "INSERT INTO words (word, number) VALUES (?, ?) "
            "ON CONFLICT (word) DO UPDATE SET number = excluded.number + 1"
        ),
        st.tuples(texts, ids),
    ),
    st.tuples(st.just("INSERT INTO bags VALUES (?, ?)"), st.tuples(ids, texts)),
    st.tuples(st.just("DELETE FROM bags WHERE rowid = ?"), st.tuples(ids)),
    st.sampled_from(
        [
            (sql, ())
            for sql in (
                "BEGIN",
                "COMMIT",
                "ROLLBACK",
                "SAVEPOINT s",
                "ROLLBACK TO s",
                "RELEASE s",
                "PRAGMA recursive_triggers=ON",
                "PRAGMA recursive_triggers=OFF",
                "DELETE FROM words",
                "VACUUM",
            )
        ]
    ),
)
programs = st.lists(st.lists(statement, max_size=12), min_size=1, max_size=5)


def told_apart(programs: Any) -> Any:
    """No two texts that differ by case only, which are equal to the collations of MariaDB."""
    return [
        [
            (sql, tuple({"A": "c", "B": "e"}.get(value, value) for value in values))
            for sql, values in program
        ]
        for program in programs
    ]


def perform(raw: sqlite3.Connection, program: list[tuple[str, tuple[object, ...]]]) -> None:
    """Run it; what SQLite refuses is refused. No transaction stays open."""
    for sql, values in program:
        with contextlib.suppress(sqlite3.Error):
            raw.execute(sql, values)
    if raw.in_transaction:
        raw.execute("COMMIT")


async def check(folder: Path, url: str, script: str, programs: list[object]) -> None:
    """Follow while they run, one at each step, and compare."""
    file = source(folder, script)
    left = list(programs)
    with plain(file) as raw:
        perform(raw, left.pop())

        def step(progress: object) -> None:
            if left and progress.stage.value != "switching":
                perform(raw, left.pop())

        await followed(file, url, step)
    assert await same(file, url, COLUMNS)


@pytest.mark.storm
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs)
def test_into_a_file(programs):
    """With collations, too."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite+aiosqlite:///{folder}/target.db"
        asyncio.run(check(Path(folder), url, ON_SQLITE, programs))


@pytest.mark.storm
@pytest.mark.servers
@pytest.mark.parametrize("kind", ["asyncpg", "psycopg", "asyncmy"])
def test_into_a_server(kind):
    """Where the foreign keys are enforced, and other things are unique."""

    @settings(max_examples=8, deadline=None, database=None)
    @given(programs)
    def run(programs):
        async def on_a_database():
            with tempfile.TemporaryDirectory() as folder:
                async with database(kind, Path(folder)) as url:
                    await check(Path(folder), url, SCRIPT, told_apart(programs))

        asyncio.run(on_a_database())

    run()
