"""What a statement needs before it runs: a reader, the write ticket, or to run by itself.

The compiled statement says so: a SELECT that SQLAlchemy has written only reads, whatever text is in
it, for SQLite's common table expressions are all SELECTs (https://sqlite.org/lang_with.html). For
a statement of text the database itself decides: readers run under
``PRAGMA query_only``. Only the first word of a text is looked at, for the words that begin, end or
may not be inside a transaction: those that SQLite's own grammar sets apart
(https://sqlite.org/lang_transaction.html, lang_savepoint.html, lang_vacuum.html, pragma.html); and
for those with which nothing but a write begins, which else would queue up only once a reader has
refused it, behind others that have asked later.
"""

from __future__ import annotations

import re
from enum import Enum
from functools import lru_cache
from typing import Any

from sqlalchemy import CompoundSelect, Select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import FromStatement
from sqlalchemy.sql.selectable import SelectStatementGrouping

from qsession.sqlite.words import BEFORE


class Need(Enum):
    """What a statement needs."""

    may_only_read: bool
    """Whether a reader may try it."""
    is_of_the_writer: bool
    """Whether it has its place on the writer alone."""
    leaves_settings: bool
    """Whether it leaves something on the connection that outlives the transaction."""
    runs_outside: bool
    """Whether it runs before BEGIN, because it has no effect, or fails, behind it."""

    READ = "read"  # known to write nothing
    WRITE = "write"  # known to write, or asks for the ticket with FOR UPDATE
    UNKNOWN = "unknown"  # text: a reader will tell
    ASK = "ask"  # a PRAGMA that only tells: from any connection, and without a BEGIN before it
    PRAGMA = "pragma"  # any other: sets something on the connection, and often only outside BEGIN
    DEFER = "defer"  # PRAGMA defer_foreign_keys=ON: until the COMMIT, so only behind a BEGIN
    TEMP = "temp"  # CREATE TEMP: writes what only this connection sees
    ALONE = "alone"  # ATTACH, DETACH: on the writer, without a BEGIN before it
    FILE = "file"  # VACUUM, and a PRAGMA that is about the file: leaves nothing on the connection
    SAVEPOINT = "savepoint"  # SAVEPOINT, RELEASE, ROLLBACK TO: wherever the transaction is
    BEGIN = "begin"  # as text, from a listener or by hand
    BEGIN_WRITE = "begin immediate"
    COMMIT = "commit"
    ROLLBACK = "rollback"

    def __init__(self, word: str) -> None:
        self.may_only_read = word in ("read", "unknown", "ask")
        self.is_of_the_writer = word in ("write", "temp", "alone", "pragma", "file", "defer")
        self.leaves_settings = word in ("pragma", "temp", "alone", "defer")
        self.runs_outside = word in ("alone", "pragma", "ask", "file")


_WORDS = re.compile(
    BEFORE
    + r"""(?:
    (?P<WRITE>(?:INSERT|UPDATE|DELETE|REPLACE)\b
        |PRAGMA\s+(?:\S+\s*\.\s*)?(?:user_version|application_id)\s*[=(])
    |(?P<UNKNOWN>PRAGMA\s+(?:\S+\s*\.\s*)?(?:user_version|application_id)\s*;?\s*\Z)
    |(?P<DEFER>PRAGMA\s+(?:\S+\s*\.\s*)?defer_foreign_keys\s*[=(])
    |(?P<ASK>PRAGMA\s+(?:\S+\s*\.\s*)?(?:
        (?:table_list|table_x?info|index_list|index_x?info|foreign_key_list|foreign_key_check
            |integrity_check|quick_check)\b
        |(?!(?:wal_checkpoint|optimize|incremental_vacuum|shrink_memory)\b)\w+\s*;?\s*\Z))
    |(?P<FILE>(?:VACUUM|PRAGMA\s+(?:\S+\s*\.\s*)?(?:optimize
        |wal_checkpoint|incremental_vacuum|shrink_memory|journal_mode\s*[=(]\s*["']?wal))\b)
    |(?P<PRAGMA>PRAGMA\b)
    |(?P<TEMP>CREATE\s+(?:TEMP(?:ORARY)?\b
        |(?:UNIQUE\s+|VIRTUAL\s+)?\w+\s+(?:IF\s+NOT\s+EXISTS\s+)?["'`\[]?temp["'`\]]?\s*\.))
    |(?:(?P<ALONE>ATTACH|DETACH)
    |(?P<SAVEPOINT>SAVEPOINT|RELEASE|ROLLBACK\s+(?:TRANSACTION\s+)?TO)
    |(?P<BEGIN_WRITE>BEGIN\s+(?:IMMEDIATE|EXCLUSIVE))
    |(?P<BEGIN>BEGIN)
    |(?P<COMMIT>COMMIT|END)
    |(?P<ROLLBACK>ROLLBACK)
    )\b)""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)


LONG = 1_000
"""Characters past which a text is looked at each time, rather than kept."""


def need_of_text(sql: str) -> Need:
    """What a statement that was not compiled needs."""
    return _need_of_text(sql) if len(sql) <= LONG else _need_of_text.__wrapped__(sql)


@lru_cache(maxsize=1_000)
def _need_of_text(sql: str) -> Need:
    match = _WORDS.match(sql)
    return Need[match.lastgroup] if match and match.lastgroup else Need.UNKNOWN


def need_of(context: Any, sql: str) -> tuple[Need, bool]:
    """What a statement needs, and whether it wants no waiting (``FOR UPDATE NOWAIT``).

    Raises :class:`sqlalchemy.exc.InvalidRequestError` for ``FOR UPDATE SKIP LOCKED``: there is one
    ticket, so there is never another row to go on with.
    """
    compiled = context.compiled if context is not None else None
    if compiled is None:
        return need_of_text(sql), False
    if context.isinsert or context.isupdate or context.isdelete:
        return Need.WRITE, False
    if context.isddl:
        need = need_of_text(sql)  # DDL("VACUUM") is for any text
        return Need.WRITE if need is Need.UNKNOWN else need, False
    statement = compiled.statement
    while isinstance(statement, FromStatement):  # which says how the rows of another are read
        statement = statement.element
    lock = getattr(statement, "_for_update_arg", None)
    if lock is not None:
        if lock.skip_locked:
            raise InvalidRequestError(
                "FOR UPDATE SKIP LOCKED has no meaning on SQLite: one ticket guards the whole "
                "database, so there are no unlocked rows beside a locked one. Use "
                "with_for_update() to wait, or with_for_update(nowait=True) to fail at once."
            )
        return Need.WRITE, bool(lock.nowait)
    if type(statement) is Select or _begins_as_select(statement):
        ctes = getattr(compiled, "ctes", None)
        if not (ctes and _have_suffix(ctes)):
            return Need.READ, False
    return need_of_text(sql), False


def _begins_as_select(statement: Any) -> bool:
    """Whether a statement, or the first one of a UNION, is a SELECT that SQLAlchemy has written.

    ``INSERT INTO t SELECT 1`` as text is made no read by a ``UNION SELECT 2`` behind it.
    """
    while True:
        if isinstance(statement, CompoundSelect):
            statement = statement.selects[0]
        elif isinstance(statement, SelectStatementGrouping):
            statement = statement.element
        else:
            return isinstance(statement, Select)


def _have_suffix(ctes: Any) -> bool:
    """Whether something of the application's stands between ``WITH x AS (...)`` and SELECT."""
    return any(each._suffixes for each in ctes)
