"""The log of a transaction: digests of what was seen, and running it again."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsession.sqlite.log import (
    MAX_BYTES,
    MAX_STATEMENTS,
    Entry,
    Log,
    Statement,
    StreamDigest,
    digest,
    error_seen,
    execute,
    run,
)

VALUES = st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text() | st.binary()
ROWS = st.lists(st.tuples(VALUES, VALUES))


@pytest.fixture
def raw(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a table of three rows."""
    with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None, timeout=0)) as raw:
        raw.execute("PRAGMA journal_mode=WAL")
        raw.execute("CREATE TABLE t (a INTEGER PRIMARY KEY)")
        raw.execute("INSERT INTO t VALUES (1), (2), (3)")
        yield raw


SELECT = Statement("SELECT a FROM t ORDER BY a")
INSERT = Statement("INSERT INTO t VALUES (?)", (9,))


def seen(raw: sqlite3.Connection, statement: Statement) -> Entry:
    """An entry of the log, as it was seen now."""
    try:
        return Entry(statement, digest(execute(raw, statement)))
    except sqlite3.Error as error:
        return Entry(statement, error_seen(error))


@given(ROWS, ROWS)
def test_digests_of_streams_agree_with_their_rows(one: list[Any], other: list[Any]) -> None:
    """Digests are equal if, and only if, the rows were, however they were fetched."""
    whole, parts, different = StreamDigest(), StreamDigest(), StreamDigest()
    whole.add(one)
    for row in one:
        parts.add([row])
    different.add(other)
    assert whole == parts
    assert (whole == different) == (repr(one) == repr(other))
    assert whole != 1


def test_a_long_result_is_kept_as_a_digest(raw: sqlite3.Connection) -> None:
    """What is remembered of a thousand rows is small, and still tells them apart."""
    many = "WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < ?)"
    entries = [seen(raw, Statement(f"{many} SELECT n FROM c", (n,))) for n in (999, 999, 1000)]
    assert isinstance(entries[0].seen[0], StreamDigest)
    assert entries[0].seen == entries[1].seen
    assert entries[0].seen != entries[2].seen


def test_a_log_grows_to_its_limits() -> None:
    """More statements, or more bytes of parameters, than the limits make it full."""
    log = Log()
    for _ in range(MAX_STATEMENTS):
        assert not log.append(SELECT, None)
    assert log.append(SELECT, None)
    log.drop()
    assert not log.complete
    log.append(SELECT, None)
    assert log.entries == []
    for parameters, many in (
        (("x" * MAX_BYTES,), False),
        ({"a": b"x" * MAX_BYTES}, False),
        ([("x" * 1024,)] * (MAX_BYTES // 1024), True),
    ):
        log = Log()
        assert log.append(Statement("SELECT ?", parameters, many=many), None)


def test_replay_of_what_has_not_changed(raw: sqlite3.Connection) -> None:
    """The same results, errors included, let the statement behind them run."""
    failing = Statement("INSERT INTO t VALUES (1)")
    entries = [seen(raw, SELECT), seen(raw, failing), seen(raw, Statement("SELECT zzz"))]
    report = run(raw, "BEGIN IMMEDIATE", entries, INSERT)
    assert report.error is None
    assert report.diverged is None
    assert report.in_transaction
    assert report.outcome is not None
    assert (report.outcome.rowcount, report.outcome.lastrowid, report.outcome.changed) == (
        1,
        9,
        True,
    )
    raw.execute("ROLLBACK")


@pytest.mark.parametrize(
    "change", ["DELETE FROM t WHERE a=2", "INSERT INTO t VALUES (4)", "UPDATE t SET a=-a"]
)
def test_replay_of_what_has_changed(raw: sqlite3.Connection, change: str) -> None:
    """The first entry that sees something else is told, and the statement does not run."""
    entries = [seen(raw, Statement("SELECT 1")), seen(raw, SELECT)]
    raw.execute(change)
    report = run(raw, "BEGIN IMMEDIATE", entries, INSERT)
    assert report.diverged is entries[1]
    assert report.outcome is None
    if raw.in_transaction:
        raw.execute("ROLLBACK")
    assert raw.execute("SELECT count(*) FROM t WHERE a=9").fetchone() == (0,)


def test_replay_of_an_error_that_is_none_any_more(raw: sqlite3.Connection) -> None:
    """A statement that failed, and now succeeds, has seen something else."""
    entry = seen(raw, Statement("INSERT INTO t VALUES (1)"))
    raw.execute("DELETE FROM t WHERE a=1")
    assert run(raw, "BEGIN IMMEDIATE", [entry], INSERT).diverged is entry


def test_a_lock_of_another_is_reported_as_busy(raw: sqlite3.Connection, tmp_path: Path) -> None:
    """Nothing is begun where another connection writes, so that it can be tried again."""
    with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        report = run(raw, "BEGIN IMMEDIATE", [], INSERT)
        assert (report.busy, report.in_transaction, raw.in_transaction) == (True, False, False)
        other.execute("ROLLBACK")
    report = run(raw, "BEGIN IMMEDIATE", [], INSERT)
    assert (report.busy, report.in_transaction) == (False, True)
    raw.execute("ROLLBACK")


def test_an_older_lastrowid_is_not_mistaken_for_a_result(raw: sqlite3.Connection) -> None:
    """SQLite repeats the rowid of an earlier insert; a SELECT is not compared by it."""
    before = seen(raw, SELECT)
    raw.execute("INSERT INTO t VALUES (50)")
    raw.execute("DELETE FROM t WHERE a=50")
    assert seen(raw, SELECT).seen == before.seen


def test_cursors_are_closed_whatever_happens(raw: sqlite3.Connection) -> None:
    """An INSERT ... RETURNING that is not read to its end would keep the lock."""
    outcome = execute(raw, Statement("INSERT INTO t VALUES (7), (8) RETURNING a"))
    assert outcome.rows == [(7,), (8,)]
    assert outcome.changed
    with pytest.raises(sqlite3.IntegrityError):
        execute(raw, Statement("INSERT INTO t VALUES (10), (1) RETURNING a"))
    assert not raw.in_transaction
    raw.close()


@pytest.mark.parametrize("factory", [str, bytes])
def test_a_stream_that_writes_is_told_whatever_the_factories(
    raw: sqlite3.Connection, factory: Any
) -> None:
    """What SQLite says of its program is read apart from what a listener has set."""
    raw.text_factory = factory
    stream: Any = object()
    writes = "WITH n(i) AS (SELECT 9) INSERT INTO t SELECT i FROM n RETURNING a"
    for sql, changed in ((writes, True), ("SELECT a FROM t", False)):
        outcome = execute(raw, Statement(sql, stream=stream))
        assert outcome.changed is changed
        assert outcome.cursor is not None
        outcome.cursor.close()
    assert raw.text_factory is factory
