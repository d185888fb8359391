"""Words: what the text of a statement says that nothing else tells."""

from __future__ import annotations

import re

_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
BEFORE = r"(?:\s|--[^\n]*\n|/\*(?:(?!\*/).)*\*/)*"
"""A pattern for what may stand before the first word."""
_INSERT = re.compile(
    BEFORE
    + r"""
    (?:INSERT\b|REPLACE\b|WITH\b.*\b(?:INSERT|REPLACE)\s+(?:OR\s+\w+\s+)?INTO\b)""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_SAVEPOINT = re.compile(
    r"""\s*(?P<verb>SAVEPOINT|RELEASE(?:\s+SAVEPOINT)?
        |ROLLBACK(?:\s+TRANSACTION)?\s+TO(?:\s+SAVEPOINT)?)\b
    [\s"'`\[]*(?P<name>.*?)[\s"'`\];]*\Z""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)


def inserts(sql: str) -> bool:
    """Whether a statement may insert a row; for others SQLite repeats an older rowid."""
    return _INSERT.match(sql) is not None


def rolls_back_to(sql: str) -> bool:
    """Whether a statement about a savepoint is ROLLBACK TO."""
    return _savepoint(sql)[0] == "ROLLBACK"


def savepoints_after(savepoints: list[str], sql: str) -> list[str]:
    """The savepoints that are open, outermost first, once a statement about one has run.

    The innermost of a name is meant (https://sqlite.org/lang_savepoint.html).
    """
    verb, name = _savepoint(sql)
    if verb == "SAVEPOINT":
        return [*savepoints, name]
    if name not in savepoints:
        return savepoints
    number = len(savepoints) - savepoints[::-1].index(name)
    return savepoints[: number - 1 if verb == "RELEASE" else number]


def _savepoint(sql: str) -> tuple[str, str]:
    found = _SAVEPOINT.match(_COMMENT.sub(" ", sql))
    return (found["verb"].split()[0].upper(), found["name"].lower()) if found else ("", "")
