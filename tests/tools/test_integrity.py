"""Databases that need functions and collations of their application to be checked."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qsession.cli import app
from qsession.tools import doctor
from qsession.tools.backup import BackupError, back_up
from qsession.tools.doctor import Level, examine
from qsession.tools.integrity import check

PLAIN = "CREATE TABLE plain (a UNIQUE, b); INSERT INTO plain VALUES (1, 2), (3, 4);"
NEEDY = {
    "a collation of a key": "CREATE TABLE t (a TEXT PRIMARY KEY COLLATE unicase) WITHOUT ROWID;"
    "INSERT INTO t VALUES ('a'), ('B')",
    "a collation of an index": "CREATE TABLE t (a TEXT COLLATE unicase UNIQUE);"
    "INSERT INTO t VALUES ('a'), ('B')",
    "a function of an index": "CREATE TABLE t (a); CREATE INDEX i ON t (fold(a));"
    "INSERT INTO t VALUES ('a'), ('B')",
    "a function of a constraint": "CREATE TABLE t (a CHECK (fold(a) <> '')); "
    "INSERT INTO t VALUES ('a'), ('B')",
    "both": "CREATE TABLE t (a TEXT COLLATE unicase UNIQUE CHECK (fold(a) <> ''));"
    "INSERT INTO t VALUES ('a'), ('B')",
}


def made(path: Path, sql: str) -> Path:
    """A database, by an application that registers both."""
    with closing(sqlite3.connect(path)) as raw:
        raw.create_collation("unicase", lambda one, two: (one.lower() > two.lower()) - 1)
        raw.create_function("fold", 1, str, deterministic=True)
        raw.executescript(PLAIN + sql)
    return path


@pytest.mark.parametrize("needs", NEEDY)
def test_what_needs_the_application_can_be_backed_up(tmp_path: Path, needs: str) -> None:
    """The copy holds everything; the table of which not all could be checked is named."""
    source, copy = made(tmp_path / "app.db", NEEDY[needs]), tmp_path / "copy.db"
    assert back_up(source, copy) == ("t",)
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(copy)) as two:
        dumps = []
        for raw in (one, two):
            raw.create_collation("unicase", lambda a, b: (a > b) - (a < b))
            raw.create_function("fold", 1, str, deterministic=True)
            dumps.append(list(raw.iterdump()))
    assert dumps[0] == dumps[1]
    told = CliRunner().invoke(app, ["backup", "--force", str(source), str(copy)])
    assert told.exit_code == 0, told.output
    assert "The content of t could not be fully checked" in " ".join(told.output.split())


@pytest.mark.parametrize("needs", NEEDY)
def test_doctor_takes_a_healthy_file_for_healthy(tmp_path: Path, needs: str) -> None:
    """It says what it could not look at, and sends nobody to a page about recovery."""
    findings = examine(str(made(tmp_path / "app.db", NEEDY[needs])))
    assert max(each.level for each in findings) <= Level.NOTE
    assert not [each for each in findings if "recovery" in each.advice]
    (found,) = [each.found for each in findings if each.check == "integrity"]
    told = "ok, except that 't' cannot be fully checked without the functions"
    if found != "ok":  # a read-only connection leaves out CHECK
        assert found.startswith(told)
        assert found.endswith(("no such collation sequence: unicase", "function: fold()"))


def test_damage_is_found_all_the_same(tmp_path: Path) -> None:
    """In a table that can be checked, and in the pages of one that cannot."""
    path = made(tmp_path / "app.db", NEEDY["a collation of an index"])
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA writable_schema=ON")
        raw.execute("UPDATE sqlite_master SET sql = 'CREATE TABLE plain (a, b)' WHERE name='plain'")
        raw.execute(
            "UPDATE sqlite_master SET sql = 'CREATE UNIQUE INDEX i ON plain (b)', name = 'i' "
            "WHERE name = 'sqlite_autoindex_plain_1'"
        )
        raw.commit()
    with closing(sqlite3.connect(path)) as raw:
        found = check(raw, 5)
        with pytest.raises(sqlite3.OperationalError, match="no such collation"):  # left as it was
            raw.execute("SELECT a FROM t ORDER BY a").fetchall()
    assert found.unchecked == ("t",)
    assert "row 1 missing from index i" in found.problems
    with pytest.raises(BackupError, match="row 1 missing from index i"):
        back_up(path, tmp_path / "copy.db")

    with closing(sqlite3.connect(path)) as raw:
        (root,) = raw.execute("SELECT rootpage FROM sqlite_master WHERE name = 't'")
    with open(path, "r+b") as file:  # a pointer to a cell that lies outside of the page
        file.seek((root[0] - 1) * 4096 + 8)
        file.write(b"\x00\x03")
    with closing(sqlite3.connect(path)) as raw:
        assert [each for each in check(raw, 9).problems if each.startswith("*** in database main")]


def test_foreign_keys_are_looked_at_table_by_table(tmp_path: Path) -> None:
    """One that cannot be checked, or refers to what is not unique, hides no other."""
    path = made(
        tmp_path / "app.db",
        "CREATE TABLE p (a TEXT COLLATE unicase UNIQUE);"
        "CREATE TABLE needy (a REFERENCES p (a)); INSERT INTO needy VALUES ('x');"
        "CREATE TABLE mismatched (a REFERENCES plain (b)); INSERT INTO mismatched VALUES (1);"
        "CREATE TABLE broken (a REFERENCES plain (a)); INSERT INTO broken VALUES (99)",
    )
    found = [each for each in examine(str(path)) if each.check == "foreign keys"]
    assert [each.level for each in found] == [Level.PROBLEM, Level.WARNING, Level.NOTE]
    assert "1 rows of 'broken' refer to rows of 'plain'" in found[0].found
    assert '"mismatched" referencing "plain"' in found[1].found
    assert "'needy'" in found[2].found


VIOLATED = {
    "NULL value in t.b": ("a, b", "a, b NOT NULL"),
    "NUMERIC value in t.a": ("a, b", "a TEXT, b"),
}


@pytest.mark.parametrize("violation", VIOLATED)
def test_rows_against_a_constraint_are_no_damage(tmp_path: Path, violation: str) -> None:
    """As of a constraint that came later: such a database can be backed up, and is told of."""
    path = tmp_path / "app.db"
    before, after = VIOLATED[violation]
    with closing(sqlite3.connect(path)) as raw:
        raw.executescript(
            f"CREATE TABLE t ({before}); INSERT INTO t (a) VALUES (1), (2), (3), (4), (5), (6);"
            "PRAGMA writable_schema=ON;"
            f"UPDATE sqlite_master SET sql = 'CREATE TABLE t ({after})' WHERE name = 't'"
        )
    assert back_up(path, tmp_path / "copy.db") == ()
    found = {each.check: each for each in examine(str(path))}
    assert found["integrity"].level is Level.OK
    assert found["constraints"].level is Level.WARNING
    assert violation in found["constraints"].found
    assert "recovery" not in found["constraints"].advice


def test_rows_against_a_constraint_hide_no_damage(tmp_path: Path) -> None:
    """They come first, and SQLite stops after as many lines as it is asked for."""
    path = made(tmp_path / "app.db", "CREATE TABLE v (a, b); CREATE TABLE w (a, b UNIQUE);")
    with closing(sqlite3.connect(path)) as raw:
        raw.executescript(
            "INSERT INTO v (a) VALUES (1), (2), (3), (4), (5); INSERT INTO w VALUES (1, 2);"
            "PRAGMA writable_schema=ON;"
            "UPDATE sqlite_master SET sql = 'CREATE TABLE v (a, b NOT NULL)' WHERE name = 'v';"
            "UPDATE sqlite_master SET sql = 'CREATE TABLE w (a, b)' WHERE name = 'w';"
            "UPDATE sqlite_master SET sql = 'CREATE UNIQUE INDEX i ON w (a)', name = 'i' "
            "WHERE name = 'sqlite_autoindex_w_1'"
        )
    with closing(sqlite3.connect(path)) as raw:
        found = check(raw, 3)
    assert "row 1 missing from index i" in found.problems
    assert found.violations == ("NULL value in v.b",)
    assert found.of_indexes
    (advice,) = [each.advice for each in examine(str(path)) if each.check == "integrity"]
    assert "REINDEX" in advice
    assert "recovery" not in advice


@pytest.mark.parametrize(
    ("version", "fixed"),
    [
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 45, 0), False),
        ((3, 50, 6), False),
        ((3, 50, 7), True),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((3, 52, 0), True),
        ((4, 0, 0), True),
    ],
)
def test_a_backport_of_the_fix_counts(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int], fixed: bool
) -> None:
    """The versions that https://sqlite.org/wal.html#walresetbug names."""
    monkeypatch.setattr(doctor.sqlite3, "sqlite_version_info", version)
    (found,) = [each for each in [doctor._of_library()] if each.check == "SQLite"]
    assert (found.level is Level.OK) is fixed
