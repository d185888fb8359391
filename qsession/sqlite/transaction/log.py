"""The log of a transaction that has not written: its reads, to be validated before it writes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from qsession.sqlite.transaction.digest import StreamDigest
from qsession.sqlite.transaction.identity import (
    keeps_objects,
    loads_objects,
    loads_part,
    loads_relationship,
    next_load,
)
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
    shown: bool = False
    """Whether objects of the ORM still show it, although the statement was run again."""
    since: int = 0
    until: float = math.inf
    """The numbers of the ORM's loads between which its objects were loaded."""

    @property
    def is_empty(self) -> bool:
        """Whether it had no rows, so that no object comes from it, unless as no related ones."""
        return isinstance(self.seen, tuple) and self.seen[0] == b""

    def replaces(self, earlier: Entry) -> bool:
        """Whether the application has seen this result in place of an earlier one.

        It may have broken off a stream, also where all rows were fetched in advance.
        """
        if earlier.shown:
            return False
        mine, before = self.seen, earlier.seen
        if not isinstance(mine, StreamDigest):
            return True
        if not isinstance(before, StreamDigest):
            return False
        return mine.ended or (not before.ended and mine.count >= before.count)


class Log:
    """The reads of one transaction. If the log is full, it is dropped, and ``complete`` is False.

    Of a statement that was run twice, the last result counts, if the application has seen it.
    """

    __slots__ = ("_bytes", "_entries", "_in_parts", "_latest", "_size", "complete", "failed")

    def __init__(self) -> None:
        self._entries: dict[Any, list[Entry]] = {}
        """By statement and parameters: the last result, and those before it that count as well.
        For objects of the ORM the first one is that which they show.
        """
        self._bytes = 0
        self._size = 0
        self._latest: Entry | None = None
        """The last load of objects."""
        self._in_parts = False
        """Whether the numbers of objects no longer tell what they show, after a `loads_part`."""
        self.complete = True
        self.failed = False
        """Whether a statement has failed. SQLite may then have no snapshot yet."""

    @property
    def entries(self) -> list[Entry]:
        """The reads, in their order."""
        return [each for found in self._entries.values() for each in _that_count(found)]

    def append(self, statement: Statement, seen: Any) -> None:
        """Record what a statement has read, before the ORM gets the rows.

        The parameters are copied, because the application may change them later, and validation
        must bind the same values again.
        """
        if not self.complete:
            return
        entry = Entry(statement.sql, frozen(statement.parameters), seen)
        objects = loads_objects(statement.context)
        if objects:
            self._note_load(entry, statement.context)
        key = _key(entry, objects)
        found = self._entries.pop(key, [])
        if found and objects:
            self._note_shown(found[0], entry, statement.context)
        self._entries[key] = kept = _that_count([*found, entry])
        added = len(kept) - len(found)
        self._size += added
        self._bytes += added and added * (len(entry.sql) + size_of(entry.parameters))
        if self._size > MAX_STATEMENTS or self._bytes > MAX_BYTES:
            self.complete = False
            self._entries = {}

    def _note_load(self, entry: Entry, context: Any) -> None:
        """Number a load of objects. What the load before it has loaded, has lower numbers."""
        entry.since = next_load()
        if self._latest is not None:
            self._latest.until = entry.since
        self._latest = entry
        self._in_parts = self._in_parts or loads_part(context)

    def _note_shown(self, first: Entry, entry: Entry, context: Any) -> None:
        """Note whether the application may see objects of the first result for rows of the last."""
        if first.seen == entry.seen:  # the objects may be those of either
            entry.since = first.since
            first.shown = False
        elif not first.is_empty or loads_relationship(context):
            between = (0, math.inf) if self._in_parts else (first.since, first.until)
            first.shown = keeps_objects(context, *between)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was read."""
        return self.complete and not self._entries


def _that_count(entries: Iterable[Entry]) -> list[Entry]:
    """Of results of one statement, in their order: those that no later one replaces."""
    found: list[Entry] = []
    for entry in entries:
        found = [each for each in found if not entry.replaces(each)]
        found.append(entry)
    return found


def _key(entry: Entry, objects: bool) -> Any:
    """A key for a statement with its parameters. It tells apart 1, 1.0 and True, as SQLite does.

    What the ORM shows as objects is told from what the application sees as rows.
    """
    values = entry.parameters
    types = tuple(map(type, values.values() if isinstance(values, dict) else values))
    if isinstance(values, dict):
        values = tuple(values.items())
    try:
        hash(values)
    except TypeError:
        return entry.sql, id(entry)
    return entry.sql, objects, values, types
