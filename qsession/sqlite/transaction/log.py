"""The log of a transaction that has not written: its reads, to be validated before it writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qsession.sqlite.transaction.parameters import frozen, size_of
from qsession.sqlite.transaction.statement import Statement

MAX_STATEMENTS = 1_000
MAX_BYTES = 4 * 1024 * 1024


@dataclass(slots=True, eq=False)
class Entry:
    """A statement that read, and an exact digest of its result."""

    sql: str
    parameters: Any
    seen: Any


class Log:
    """The reads of one transaction. If the log is full, it is dropped, and ``complete`` is False.

    Of a statement that was run twice, the last result counts, because the application has seen it.
    """

    __slots__ = ("_bytes", "_entries", "complete", "failed")

    def __init__(self) -> None:
        self._entries: dict[Any, Entry] = {}
        self._bytes = 0
        self.complete = True
        self.failed = False
        """Whether a statement has failed. SQLite may then have no snapshot yet."""

    @property
    def entries(self) -> list[Entry]:
        """The reads, in their order."""
        return list(self._entries.values())

    def append(self, statement: Statement, seen: Any) -> None:
        """Record what a statement has read.

        The parameters are copied, because the application may change them later, and validation
        must bind the same values again.
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
    """A key for a statement with its parameters. It tells apart 1, 1.0 and True, as SQLite does."""
    values = entry.parameters
    types = tuple(map(type, values.values() if isinstance(values, dict) else values))
    if isinstance(values, dict):
        values = tuple(values.items())
    try:
        hash(values)
    except TypeError:
        return entry.sql, id(entry)
    return entry.sql, values, types
