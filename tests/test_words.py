"""What the text of a statement says of savepoints and inserts, checked against SQLite itself."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsession.sqlite.words import inserts, rolls_back_to, savepoints_after

NAMES = st.sampled_from(["a", "A", '"a"', "[b]", "'b b'", '"b B"', "`savepoint_1`"])
VERBS = st.sampled_from(
    ["SAVEPOINT", "savepoint", "RELEASE", "Release SAVEPOINT", "ROLLBACK TO",
     "rollback transaction to\n savepoint", "/* app */ RELEASE", "-- app\nSAVEPOINT"]
)  # fmt: skip
ENDS = st.sampled_from(["", ";", " ; ", " -- done", " /* done */"])


@given(st.lists(st.tuples(VERBS, NAMES, ENDS), max_size=12))
def test_savepoints_are_followed(sent: list[tuple[str, str, str]]) -> None:
    """SQLite is in a transaction for as long as one is left, and agrees on which are open."""
    savepoints: list[str] = []
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as raw:
        for verb, name, end in sent:
            sql = f"{verb} {name}{end}"
            known = name.strip("\"'`[]").lower() in savepoints
            try:
                raw.execute(sql)
            except sqlite3.OperationalError:
                assert not known
                continue
            savepoints = savepoints_after(savepoints, sql)
            assert raw.in_transaction == bool(savepoints)
            assert rolls_back_to(sql) == ("rollback" in sql.lower())


@pytest.mark.parametrize(
    ("sql", "may"),
    [
        ("INSERT INTO t VALUES (1)", True),
        (" -- a comment\n/* and */ insert or ignore into t values (1)", True),
        ("REPLACE INTO t VALUES (1)", True),
        ("WITH n AS (SELECT 1) INSERT INTO t SELECT * FROM n", True),
        ("WITH n AS (SELECT 1) replace into t SELECT * FROM n", True),
        ("WITH n AS (SELECT 1) UPDATE t SET a = replace(a, 1, 2)", False),
        ("UPDATE t SET a = replace(a, 1, 2)", False),
        ("DELETE FROM t", False),
        pytest.param("/* a comment */ " * 50 + "DELETE FROM t", False, id="comments"),
        ("SELECT 'INSERT INTO t'", False),
    ],
)
def test_who_inserts(sql: str, may: bool) -> None:
    """Comments and case do not count; nor does a function of that name."""
    assert inserts(sql) is may
