"""The kind of a statement, which decides where it runs.

SQLAlchemy tells the kind of a compiled statement. The kind of a text comes from its first words. A
tokenizer skips what SQLite skips: blanks, comments, the byte order mark and empty statements
(https://sqlite.org/lang_comment.html). If the words do not tell whether a text writes, it runs
under ``PRAGMA query_only``, and SQLite tells.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from itertools import islice
from typing import Any

from sqlalchemy import CompoundSelect, Select
from sqlalchemy.orm import FromStatement
from sqlalchemy.sql.selectable import SelectStatementGrouping

from qsession.sqlite.driver.lease import Stream


class Kind(Enum):
    """The kinds of statements, as far as they decide where a statement runs."""

    READ = "reads the file"
    WRITE = "writes to the file"
    UNKNOWN = "text of which only SQLite knows whether it writes"
    LOCK = "SELECT ... FOR UPDATE: takes the write lock, then reads"
    TELL = "a PRAGMA that reads a setting of the connection"
    WATCH = "PRAGMA data_version: its values are comparable on one connection only"
    SET = "a PRAGMA that sets something on the connection, and ATTACH and DETACH"
    SET_IN_FILE = "CREATE TEMP: writes what only this connection sees"
    OUTSIDE = "works on the whole file, outside a transaction: VACUUM, a checkpoint"
    COPY = "VACUUM INTO: reads the file, outside a transaction"
    DEFER = "PRAGMA defer_foreign_keys: holds until the next COMMIT"
    SAVEPOINT = "SAVEPOINT"
    RELEASE = "RELEASE"
    ROLLBACK_TO = "ROLLBACK TO"
    BEGIN = "BEGIN"
    BEGIN_WRITE = "BEGIN IMMEDIATE, BEGIN EXCLUSIVE"
    COMMIT = "COMMIT, END"
    ROLLBACK = "ROLLBACK"

    __hash__ = object.__hash__  # by identity; Enum's own is written in Python


SAVEPOINTS = frozenset((Kind.SAVEPOINT, Kind.RELEASE, Kind.ROLLBACK_TO))
MAY_WRITE = frozenset((Kind.WRITE, Kind.UNKNOWN, Kind.SET_IN_FILE))
"""Kinds that may write inside a transaction."""


@dataclass(frozen=True, slots=True)
class Words:
    """What the first words of a text say."""

    kind: Kind
    name: str = ""
    """The savepoint, the PRAGMA, or the first word; in lower case."""
    value: str | None = None
    """The value that a PRAGMA sets, if it is one word."""


@dataclass(slots=True)
class Statement:
    """One statement on its way to the database."""

    sql: str
    parameters: Any = ()
    kind: Kind = Kind.UNKNOWN
    words: Words | None = None
    """The first words of the text, if the kind comes from the text."""
    many: bool = False
    stream: Stream | None = None
    """The cursor that fetches rows in parts; None if all rows are fetched at once."""
    nowait: bool = False
    context: Any = None
    """SQLAlchemy's execution context."""
    alone: bool = False
    """AUTOCOMMIT: whether it is its own transaction."""

    @property
    def sample(self) -> Any:
        """Its parameters; of an executemany, the first ones."""
        return next(iter(self.parameters), ()) if self.many else self.parameters


LONG = 1_000
"""The number of characters above which a text is parsed each time, and not cached."""
_TOKEN = re.compile(
    r"""(?:[\t-\r \ufeff]|--[^\n]*(?:\n|\Z)|/\*.*?(?:\*/|\Z))*
    (?:(?P<word>[^\W\d][\w$]*|-?\d[\w.]*)
      |"(?P<double>(?:[^"]|"")*)"|'(?P<single>(?:[^']|'')*)'|`(?P<back>(?:[^`]|``)*)`
      |\[(?P<square>[^\]]*)\]|(?P<sign>\S)|(?P<end>\Z))""",
    re.VERBOSE | re.DOTALL,
)
_BEGINS_WITH = {
    "select": Kind.READ,
    "values": Kind.READ,
    "explain": Kind.READ,
    "insert": Kind.WRITE,
    "update": Kind.WRITE,
    "delete": Kind.WRITE,
    "replace": Kind.WRITE,
    "alter": Kind.WRITE,
    "drop": Kind.WRITE,
    "reindex": Kind.WRITE,
    "analyze": Kind.WRITE,
    "vacuum": Kind.OUTSIDE,
    "attach": Kind.SET,
    "detach": Kind.SET,
    "commit": Kind.COMMIT,
    "end": Kind.COMMIT,
}
_CHANGES = ("insert", "update", "delete", "replace")
_OF_SCHEMA = ("create", "alter", "drop")
_NOT_BEGUN = (*_OF_SCHEMA, "analyze", "reindex")
"""Words before which Python's ``sqlite3`` begins no transaction: it commits them at once."""
_ABOUT_TABLES = frozenset(
    (
        *("table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo"),
        *("foreign_key_list", "foreign_key_check", "integrity_check", "quick_check"),
    )
)
"""PRAGMAs that read the file and may have an argument."""
_IN_HEADER = frozenset(("user_version", "application_id", "schema_version"))
"""PRAGMAs whose value is in the file: setting one is a write, inside the transaction."""
_OF_FILE = _ABOUT_TABLES | _IN_HEADER | {"page_count", "freelist_count", "encoding", "page_size"}
_WORK = frozenset(("optimize", "wal_checkpoint", "incremental_vacuum", "shrink_memory"))
ONLY_OUTSIDE = frozenset(("foreign_keys", "journal_mode", "synchronous", "temp_store"))
"""PRAGMAs that do nothing, or fail, inside a transaction (https://sqlite.org/pragma.html)."""


