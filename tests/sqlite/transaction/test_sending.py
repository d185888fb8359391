"""What is sent for one statement, on a plain connection: begin, validate, execute, report."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsession.errors import SQLITE_INTERRUPT
from qsession.sqlite.driver.setup import pragma
from qsession.sqlite.transaction.digest import StreamDigest, error_seen
from qsession.sqlite.transaction.log import Entry
from qsession.sqlite.transaction.sending import (
    Plan,
    Report,
    Stage,
    digest,
    execute,
    fetch,
    run,
    same_again,
)
from qsession.sqlite.transaction.statement import Kind, Statement

VALUES = st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text() | st.binary()
ROWS = st.lists(st.tuples(VALUES, VALUES))

SELECT = Statement("SELECT a FROM t ORDER BY a", kind=Kind.READ)
INSERT = Statement("INSERT INTO t VALUES (?)", (9,), Kind.WRITE)
UNKNOWN = Statement("WITH n(i) AS (SELECT 9) INSERT INTO t SELECT i FROM n")
WRITE = "BEGIN IMMEDIATE"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.db"


@pytest.fixture
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a table of three rows."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as raw:
        raw.execute("PRAGMA journal_mode=WAL")
        raw.execute("CREATE TABLE t (a INTEGER PRIMARY KEY)")
        raw.execute("INSERT INTO t VALUES (1), (2), (3)")
        yield raw


@pytest.fixture
def other(path: Path, raw: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Another connection to the same file."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as other:
        yield other


def seen(raw: sqlite3.Connection, statement: Statement) -> Entry:
    """An entry of the log, as it was seen now."""
    try:
        what = digest(execute(raw, statement))
    except (sqlite3.Error, OverflowError) as error:
        what = error_seen(error)
    return Entry(statement.sql, statement.parameters, what)


def send(raw: sqlite3.Connection, plan: Plan) -> Report:
    return run(raw, plan, Report())


def validating(*entries: Entry, statement: Statement = INSERT, **kw: Any) -> Plan:
    return Plan(statement, begin=WRITE, validates=True, entries=entries, **kw)


# Digests.


@settings(deadline=None)
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
    assert len(entries[0].seen[0][1]) == 64
    assert entries[0].seen == entries[1].seen
    assert entries[0].seen != entries[2].seen


@pytest.mark.parametrize("change", ["RENAME COLUMN a TO b", "ADD COLUMN b"])
def test_the_names_of_columns_were_seen_too(raw: sqlite3.Connection, change: str) -> None:
    """A result without rows tells them all the same."""
    star = Statement("SELECT * FROM t WHERE false")
    entry = seen(raw, star)
    assert same_again(raw, entry)
    raw.execute(f"ALTER TABLE t {change}")
    assert not same_again(raw, entry)


# Validation.


def test_what_has_not_changed_is_valid(raw: sqlite3.Connection) -> None:
    """The same results, errors included, let the statement behind them run."""
    big = Statement("SELECT ?", (2**70,))
    entries = [seen(raw, each) for each in (SELECT, big, Statement("SELECT zzz"))]
    report = send(raw, validating(*entries))
    assert (report.error, report.conflict) == (None, None)
    assert report.validated
    assert report.stage is Stage.STATEMENT
    assert report.in_transaction
    assert report.outcome is not None
    outcome = report.outcome
    assert (outcome.rowcount, outcome.lastrowid, outcome.changed) == (1, 9, True)


@pytest.mark.parametrize(
    "change", ["DELETE FROM t WHERE a=2", "INSERT INTO t VALUES (4)", "UPDATE t SET a=-a"]
)
def test_what_has_changed_is_a_conflict(
    raw: sqlite3.Connection, other: sqlite3.Connection, change: str
) -> None:
    """The first entry that sees something else is named, and the statement does not run."""
    entries = [seen(raw, Statement("SELECT 1")), seen(raw, SELECT)]
    other.execute(change)
    report = send(raw, validating(*entries))
    assert report.conflict is not None
    assert SELECT.sql in report.conflict
    assert (report.outcome, report.in_transaction, raw.in_transaction) == (None, False, False)
    assert raw.execute("SELECT count(*) FROM t WHERE a=9").fetchone() == (0,)


def test_an_error_that_is_none_any_more_is_a_conflict(raw: sqlite3.Connection) -> None:
    """A statement that failed, and now succeeds, has seen something else."""
    entry = seen(raw, Statement("SELECT b FROM t"))
    raw.execute("ALTER TABLE t ADD COLUMN b")
    assert send(raw, validating(entry)).conflict is not None


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("complete", [False, True])
def test_nothing_is_read_again_if_nothing_was_committed(
    raw: sqlite3.Connection, other: sqlite3.Connection, complete: bool, changed: bool
) -> None:
    """PRAGMA data_version tells; without a log it is all there is."""
    version = pragma(raw, "data_version")
    entries = [seen(raw, SELECT)] if complete else []
    if changed:
        other.execute("CREATE TABLE elsewhere (a)")
    report = send(raw, validating(*entries, version=version, complete=complete))
    assert report.validated == (changed and complete)
    assert (report.conflict is not None) == (changed and not complete)


def test_the_version_is_of_before_the_first_read(
    raw: sqlite3.Connection, other: sqlite3.Connection
) -> None:
    """What is committed between the two is not missed."""
    report = send(raw, Plan(SELECT, asks_version=True))
    other.execute("DELETE FROM t WHERE a=1")
    assert report.version is not None
    assert report.version != pragma(raw, "data_version")


def test_validation_ends_the_snapshot_before(
    raw: sqlite3.Connection, other: sqlite3.Connection
) -> None:
    """It reads what is committed now, not what it saw before."""
    raw.execute("BEGIN")
    entry = seen(raw, SELECT)
    other.execute("DELETE FROM t WHERE a=1")
    assert seen(raw, SELECT).seen == entry.seen
    assert send(raw, validating(entry, ends_reading=True)).conflict is not None


@pytest.mark.parametrize(
    ("fetched", "change", "same"),
    [
        (0, "DELETE FROM t", True),
        (2, "DELETE FROM t WHERE a=3", True),
        (2, "DELETE FROM t WHERE a=2", False),
        (3, "INSERT INTO t VALUES (4)", True),
        (4, "INSERT INTO t VALUES (4)", False),
        (None, "INSERT INTO t VALUES (4)", False),
    ],
)
def test_as_much_of_a_stream_is_compared_as_was_seen(
    raw: sqlite3.Connection, fetched: int | None, change: str, same: bool
) -> None:
    """Rows that were not fetched were not seen, nor the end if it was not reached."""
    outcome = execute(raw, Statement(SELECT.sql, stream=object()))  # type: ignore[arg-type]
    stream = StreamDigest(outcome.description)
    if fetched != 0:
        fetch(raw, outcome.cursor, fetched, stream)
    outcome.cursor.close()
    entry = Entry(SELECT.sql, (), stream)
    assert same_again(raw, entry)
    raw.execute(change)
    assert same_again(raw, entry) == same


# Statements.


def test_a_lock_of_another_is_reported_as_busy(
    raw: sqlite3.Connection, other: sqlite3.Connection
) -> None:
    """Nothing is begun where another connection writes, so that it can be tried again."""
    other.execute("BEGIN IMMEDIATE")
    report = send(raw, Plan(INSERT, begin=WRITE))
    assert (report.busy, report.stage) == (True, Stage.BEGIN)
    assert (report.in_transaction, raw.in_transaction) == (False, False)
    other.execute("ROLLBACK")
    report = send(raw, Plan(INSERT, begin=WRITE))
    assert (report.busy, report.in_transaction) == (False, True)


@pytest.mark.parametrize("commits", [False, True])
def test_a_rollback_is_not_broken_off(raw: sqlite3.Connection, commits: bool) -> None:
    """Where the time on the loop is over behind BEGIN, the transaction is ended all the same."""
    raw.set_progress_handler(lambda: raw.in_transaction, 1)
    remembered = [] if commits else ["SAVEPOINT a"]
    report = send(raw, Plan(INSERT, begin=WRITE, remembered=remembered, commits=commits))
    assert (report.code, report.in_transaction) == (SQLITE_INTERRUPT, False)
    assert not raw.in_transaction


def test_what_was_remembered_is_sent_after_begin(raw: sqlite3.Connection) -> None:
    """Savepoints that were asked for before the first write can be rolled back to."""
    send(raw, Plan(INSERT, begin=WRITE, remembered=['SAVEPOINT "a"']))
    raw.execute("ROLLBACK TO a")
    raw.execute("COMMIT")
    assert raw.execute("SELECT count(*) FROM t").fetchone() == (3,)


def test_a_text_that_writes_is_refused_where_it_must_not(raw: sqlite3.Connection) -> None:
    """The database itself knows; the plan behind it takes the bar away."""
    report = send(raw, Plan(UNKNOWN, query_only=True))
    assert report.refused
    report = send(raw, Plan(UNKNOWN, query_only=False, begin=WRITE))
    assert report.error is None
    assert not report.refused


def test_cursors_are_closed_whatever_happens(raw: sqlite3.Connection) -> None:
    """An INSERT ... RETURNING that is not read to its end would keep the lock."""
    outcome = execute(raw, Statement("INSERT INTO t VALUES (7), (8) RETURNING a"))
    assert outcome.rows == [(7,), (8,)]
    assert outcome.changed
    with pytest.raises(sqlite3.IntegrityError):
        execute(raw, Statement("INSERT INTO t VALUES (10), (1) RETURNING a"))
    assert not raw.in_transaction


def test_rows_that_stay_in_spite_of_an_error_are_told(raw: sqlite3.Connection) -> None:
    """OR FAIL keeps what came before the row that failed: the transaction has written."""
    report = send(raw, Plan(Statement("INSERT OR FAIL INTO t VALUES (7), (1)"), begin=WRITE))
    assert report.error is not None
    assert report.changed
    assert report.in_transaction


@pytest.mark.parametrize("factory", [str, bytes])
def test_a_stream_that_writes_is_told_whatever_the_factories(
    raw: sqlite3.Connection, factory: Any
) -> None:
    """What SQLite says of its program is read apart from what a listener has set."""
    raw.text_factory = factory
    raw.row_factory = lambda cursor, row: row[::-1]
    stream: Any = object()
    writes = f"{UNKNOWN.sql} RETURNING a"
    for sql, changed in ((writes, True), ("SELECT a FROM t", False), ("EXPLAIN SELECT 1", False)):
        opened: list[sqlite3.Cursor] = []
        outcome = execute(raw, Statement(sql, stream=stream), opened)
        assert outcome.changed is changed
        assert [outcome.cursor] == opened
        outcome.cursor.close()
    assert raw.text_factory is factory
    assert send(raw, Plan(SELECT, asks_version=True)).version == pragma(raw, "data_version")
