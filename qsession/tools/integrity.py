"""Whether a database is whole, as far as that can be said without the application it belongs to.

An application registers functions and collations on its connections. Without them SQLite cannot
evaluate the indexes and CHECK constraints that use them, and ``PRAGMA integrity_check`` fails for
the whole database (https://sqlite.org/pragma.html#pragma_integrity_check). So the tables are
checked one by one then, and of those that need the application only the structure.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from qsession.errors import sqlite_code

_SQLITE_ERROR = 1
_LACKING = re.compile(
    r"(?P<what>no such collation sequence|(?:unknown|no such) function): (?P<name>[^()]+)"
)
"""SQLite has one code for all that a statement cannot be prepared for, so the text has to do."""
_STRUCTURE = "*** in "
"""How a line about pages begins. They come before those about the content of tables."""
_VIOLATION = re.compile(r"CHECK constraint failed in |(NULL|NUMERIC|TEXT|non-\w+) value in ")
"""How a line about a row begins that is readable, but not as its table wants it."""
_INDEX = re.compile(r"(row \d+|rowid|wrong # of entries|non-unique entry) .*\bindex ")
_LINES = 1000
"""How many lines are asked for where some are about violations."""
_NAMES = 100
"""Functions and collations that are stood in for; a database with more is taken for checked."""


@dataclass(frozen=True)
class Integrity:
    """What was found."""

    problems: tuple[str, ...]
    """In SQLite's words; none for a database that is whole."""
    unchecked: tuple[str, ...] = ()
    """Tables whose content cannot be checked without the application; their structure was."""
    lacking: tuple[str, ...] = ()
    """What SQLite said was not there, as ``no such collation sequence: unicase``."""
    violations: tuple[str, ...] = ()
    """Rows that do not keep to a constraint, in SQLite's words. The file is whole all the same."""

    @property
    def of_indexes(self) -> bool:
        """Whether all problems are indexes that do not go with their tables."""
        return all(_INDEX.match(each) for each in self.problems)


def lacks_the_application(error: sqlite3.Error) -> bool:
    """Whether it says that a function, a collation or a module is not there, rather than damage.

    Python 3.10 has no code for any error.
    """
    return sqlite_code(error) in (0, _SQLITE_ERROR) and not isinstance(
        error, (sqlite3.InterfaceError, sqlite3.ProgrammingError)
    )


def check(raw: sqlite3.Connection, limit: int) -> Integrity:
    """Check all of a database; at most ``limit`` problems are told.

    Meanwhile ``raw``, which nobody else uses, has stand-ins for what is missing. Raises
    ``sqlite3.Error`` where it cannot be read at all.
    """
    try:
        told = _told(_lines(raw, f"PRAGMA integrity_check({limit})"), limit)
        if told.violations:  # they must hide no damage behind them
            told = _told(_lines(raw, f"PRAGMA integrity_check({_LINES})"), limit)
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
            if not lacks_the_application(error):
                raise
            unchecked.append(name)
            lacking[str(error)] = None
    lines += _structure(raw, limit)
    told = _told(lines, limit)
    return replace(told, unchecked=tuple(unchecked), lacking=tuple(lacking))


def tables(raw: sqlite3.Connection) -> list[str]:
    """The names of the tables, virtual ones apart."""
    found = raw.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0")
    return [str(name) for (name,) in found]


def quoted(name: str) -> str:
    """A name as a part of a statement."""
    return '"' + name.replace('"', '""') + '"'


def _told(lines: Sequence[str], limit: int) -> Integrity:
    """What SQLite has said, by what it means."""
    kinds: dict[bool, list[str]] = {True: [], False: []}
    for line in dict.fromkeys(lines):
        kinds[_VIOLATION.match(line) is not None].append(line)
    return Integrity(tuple(kinds[False][:limit]), violations=tuple(kinds[True][:limit]))


def _lines(raw: sqlite3.Connection, pragma: str) -> list[str]:
    found = [str(line) for (line,) in raw.execute(pragma)]
    return [] if found == ["ok"] else found


def _structure(raw: sqlite3.Connection, limit: int) -> list[str]:
    """What is wrong with pages, whatever is in them. What the stand-ins compare means nothing."""
    with ExitStack() as stand_ins:
        for _ in range(_NAMES):
            try:
                found = _lines(raw, f"PRAGMA integrity_check({limit})")
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
