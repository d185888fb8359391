"""Files of real programs go to each server and back, and hold the same values there.

``schemas`` has what these programs make, with a few rows: Anki 25, Calibre 6, Django 6, Fossil
2.21, Home Assistant 2024.3, Optuna 4. What is there afterwards is read by the drivers alone.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from copy_databases import ask
from plain_rows import differences, rows_of

from qsession import CopyError, copy
from qsession.transfer import Report

SCHEMAS = Path(__file__).parent / "schemas"
SERVERS = ("asyncpg", "psycopg", "asyncmy")
READY = ("calibre", "django", "fossil_checkout", "home_assistant", "optuna")
"""Those that any server takes as they are."""


def program(name: str, folder: Path) -> str:
    """The file that a program has, in the rollback journal that most of them use; its URL."""
    file = folder / f"{name}.db"
    with closing(sqlite3.connect(file)) as raw:
        raw.create_collation("unicase", lambda a, b: (a > b) - (a < b))
        raw.executescript((SCHEMAS / f"{name}.sql").read_text(encoding="utf-8"))
    return f"sqlite+aiosqlite:///{file}"


async def make_by_hand(server: str, name: str) -> None:
    """Tables as the message of a copy asks for them."""
    script = (SCHEMAS / f"{name}.sql").read_text(encoding="utf-8")
    if server.startswith("mysql"):
        script = script.replace('"', "`")
    await ask(server, *filter(str.strip, script.split(";")))


def tables_of(url: str) -> list[str]:
    """The tables of a file, but for virtual ones and what belongs to those."""
    with closing(sqlite3.connect(url.partition("///")[2])) as raw:
        rows = raw.execute(
            "SELECT name FROM pragma_table_list WHERE type = 'table' AND schema = 'main' "
            "AND name NOT LIKE 'sqlite_%'"
        )
        return [name for (name,) in rows]


async def compare(source: str, target: str) -> None:
    """Each table of a file of SQLite has the same rows in the target."""
    names = tables_of(source)
    assert len(names) > 2
    for name in names:
        expected = await rows_of(source, name)
        assert expected, f"the fixture has no rows in {name}"
        assert not differences(expected, await rows_of(target, name)), name


async def copy_and_compare(source: str, target: str) -> Report:
    """What a user does: look first, then copy."""
    checked = await copy(source, target, check=True, zone="UTC")
    report = await copy(source, target, verify=True, zone="UTC")
    assert checked.rows == report.rows
    await compare(source, target)
    return report


async def there_and_back(source: str, server: str, back: Path) -> Report:
    """To a server, and from there to a new file."""
    report = await copy_and_compare(source, server)
    await copy(server, f"sqlite+aiosqlite:///{back}", verify=True)
    await compare(source, f"sqlite+aiosqlite:///{back}")
    return report


@pytest.mark.servers
@pytest.mark.parametrize("name", READY)
@pytest.mark.parametrize("kind", SERVERS)
async def test_to_a_server_and_back(new: Any, tmp_path: Path, kind: str, name: str) -> None:
    """Values are the same on the server, and in the file that is made from it."""
    report = await there_and_back(program(name, tmp_path), await new(kind), tmp_path / "back.db")
    told = " ".join(report.notes)
    for part in NAMED.get(name, ()):
        assert part in told


NAMED = {
    "calibre": (
        "not copied, views: meta",
        "not copied, triggers: annotations_fts_insert_trg, books_insert_trg, series_insert_trg",
        "not copied, virtual tables and what belongs to them: annotations_fts,",
        "authors: left out COLLATE NOCASE",
    ),
    "django": ("shop_product: left out the partial index active_days",),
    "fossil_checkout": ("vfile: left out the foreign key of vid to blob", "vmerge_ck1"),
}
"""What does not come along is told."""


@pytest.mark.parametrize("name", READY)
async def test_to_another_file(tmp_path: Path, name: str) -> None:
    """Tables and indexes are made by the statements that made them in the source."""
    source, target = program(name, tmp_path), tmp_path / "new.db"
    await copy_and_compare(source, f"sqlite+aiosqlite:///{target}")
    kinds = "('table')" if name == "calibre" else "('table', 'index')"
    made = []
    for file in (tmp_path / f"{name}.db", target):
        with closing(sqlite3.connect(file)) as raw:
            rows = raw.execute(
                f"SELECT sql FROM sqlite_master WHERE type IN {kinds} AND "
                "name NOT LIKE 'annotations_fts%' ORDER BY sql"
            )
            made.append(rows.fetchall())
    assert made[0] == made[1]


@pytest.mark.servers
@pytest.mark.parametrize("kind", SERVERS)
async def test_anki(new: Any, tmp_path: Path, kind: str) -> None:
    """It keeps text in an integer column; the table is made by hand first, as the message says."""
    source, server = program("anki", tmp_path), await new(kind)
    with pytest.raises(CopyError) as refused:
        await copy(source, server, check=True)
    assert "2 values of 1 kind do not fit" in refused.value.message
    assert "notes.sfld: text in a column of integers (2 rows)" in refused.value.message
    assert "create the table in the target first" in refused.value.message
    await make_by_hand(server, "anki_by_hand")
    report = await there_and_back(source, server, tmp_path / "back.db")
    assert "decks: left out COLLATE UNICASE" in report.notes


@pytest.mark.servers
@pytest.mark.parametrize("kind", SERVERS)
async def test_fossil(new: Any, tmp_path: Path, kind: str) -> None:
    """Julian days in columns of dates, and a foreign key that does not hold."""
    source, server = program("fossil", tmp_path), await new(kind)
    with pytest.raises(CopyError) as refused:
        await copy(source, server)
    told = refused.value.message
    assert "tagxref.srcid: refers to a row of blob that is not there (1 row)" in told
    assert "rowid=2: 0" in told
    assert "event.mtime: a number in a column of timestamps" in told
    assert "config.mtime: a number in a column of dates" in told
    assert "with a column of another type and without the foreign key" in told
    await make_by_hand(server, "fossil_by_hand")
    await there_and_back(source, server, tmp_path / "back.db")


async def test_a_collation_of_a_program_goes_to_no_other_file(tmp_path: Path) -> None:
    """An index would be written in another order than Anki's; the message says what to do."""
    source, target = program("anki", tmp_path), tmp_path / "new.db"
    for check in (True, False):
        with pytest.raises(CopyError) as refused:
            await copy(source, f"sqlite+aiosqlite:///{target}", check=check)
        told = refused.value.message
        assert "decks.name, fields.name, notetypes.name, tags.tag, templates.name" in told
        assert "UNICASE" in told.upper()
        assert "qsession backup" in told
    assert not target.exists()


