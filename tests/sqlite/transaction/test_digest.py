"""What was seen of a result: equal to what is the same again, and to nothing else."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from datetime import date
from typing import Any

import pytest

from qsession.sqlite.transaction.digest import (
    BYTES_KEPT,
    ROWS_AT_ONCE,
    StreamDigest,
    error_seen,
    rows_seen,
)


class Masked:
    """What a converter makes of a secret: its repr() does not tell it."""

    def __init__(self, secret: Any) -> None:
        self.secret = secret

    def __repr__(self) -> str:
        return "Masked('****')"


@pytest.mark.parametrize("number", [1, ROWS_AT_ONCE + 1])
@pytest.mark.parametrize(
    "make",
    [
        int,
        float,
        str,
        date.fromordinal,
        Masked,
        lambda n: {"n": n},
        lambda n: "x" * BYTES_KEPT + str(n),
    ],
)
def test_values_of_any_kind(make: Any, number: int) -> None:
    """They are compared by what is in them, few or many."""
    rows = [(make(n),) for n in range(1, number + 1)]
    again = [(make(n),) for n in range(1, number + 1)]
    others = [*again[:-1], (make(number + 1),)]
    assert rows_seen(rows) == rows_seen(again)
    assert rows_seen(rows) != rows_seen(others)
    assert rows_seen(rows) != rows_seen(rows[:-1])


@pytest.mark.parametrize("number", [1, ROWS_AT_ONCE + 1])
def test_a_value_that_cannot_be_copied_is_like_no_other(number: int) -> None:
    """Nobody can tell whether it is the same again, so it is not."""
    rows = [(Masked(lambda: None),)] * number
    assert rows_seen(rows) != rows_seen(rows)
    stream, again = StreamDigest(), StreamDigest()
    stream.add(rows)
    again.add(rows)
    assert stream != again


def test_a_value_that_is_changed_afterwards() -> None:
    """What was seen is a copy."""
    rows = [({"n": 0},)]
    seen = rows_seen(rows)
    rows[0][0]["n"] += 1
    assert rows_seen(rows) != seen
    assert rows_seen([({"n": 0},)]) == seen


def test_rows_of_other_kinds() -> None:
    """What a row factory makes of a row is compared by its values."""
    with closing(sqlite3.connect(":memory:")) as raw:
        raw.row_factory = sqlite3.Row
        rows = [raw.execute("SELECT ?, 'a'", (n,)).fetchall() for n in (1, 1, 2)]
    assert rows_seen(rows[0]) == rows_seen(rows[1])
    assert rows_seen(rows[0]) != rows_seen(rows[2])


def test_little_is_kept_of_much() -> None:
    """A transaction may read more than fits into memory."""
    seen = rows_seen([(b"x" * 1_000_000,)])
    assert sys.getsizeof(seen) < 2 * BYTES_KEPT


def test_errors_are_told_apart_by_their_text() -> None:
    """All of them may be a constraint, of a trigger or of a table."""
    error = sqlite3.IntegrityError("account is closed")
    assert error_seen(error) == error_seen(sqlite3.IntegrityError("account is closed"))
    assert error_seen(error) != error_seen(sqlite3.IntegrityError("not enough money"))
    assert error_seen(error) != error_seen(sqlite3.OperationalError("account is closed"))
