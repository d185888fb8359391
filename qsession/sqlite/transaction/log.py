"""The log of a transaction that has not written: what it read, to be compared before it writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qsession.sqlite.transaction.parameters import frozen, size_of
from qsession.sqlite.transaction.statement import Statement

MAX_STATEMENTS = 1_000
MAX_BYTES = 4 * 1024 * 1024


@dataclass(slots=True, eq=False)
class Entry:
    """A statement that read, and an exact digest of what came back."""

    sql: str
    parameters: Any
    seen: Any


class Log:
    """The reads of one transaction. A log that is full is dropped: ``complete`` is False.

    A statement that was read twice counts as it was read last: the application has seen that.
    """

    __slots__ = ("_bytes", "_entries", "complete", "failed")

    def __init__(self) -> None:
        self._entries: dict[Any, Entry] = {}
        self._bytes = 0
        self.complete = True
        self.failed = False
        """Whether a statement has failed: then SQLite may have taken no snapshot with it."""

    @property
    def entries(self) -> list[Entry]:
        """What was read, in the order of reading."""
        return list(self._entries.values())

    def append(self, statement: Statement, seen: Any) -> None:
        """Keep what a statement has read.

        Parameters are kept as they were when it was sent, whatever the application does to them
        later: validation has to bind the same again.
        """
        if not self.complete:
            return
        entry = Entry(statement.sql, frozen(statement.parameters), seen)
        key = _key(entry)
        if self._entries.pop(key, None) is None:
            self._bytes += len(entry.sql) + size_of(entry.parameters)
        self._entries[key] = entry
        if len(self._entries) > MAX_STATEMENTS or self._bytes > MAX_BYTES:
            self.complete = False
            self._entries = {}

    @property
    def is_empty(self) -> bool:
        """Whether nothing was read."""
        return self.complete and not self._entries


def _key(entry: Entry) -> Any:
    """Equal for the same statement only: 1, 1.0 and True are equal, and SQLite tells them apart."""
    values = entry.parameters
    types = tuple(map(type, values.values() if isinstance(values, dict) else values))
    if isinstance(values, dict):
        values = tuple(values.items())
    try:
        hash(values)
    except TypeError:
        return entry.sql, id(entry)
    return entry.sql, values, types
