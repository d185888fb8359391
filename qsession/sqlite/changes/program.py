"""The tables that a statement reads or writes, from the program that SQLite has compiled it to.

``EXPLAIN`` lists this program (https://sqlite.org/opcode.html). It contains the programs of
triggers and of foreign key actions, and views are resolved. So nothing has to be parsed here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qsession.sqlite.driver.setup import explaining, plain_cursor
from qsession.sqlite.transaction.statement import words_of
from qsession.waiting.subscription import Tables, united

ROOTS = "SELECT rootpage, lower(tbl_name) FROM main.sqlite_master WHERE rootpage > 0"
"""The page at which each table and index begins, and the name of the table.

This is asked before EXPLAIN: it makes the connection read a schema that others have changed.
"""
EXPLAINED = frozenset(("select", "values", "with", "insert", "update", "delete", "replace"))
"""First words of statements whose program says which tables they touch.

A PRAGMA may take effect while it is compiled. The program of DDL says too little.
"""
SCHEMA = "sqlite_master"
_SCHEMA_ROOT = 1
_IN_REGISTER = 0x10
"""A flag in P5: P2 is not the page but a register that holds it."""


def is_explained(sql: str) -> bool:
    """Whether ``EXPLAIN`` tells the tables of a statement."""
    return words_of(sql).name in EXPLAINED


def tables_of(
    program: Iterable[Sequence[Any]], roots: Mapping[int, str], *, writes: bool
) -> Tables | None:
    """The tables of the main file that a program reads, or ``writes``; None if unknown.

    ``program``: the rows of ``EXPLAIN``. ``roots``: the rows of `ROOTS`. Virtual tables are
    unknown, because their programs are not listed. Temporary tables and attached files do not
    count.
    """
    found = set()
    for _, opcode, p1, p2, p3, _, p5, *_ in program:
        if opcode == "OpenWrite" or (opcode in ("OpenRead", "ReopenIdx") and not writes):
            page, file = p2, p3
            if p5 & _IN_REGISTER:
                return None
        elif opcode == "Clear":
            page, file = p1, p2
        elif opcode == "VUpdate" or (opcode == "VOpen" and not writes):
            return None
        else:
            continue
        if file != 0:
            continue
        table = SCHEMA if page == _SCHEMA_ROOT else roots.get(page)
        if table is None or (writes and page == _SCHEMA_ROOT):
            return None
        found.add(table)
    return frozenset(found)


class Written:
    """The tables that statements write on one connection, remembered for each text.

    They hold for one version of the schema. In the connection's thread.
    """

    ROOM = 1_000
    """Texts that are remembered."""
    AT_ONCE = 50
    """New texts of one transaction that are explained. More would delay its commit."""

    def __init__(self) -> None:
        self._schema: int | None = None
        self._found: dict[str, Tables | None] = {}

    def by(self, raw: sqlite3.Connection, sent: Mapping[str, Any]) -> Tables | None:
        """The tables that the statements in ``sent``, each with parameters, write.

        None if unknown, for example because a statement cannot be compiled any more.
        """
        if not all(map(is_explained, sent)):
            return None
        with plain_cursor(raw) as cursor:
            (schema,) = cursor.execute("PRAGMA main.schema_version").fetchone()
            if schema != self._schema or len(self._found) > self.ROOM:
                self._schema, self._found = schema, {}
            new = [sql for sql in sent if sql not in self._found]
            if len(new) > self.AT_ONCE:
                return None
            roots = dict(cursor.execute(ROOTS).fetchall()) if new else {}
            for sql in new:
                program = cursor.execute(explaining(sql), sent[sql]).fetchall()
                self._found[sql] = tables_of(program, roots, writes=True)
        return united(self._found[sql] for sql in sent)
