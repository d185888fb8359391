"""What a transaction remembers before its first write."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from qsession.sqlite.transaction.statement import sent_after_begin, words_of
from qsession.sqlite.transaction.work import Work

DEFER = "PRAGMA defer_foreign_keys=ON"
REMEMBERED = [
    ([], []),
    (["SAVEPOINT a"], ['SAVEPOINT "a"']),
    (["SAVEPOINT a", DEFER, "SAVEPOINT b"], [DEFER, 'SAVEPOINT "a"', 'SAVEPOINT "b"']),
    (["SAVEPOINT a", "SAVEPOINT b", "ROLLBACK TO a"], ['SAVEPOINT "a"']),
    (["SAVEPOINT a", "SAVEPOINT a", "RELEASE a"], ['SAVEPOINT "a"']),
    (["SAVEPOINT a", "SAVEPOINT b", "RELEASE a"], []),
    ([DEFER, "SAVEPOINT a", "RELEASE a"], [DEFER]),
    (["SAVEPOINT [b \"B]"], ['SAVEPOINT "b ""b"']),
]  # fmt: skip


@pytest.mark.parametrize(("texts", "sent"), REMEMBERED)
def test_what_is_sent_after_begin(texts: list[str], sent: list[str]) -> None:
    """What cannot be undone any more is not sent, and SQLite takes what is."""
    work = Work()
    for sql in texts:
        work.remember(sql, words_of(sql))
    assert list(sent_after_begin(work.deferred, work.savepoints)) == sent
    assert work.is_begun == bool(sent)
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as raw:
        for sql in ["BEGIN", *sent]:
            raw.execute(sql)
