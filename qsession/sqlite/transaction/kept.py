"""Kept: a connection that stays with its user, because something was set on it."""

from __future__ import annotations

from typing import Any

from qsession.sqlite.driver.lease import Lease
from qsession.sqlite.driver.setup import set_back
from qsession.sqlite.transaction.statement import Kind, Words

_CAN_BE_SET_BACK = frozenset(
    (
        *("foreign_keys", "recursive_triggers", "synchronous", "cache_size", "query_only"),
        *("ignore_check_constraints", "reverse_unordered_selects", "read_uncommitted"),
        *("secure_delete", "cell_size_check", "automatic_index", "trusted_schema"),
        *("legacy_alter_table", "busy_timeout"),
    )
)
"""PRAGMAs with one readable value, which can be restored for the next user."""


class Kept:
    """A connection with everything that its user has set on it, until the user closes it."""

    __slots__ = (
        "_cannot_be_set_back", "_settings", "_sync", "lease", "lent", "lost", "postponed",
    )  # fmt: skip

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        lease.record.kept = True
        self.lent = False
        """Whether the application has the driver's connection."""
        self.lost: str | None = None
        """Why the connection was closed after an error; None if it was not."""
        self._sync = lease.driver.sync
        self._settings: dict[str, Any] = {}
        self._cannot_be_set_back = False
        self.postponed: dict[str, Any] = {}
        """PRAGMAs to restore as soon as the transaction has ended."""

    def turns_back(self, name: str, on: bool) -> bool:
        """Whether a PRAGMA was set, and ``on`` is its original value."""
        return name in self._settings and bool(self._settings[name]) is on

    def postpone(self, name: str) -> None:
        """Restore a PRAGMA after the transaction."""
        self.postponed[name] = self._settings[name]

    def set_back_postponed(self) -> None:
        """Restore the postponed PRAGMAs. In a greenlet, outside a transaction."""
        while self.postponed:
            name, value = self.postponed.popitem()
            self.lease.driver.run(set_back, {name: value})
            self._settings.pop(name, None)

    def add(self, kind: Kind, words: Words, before: Any, now: Any) -> None:
        """Note that a statement has set something: the value before, and the value now."""
        if kind is Kind.WATCH:
            return  # the only need is to keep the same connection
        name = words.name
        if name not in _CAN_BE_SET_BACK or before is None:
            self._cannot_be_set_back = True
        elif self._settings.setdefault(name, before) == now:
            del self._settings[name]  # it has its original value again

    def lend(self, patience: float, autocommit: bool, writes: bool) -> None:
        """Lend the driver's connection to the application, which may set anything on it."""
        self._cannot_be_set_back = True
        if not self.lent:
            self.lent = True
            self.lease.driver.lend(patience, autocommit, writes)

    def sets(self, name: str) -> bool:
        """Whether the application has set a PRAGMA."""
        return name in self._settings

    @property
    def is_locked(self) -> bool:
        """Whether a transaction is open on the lent driver's connection. From any thread."""
        driver = self.lease.driver
        return self.lent and not driver.thread_only and bool(driver.raw.in_transaction)

    @property
    def is_changed(self) -> bool:
        """Whether its user has set something on it."""
        return bool(self._settings) or self._cannot_be_set_back

    def let_go(self) -> None:
        """Restore the settings and give the connection back. If that is impossible, close it."""
        driver = self.lease.driver
        if self._cannot_be_set_back or self.lost is not None:
            driver.suspect = True
        else:
            self.lease.tidy(set_back, self._settings)
            driver.sync = self._sync
        self.lease.end()