async def test_a_file_with_a_collation_of_its_own_as_the_target(tmp_path: Path) -> None:
    """Nor are rows written to tables that such a program has made."""
    script = "CREATE TABLE tags (tag TEXT PRIMARY KEY); INSERT INTO tags VALUES ('a')"
    with closing(sqlite3.connect(tmp_path / "s.db")) as raw:
        raw.executescript(script)
    target = program("anki", tmp_path)
    for check in (True, False):
        with pytest.raises(CopyError, match=r"the index of tags\.tag is sorted by .*(?i:unicase)"):
            await copy(f"sqlite:///{tmp_path}/s.db", target, check=check, replace=True)


async def test_a_foreign_key_that_does_not_hold_from_file_to_file(tmp_path: Path) -> None:
    """A backup is the way out: it copies rows and schema as they are."""
    source = program("fossil", tmp_path)
    with pytest.raises(CopyError, match=r"(?s)1 value of 1 kind does not fit .*qsession backup"):
        await copy(source, f"sqlite:///{tmp_path}/new.db")
    schema = (SCHEMAS / "fossil.sql").read_text(encoding="utf-8").partition("INSERT")[0]
    with closing(sqlite3.connect(tmp_path / "new.db")) as raw:
        raw.executescript(schema.replace("srcid INTEGER REFERENCES blob", "srcid INTEGER"))
    await copy_and_compare(source, f"sqlite+aiosqlite:///{tmp_path}/new.db")
