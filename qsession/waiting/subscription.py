"""Subscription: what one observer waits for, namely a commit that may have changed its tables.

Whoever learns of a commit tells all subscriptions, from any thread. What they are told is kept as a
set of tables, so many commits take no more memory than one.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Any

from qsession.waiting.handoff import Waiter

Tables = frozenset[str]
"""Names of tables in lower case."""


def united(parts: Iterable[Tables | None]) -> Tables | None:
    """All tables of the parts; None if those of one part are unknown."""
    found: set[str] = set()
    for part in parts:
        if part is None:
            return None
        found |= part
    return frozenset(found)


class State(Enum):
    """Whether a subscription is still told of commits."""

    LIVE = "it is told of each commit"
    LOST = "its source is gone, and commits may be missed: subscribe again, then read"
    OVER = "the observer or the engine was closed"


class Subscription:
    """The commits that one observer has not read yet. A new one is due at once.

    Invariant: after :meth:`begin`, each commit that a read does not see is told later.
    """

    def __init__(self, pool: Any, look_every: float) -> None:
        self.pool = pool
        """The pool of the engine, which ends its subscriptions when it is disposed of."""
        self.look_every = look_every
        """Seconds between two checks for commits of other programs."""
        self.state = State.LIVE
        self._tables: Tables | None = None
        self._changed: set[str] = set()
        """The tables that commits may have changed since the last read began."""
        self._latest = object()
        """Replaced by a commit that may have changed any table."""
        self._read: object = None
        """Its value when the last read began."""
        self._waiter = Waiter()

    def __repr__(self) -> str:
        of = "all tables" if self._tables is None else sorted(self._tables)
        return f"<Subscription {self.state.name} to {of} due={self.is_due}>"

    @property
    def is_due(self) -> bool:
        """Whether a commit may have changed one of its tables since the last read began."""
        if self._latest is not self._read:
            return True
        if self._tables is None:
            return bool(self._changed)
        return not self._tables.isdisjoint(self._changed)

    def begin(self) -> bool:
        """Note that a read begins. It sees all commits that were told before.

        Returns whether one of them may have changed anything, the schema as well.
        """
        latest = self._latest  # looked at once, as another thread may replace it
        anything, self._read = latest is not self._read, latest
        self._changed = set()
        return anything

    def of(self, tables: Tables | None) -> None:
        """Set the tables that count from now on; None for all tables.

        A commit to one of them since the last :meth:`begin` counts as well.
        """
        self._tables = tables

    def tell(self, tables: Tables | None) -> None:
        """Note a commit that may have changed these tables; None for any table. Any thread."""
        if tables is None:
            self._latest = object()
        else:
            self._changed.update(tables)
        if self.is_due:
            self._waiter.wake()

    def end(self, state: State) -> None:
        """Tell it of nothing more. Any thread."""
        if self.state is not State.OVER:
            self.state = state
            self._waiter.wake()

    async def wait(self) -> None:
        """Wait until it is due, or no longer live. A cancellation has no effect on it."""
        while not self._is_answered:
            future = self._waiter.prepare()
            if not self._is_answered:
                await future

    @property
    def _is_answered(self) -> bool:
        return self.state is not State.LIVE or self.is_due