def words_of(sql: str) -> Words:
    """What the first words of a text say."""
    return _words_of(sql) if len(sql) <= LONG else _words_of.__wrapped__(sql)


def kind_of(context: Any, sql: str) -> tuple[Kind, bool, Words | None]:
    """The kind of a statement, whether it has NOWAIT, and its words if it is a text.

    ``context`` is SQLAlchemy's execution context. ``FOR UPDATE SKIP LOCKED`` is treated as FOR
    UPDATE: no row is locked while the transaction holds the ticket, so none is skipped.
    """
    compiled = context.compiled if context is not None else None
    if compiled is None:
        words = words_of(sql)
        return words.kind, False, words
    found: tuple[Kind, bool, bool] | None = compiled.__dict__.get("_qsession_kind")
    if found is None:
        found = compiled.__dict__["_qsession_kind"] = _kind_of_compiled(context, compiled)
    kind, nowait, is_text = found
    if not is_text:
        return kind, nowait, None
    words = words_of(sql)
    return (kind if words.kind is Kind.UNKNOWN else words.kind), nowait, words


def _kind_of_compiled(context: Any, compiled: Any) -> tuple[Kind, bool, bool]:
    """The kind, whether it has NOWAIT, and whether its text must be parsed as well."""
    if context.isinsert or context.isupdate or context.isdelete:
        return Kind.WRITE, False, False
    if context.isddl:
        return Kind.WRITE, False, True  # DDL("VACUUM") may contain any text
    statement = compiled.statement
    while isinstance(statement, FromStatement):  # it wraps the statement that is sent
        statement = statement.element
    lock = getattr(statement, "_for_update_arg", None)
    if lock is not None:
        return Kind.LOCK, bool(lock.nowait), False
    ctes = getattr(compiled, "ctes", None)
    if _begins_as_select(statement) and not (ctes and any(each._suffixes for each in ctes)):
        return Kind.READ, False, False
    return Kind.UNKNOWN, False, True


def _begins_as_select(statement: Any) -> bool:
    """Whether a statement, or the first part of a UNION, is a SELECT that SQLAlchemy compiled.

    The text ``INSERT INTO t SELECT 1`` with ``UNION SELECT 2`` after it is still a write.
    """
    while True:
        if isinstance(statement, CompoundSelect):
            statement = statement.selects[0]
        elif isinstance(statement, SelectStatementGrouping):
            statement = statement.element
        else:
            return isinstance(statement, Select)


def savepoints_after(open_ones: tuple[str, ...], words: Words) -> tuple[str, ...]:
    """The open savepoints, outermost first, after a savepoint statement has run.

    A name refers to the innermost savepoint of that name (https://sqlite.org/lang_savepoint.html).
    """
    if words.kind is Kind.SAVEPOINT:
        return (*open_ones, words.name)
    if words.name not in open_ones:
        return open_ones
    number = len(open_ones) - open_ones[::-1].index(words.name)
    return open_ones[: number - 1 if words.kind is Kind.RELEASE else number]


def sent_after_begin(deferred: Iterable[str], savepoints: Iterable[str]) -> tuple[str, ...]:
    """What was not sent before the first write, with the savepoints that are still open."""
    quoted = (name.replace('"', '""') for name in savepoints)
    return (*deferred, *(f'SAVEPOINT "{name}"' for name in quoted))


