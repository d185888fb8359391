"""The log of what a transaction has read: its limits, and what it keeps of parameters."""

from __future__ import annotations

from array import array
from typing import Any

import pytest

from qsession.sqlite.transaction.digest import StreamDigest, rows_seen
from qsession.sqlite.transaction.log import MAX_BYTES, MAX_STATEMENTS, Entry, Log
from qsession.sqlite.transaction.statement import Kind, Statement

SELECT = Statement("SELECT a FROM t", kind=Kind.READ)


def test_a_log_that_is_full_is_dropped() -> None:
    """One statement more than the limit, and nothing of it is kept, nor of what follows."""
    log = Log()
    assert log.is_empty
    for number in range(MAX_STATEMENTS):
        log.append(Statement("SELECT ?", (number,)), b"")
    assert log.complete
    assert len(log.entries) == MAX_STATEMENTS
    log.append(SELECT, b"")
    log.append(SELECT, b"")
    assert not log.complete
    assert not log.entries
    assert not log.is_empty  # it is not known what it has read


@pytest.mark.parametrize(
    "parameters",
    [("x" * MAX_BYTES,), {"a": b"x" * MAX_BYTES}, ("x" * (MAX_BYTES // 2), "y" * (MAX_BYTES // 2))],
    ids=["text", "bytes", "several"],
)
def test_parameters_count(parameters: Any) -> None:
    """A few statements with long values are as much as many short ones."""
    log = Log()
    log.append(Statement("SELECT ?", parameters), b"")
    assert not log.complete


@pytest.mark.parametrize(
    ("parameters", "changed"),
    [
        (before := [1, "a"], lambda: before.append(2)),
        (named := {"a": 1}, lambda: named.update(a=2)),
        (buffer := [bytearray(b"first")], lambda: buffer[0].extend(b"!")),
        (filled := [array("B", b"first")], lambda: filled[0].append(1)),
    ],
    ids=["list", "dict", "bytearray", "array"],
)
def test_parameters_are_kept_as_they_were_sent(parameters: Any, changed: Any) -> None:
    """Validation binds the same again, whatever the application does to them afterwards."""
    log, again = Log(), Log()
    log.append(Statement("SELECT ?", parameters), b"")
    again.append(Statement("SELECT ?", parameters), b"")
    changed()
    assert kept(log) == kept(again)
    again.append(Statement("SELECT ?", parameters), b"")
    assert kept(again)[-1] != kept(log)[0]


def kept(log: Log) -> list[Any]:
    return [each.parameters for each in log.entries]


def test_what_is_read_again_counts_as_last_seen() -> None:
    """However often: who polls for hours has a short log."""
    log = Log()
    for number in range(2 * MAX_STATEMENTS):
        log.append(SELECT, number)
        log.append(Statement("SELECT ?", (b"x" * (MAX_BYTES // 2),)), number)
    assert [(each.sql, each.seen) for each in log.entries] == [
        (SELECT.sql, 2 * MAX_STATEMENTS - 1),
        ("SELECT ?", 2 * MAX_STATEMENTS - 1),
    ]


@pytest.mark.parametrize("others", [(1.0, True), ("1", b"1"), (object(), object())])
def test_what_is_alike_is_not_the_same(others: tuple[Any, Any]) -> None:
    """SQLite tells apart what a dictionary of Python does not, and what nobody can compare."""
    log = Log()
    for each in (1, *others):
        log.append(Statement("SELECT typeof(?)", (each,)), each)
    assert len(log.entries) == 3


def test_named_values_that_are_alike_are_not_the_same() -> None:
    """The same for parameters that have names."""
    log = Log()
    for each in (1, 1.0, True):
        log.append(Statement("SELECT typeof(:a)", {"a": each}), each)
    assert [list(each.parameters.values()) for each in log.entries] == [[1], [1.0], [True]]
    log.append(Statement("SELECT typeof(:a)", {"a": 1.0}), "again")
    assert len(log.entries) == 3


def stream(count: int, ended: bool = False) -> StreamDigest:
    """The digest of a stream of which so many rows were fetched."""
    seen = StreamDigest()
    seen.add([(number,) for number in range(count)])
    seen.ended = ended
    return seen


def whole(*rows: tuple[Any, ...]) -> Any:
    """The digest of a result that was fetched at once."""
    return rows_seen(list(rows)), None


@pytest.mark.parametrize(
    ("earlier", "later", "shown", "replaces"),
    [
        (whole((1, "a")), whole((1, "b")), False, True),
        (whole((1, "a")), whole((1, "b")), True, False),
        (whole((1, "a")), stream(0), False, False),
        (whole((1, "a")), stream(5), False, False),
        (whole((1, "a")), stream(5, ended=True), False, False),
        (stream(5, ended=True), stream(5), False, False),
        (stream(5, ended=True), stream(7, ended=True), False, True),
        (stream(5, ended=True), stream(7, ended=True), True, False),
        (stream(2), stream(1), False, False),
        (stream(2), stream(2), False, True),
        (stream(2), whole((1, "a")), False, True),
        (stream(5, ended=True), whole((1, "a")), False, True),
    ],
)
def test_what_a_later_result_replaces(
    earlier: Any, later: Any, shown: bool, replaces: bool
) -> None:
    """One that the application has seen as far as the earlier one, and not in older objects."""
    assert Entry("", (), later).replaces(Entry("", (), earlier, shown)) is replaces


def test_streams_of_one_statement() -> None:
    """The one that has shown the most counts, as soon as another one has shown as much."""
    log, first, second = Log(), stream(2), stream(0)
    log.append(SELECT, first)
    log.append(SELECT, second)
    assert [each.seen for each in log.entries] == [first, second]
    second.add([(0,), (1,)])
    assert [each.seen for each in log.entries] == [second]


def test_a_poll_by_streams_has_a_short_log() -> None:
    """However often their first row is fetched."""
    log = Log()
    for _ in range(2 * MAX_STATEMENTS):
        seen = stream(0)
        log.append(SELECT, seen)
        seen.add([(1,)])
    assert log.complete
    assert len(log.entries) == 1
