"""Checks the integrity of a database, as far as possible without its application.

An application may register functions and collations. Without them SQLite cannot evaluate the
indexes and CHECK constraints that use them, and ``PRAGMA integrity_check`` fails for the whole
database (https://sqlite.org/pragma.html#pragma_integrity_check). In that case the tables are
checked one by one, and only the structure of tables that need the application.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace

from qsession.errors import SQLITE_CORRUPT, SQLITE_ERROR, sqlite_code

_LACKING = re.compile(
    r"(?P<what>no such collation sequence|(?:unknown|no such) function): (?P<name>[^()]+)"
)
"""SQLite has one code for all errors of preparing a statement, so the text must tell."""
_STRUCTURE = "*** in "
"""The beginning of a line about pages. These come before lines about the content of tables."""
_VIOLATION = re.compile(r"CHECK constraint failed in |(NULL|NUMERIC|TEXT|non-\w+) value in ")
"""The beginning of a line about a readable row that violates a constraint."""
_INDEX = re.compile(r"(row \d+|rowid|wrong # of entries|non-unique entry) .*\bindex ")
_LINES = 1000
"""The number of lines to request if some are about violations."""
_NAMES = 100
"""The largest number of functions and collations that are replaced by placeholders."""


@dataclass(frozen=True)
class Integrity:
    """The result of a check."""

    problems: tuple[str, ...]
    """Problems in SQLite's words; empty for an intact database."""
    unchecked: tuple[str, ...] = ()
    """Tables of which only the structure was checked, because the content needs the application."""
    lacking: tuple[str, ...] = ()
    """SQLite's messages about what is missing, such as ``no such collation sequence: unicase``."""
    violations: tuple[str, ...] = ()
    """Rows that violate a constraint, in SQLite's words. The file itself is intact."""

    @property
    def of_indexes(self) -> bool:
        """Whether all problems are indexes that do not match their tables."""
        return all(_INDEX.match(each) for each in self.problems)


def lacks_the_application(error: sqlite3.Error) -> bool:
    """Whether an error means a missing function, collation or module, and not damage.

    Python 3.10 has no error codes.
    """
    return sqlite_code(error) in (0, SQLITE_ERROR) and not isinstance(
        error, (sqlite3.InterfaceError, sqlite3.ProgrammingError)
    )


def check(raw: sqlite3.Connection, limit: int) -> Integrity:
    """Check a whole database. Returns at most ``limit`` problems.

    During the check ``raw``, which must not be used otherwise, has placeholders for missing
    functions. Raises ``sqlite3.Error`` if the database cannot be read, and nothing was found.
    """
    try:
        told = _told(_all_lines(raw, limit), limit)
        if told.violations:  # they must not hide damage
            told = _told(_all_lines(raw, _LINES, limit), limit)
        return told
    except sqlite3.Error as error:
        if not lacks_the_application(error):
            raise
    lines: list[str] = []
    unchecked: list[str] = []
    lacking: dict[str, None] = {}
    for name in tables(raw):
        try:
            lines += _lines(raw, f"PRAGMA integrity_check({quoted(name)})")
        except sqlite3.Error as error:
            if sqlite_code(error) == SQLITE_CORRUPT:
                lines.append(f"table {name!r}: {error}")
                continue
            if not lacks_the_application(error):
                raise
            unchecked.append(name)
            lacking[str(error)] = None
    lines += _structure(raw, limit)
    told = _told(lines, limit)
    return replace(told, unchecked=tuple(unchecked), lacking=tuple(lacking))


def tables(raw: sqlite3.Connection) -> list[str]:
    """The names of the tables, without virtual tables."""
    found = raw.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0")
    return [str(name) for (name,) in found]


def quoted(name: str) -> str:
    """A name, quoted for a statement."""
    return '"' + name.replace('"', '""') + '"'


def _told(lines: Sequence[str], limit: int) -> Integrity:
    """The lines from SQLite, as problems and violations."""
    kinds: dict[bool, list[str]] = {True: [], False: []}
    for line in dict.fromkeys(lines):
        kinds[_VIOLATION.match(line) is not None].append(line)
    return Integrity(tuple(kinds[False][:limit]), violations=tuple(kinds[True][:limit]))


def _lines(raw: sqlite3.Connection, pragma: str) -> list[str]:
    found = [str(line) for (line,) in raw.execute(pragma)]
    return [] if found == ["ok"] else found


def _all_lines(raw: sqlite3.Connection, limit: int, fewer: int = 0) -> list[str]:
    """The lines about the whole database. ``fewer``: as ``limit``, for a damaged one.

    At a page that it cannot read SQLite ends with an error after what it has found, and Python
    loses the last line. If it is to find no more than that, it ends before the error.
    """
    try:
        return _lines(raw, f"PRAGMA integrity_check({limit})")
    except sqlite3.Error as error:
        if sqlite_code(error) != SQLITE_CORRUPT:
            raise
        for number in range(fewer or limit - 1, 0, -1):
            with suppress(sqlite3.Error):
                return _lines(raw, f"PRAGMA integrity_check({number})")
        raise


def _structure(raw: sqlite3.Connection, limit: int) -> list[str]:
    """Problems of pages, without their content, since placeholders compare nothing."""
    with ExitStack() as stand_ins:
        for _ in range(_NAMES):
            try:
                found = _all_lines(raw, limit)
                return [line for line in found if line.startswith(_STRUCTURE)]
            except sqlite3.Error as error:
                lacking = _LACKING.match(str(error))
                if lacking is None:
                    if lacks_the_application(error):
                        return []
                    raise
            name = lacking["name"]
            if "collation" in lacking["what"]:
                raw.create_collation(name, _same)
                stand_ins.callback(raw.create_collation, name, None)
            else:
                raw.create_function(name, -1, _nothing, deterministic=True)
                stand_ins.callback(raw.create_function, name, -1, None)
    return []


def _same(_one: str, _other: str) -> int:
    return 0


def _nothing(*_arguments: object) -> None:
    return None
