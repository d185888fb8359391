"""A file that is followed in tests: plain writers, and what others must find afterwards."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from copy_databases import ask, made

from qsession.transfer.events import Move, Progress, Stage
from qsession.transfer.following.run import follow
from qsession.transfer.options import Options, url_of

SCRIPT = """
PRAGMA journal_mode=WAL;
CREATE TABLE people (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE, boss INTEGER REFERENCES people
        ON DELETE CASCADE
);
CREATE TABLE notes (
    id INTEGER PRIMARY KEY, person INTEGER REFERENCES people ON DELETE CASCADE, body TEXT
);
CREATE TABLE places (x INTEGER, y INTEGER, what TEXT, PRIMARY KEY (x, y)) WITHOUT ROWID;
CREATE TABLE words (word TEXT PRIMARY KEY, number INTEGER UNIQUE);
CREATE TABLE entries (x INTEGER, line TEXT);
INSERT INTO people VALUES (1, 'Ann', NULL), (2, 'Bob', 1), (3, 'Cid', 2), (4, 'Dot', 4);
INSERT INTO notes VALUES (1, 1, 'a'), (2, 3, 'b'), (3, NULL, NULL), (4, 4, 'd');
INSERT INTO places VALUES (1, 1, 'a'), (1, 2, 'b');
INSERT INTO words VALUES ('one', 1), ('two', 2), ('three', NULL);
INSERT INTO entries VALUES (1, 'a'), (1, 'a'), (2, NULL);
"""
COLUMNS = {
    "people": "id, name, boss",
    "notes": "id, person, body",
    "places": "x, y, what",
    "words": "word, number",
    "entries": "x, line",
}
PEOPLE = """
CREATE TABLE people (id BIGINT PRIMARY KEY, name VARCHAR(50) UNIQUE, boss BIGINT,
    FOREIGN KEY (boss) REFERENCES people (id) ON DELETE CASCADE)
"""
NOTES = """
CREATE TABLE notes (id BIGINT PRIMARY KEY, person BIGINT, body TEXT,
    FOREIGN KEY (person) REFERENCES people (id) ON UPDATE SET NULL ON DELETE CASCADE)
"""
"""Tables that a target may have before, with other actions than those of the source."""
OURS = "SELECT name FROM sqlite_master WHERE name LIKE 'qsession%'"


def source(folder: Path, script: str = SCRIPT) -> Path:
    """A file in WAL mode with some tables; its path."""
    made(folder / "source.db", script)
    return folder / "source.db"


@contextmanager
def plain(file: Path) -> Iterator[sqlite3.Connection]:
    """Another program: it knows nothing of qsession, and enforces foreign keys."""
    with closing(sqlite3.connect(file, timeout=10, isolation_level=None)) as raw:
        raw.execute("PRAGMA foreign_keys=ON")
        yield raw


def leftovers(file: Path) -> list[str]:
    """What a copy has left in the source."""
    with plain(file) as raw:
        return [name for (name,) in raw.execute(OURS)]


async def same(file: Path, url: str, tables: dict[str, str] = COLUMNS) -> bool:
    """Whether the drivers read the same rows from both."""
    for table, columns in tables.items():
        query = f"SELECT {columns} FROM {table}"
        with plain(file) as raw:
            there = sorted(map(repr, raw.execute(query)))
        here = sorted(map(repr, await ask(url, query)))
        assert here == there, table
    return True


async def followed(
    file: Path,
    url: str,
    progress: Callable[[Progress], object] | None = None,
    *,
    switch: bool = True,
    replace: bool = False,
    metadata: Any = None,
    **more: Any,
) -> Move:
    """`qsession copy --follow`, as the command calls it; the switch has as long as it needs."""
    options = Options(metadata, False, replace, False, False, None, progress)
    more = {"pause": 60.0} | more
    return await follow(url_of(f"sqlite:///{file}"), url_of(url), options, switch=switch, **more)


class At:
    """Calls each of some functions when a copy first gets to a stage."""

    def __init__(self, **functions: Callable[[], object]) -> None:
        self.left = dict(functions)

    def __call__(self, step: Progress) -> None:
        function = self.left.pop(step.stage.name.lower(), None)
        if function is not None:
            function()


STAGES = (Stage.COPYING, Stage.FOLLOWING, Stage.COMPARING)
"""Those in which others can write."""