def is_committed_by_sqlite3(statement: Statement, changed_rows: bool) -> bool:
    """Whether Python's ``sqlite3`` would have committed a statement that has written at once.

    It begins a transaction only before a text whose first word is INSERT, UPDATE, DELETE or
    REPLACE. A text that begins with WITH may be a SELECT, so ``changed_rows`` must say what it did.
    """
    words = statement.words
    if words is None:
        return changed_rows and statement.sql.startswith("WITH ")
    if words.name == "with":
        return changed_rows
    if words.kind is Kind.SET_IN_FILE:
        return False  # it ends with its connection in any case
    return words.name in _NOT_BEGUN or words.name in _IN_HEADER


def may_change_schema(words: Words | None) -> bool:
    """Whether it is DDL, which may also find that there is nothing to do, or be for TEMP tables."""
    return words is not None and words.kind is Kind.WRITE and words.name in _OF_SCHEMA


def leaves_wal(words: Words | None) -> bool:
    """Whether a text takes the file out of WAL mode, which only its sole connection may do."""
    if words is None or words.kind is not Kind.SET or words.name != "journal_mode":
        return False
    return words.value is not None and words.value.lower() != "wal"


def means_on(value: str) -> bool:
    """Whether SQLite treats a value as true (https://sqlite.org/pragma.html#pragma_foreign_keys).

    A number is true unless it is 0. A word is true only if it is one of these.
    """
    number = re.match(r"\d+", value)
    return int(number[0]) != 0 if number else value.lower() in ("on", "yes", "true")


def changes_rows(statement: Statement) -> bool:
    """Whether it certainly takes SQLite's write lock, even if no row changes.

    For example, ``DROP TABLE IF EXISTS`` of a table that does not exist does not take the lock.
    """
    words = statement.words
    return statement.kind is Kind.WRITE and (words is None or words.name in _CHANGES)


def unquoted(sql: str) -> Iterator[str]:
    """The tokens of a text, without quotes."""
    for found in _TOKEN.finditer(sql):
        if found.lastgroup == "end":  # only comments remain
            return
        yield found[found.lastgroup or 0]


@lru_cache(maxsize=1_000)
def _words_of(sql: str) -> Words:
    tokens = unquoted(sql)
    first = next(tokens, "").lower()
    while first == ";":
        first = next(tokens, "").lower()
    rest = list(islice(tokens, 8))
    lower = [each.lower() for each in rest] + [""] * 8
    if first == "pragma":
        return _pragma(rest)
    if first == "create":
        return Words(_kind_of_create(sql, lower), "create")
    if first == "savepoint":
        return Words(Kind.SAVEPOINT, lower[0])
    if first == "release":
        return Words(Kind.RELEASE, lower[1] if lower[0] == "savepoint" else lower[0])
    if first == "begin":
        immediate = lower[0] in ("immediate", "exclusive")
        return Words(Kind.BEGIN_WRITE if immediate else Kind.BEGIN)
    if first == "rollback":
        return _rollback(lower)
    if first == "vacuum" and "into" in lower:
        return Words(Kind.COPY, first)
    return Words(_BEGINS_WITH.get(first, Kind.UNKNOWN), first)


def _rollback(words: list[str]) -> Words:
    if words[0] == "transaction":
        words = words[1:]
    if words[0] != "to":
        return Words(Kind.ROLLBACK)
    return Words(Kind.ROLLBACK_TO, words[2] if words[1] == "savepoint" else words[1])


def _kind_of_create(sql: str, words: list[str]) -> Kind:
    if words[0] in ("temp", "temporary"):
        return Kind.SET_IN_FILE
    if words[0] in ("unique", "virtual"):
        words = words[1:]
    name = words[1:]
    if name[:3] == ["if", "not", "exists"]:
        name = name[3:]
    return Kind.SET_IN_FILE if name[:2] == ["temp", "."] else Kind.WRITE


def _pragma(words: list[str]) -> Words:
    if words[1:2] == ["."]:
        words = words[2:]
    name = words[0].lower() if words else ""
    rest = [each for each in words[1:] if each != ";"]
    if name in _WORK:
        return Words(Kind.OUTSIDE, name)
    if name in _ABOUT_TABLES:
        return Words(Kind.READ, name)
    if not rest:
        if name == "data_version":
            return Words(Kind.WATCH, name)
        return Words(Kind.READ if name in _OF_FILE else Kind.TELL, name)
    if name in _IN_HEADER:
        return Words(Kind.WRITE, name)
    if name == "defer_foreign_keys":
        return Words(Kind.DEFER, name)
    value = rest[1] if len(rest) > 1 and rest[0] in ("=", "(") else None
    return Words(Kind.SET, name, value)
