"""Kept: a connection that stays with its user, because something was set on it."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

from qsession.sqlite.driver.lease import Lease
from qsession.sqlite.driver.physical import DriverConnection
from qsession.sqlite.driver.setup import attached_to_itself, pragma, set_back, sync_after_setting
from qsession.sqlite.transaction.statement import Kind, Statement, Words, means_on

_CAN_BE_SET_BACK = frozenset(
    (
        *("foreign_keys", "recursive_triggers", "synchronous", "cache_size", "query_only"),
        *("ignore_check_constraints", "reverse_unordered_selects", "read_uncommitted"),
        *("secure_delete", "cell_size_check", "automatic_index", "trusted_schema"),
        *("legacy_alter_table", "busy_timeout"),
    )
)
"""PRAGMAs with one readable value, which can be restored for the next user."""

logger = logging.getLogger("qsession")


class Kept:
    """A connection with everything that its user has set on it, until the user closes it.

    The values of the class are those of :data:`NOTHING_KEPT`.
    """

    lease: Lease | None = None
    lent = False
    """Whether the application has the driver's connection."""
    lost: str | None = None
    """Why the connection was closed after an error; None if it was not."""
    _cannot_be_set_back = False

    def __init__(self, lease: Lease | None = None) -> None:
        self._settings: dict[str, Any] = {}
        self.postponed: dict[str, Any] = {}
        """PRAGMAs to restore as soon as the transaction has ended."""
        if lease is not None:
            self.lease, self._sync = lease, lease.driver.sync
            lease.record.kept = True

    def on(self, lease: Lease) -> Kept:
        """Keep this connection, unless one is kept already."""
        return Kept(lease) if self.lease is None else self

    def restores(self, statement: Statement, turned: Collection[str]) -> bool:
        """Whether it is ``PRAGMA foreign_keys=ON`` after its user has turned them off, as at the
        end of a script that rebuilds a table. They are turned on when the transaction has ended.

        If they were turned off before the transaction, all later ones on the connection may rely on
        it: DROP TABLE of a parent table would delete its children. Then it does what SQLite does,
        which is nothing. ``turned``: what was set in the transaction.
        """
        words = statement.words
        if words is None or words.value is None or words.name not in self._settings:
            return False
        if bool(self._settings[words.name]) is not means_on(words.value):
            return False
        if words.name in turned:
            self.postponed[words.name] = self._settings[words.name]
        else:
            logger.info(
                "%r has no effect inside a transaction (https://sqlite.org/pragma.html"
                "#pragma_foreign_keys). They were turned off before it began, and stay off until "
                "they are turned on outside a transaction, or the connection is closed.",
                statement.sql,
            )
        return True

    def set_back_postponed(self) -> None:
        """Restore the postponed PRAGMAs. In a greenlet, outside a transaction."""
        assert self.lease is not None
        while self.postponed:
            name, value = self.postponed.popitem()
            self.lease.driver.run(set_back, {name: value})
            self._settings.pop(name, None)

    def add(self, kind: Kind, words: Words, before: Any, now: Any) -> None:
        """Note that a statement has set something: the value before, and the value now. In a
        greenlet.
        """
        if kind is Kind.WATCH:
            return  # the only need is to keep the same connection
        assert self.lease is not None
        name, driver = words.name, self.lease.driver
        if name not in _CAN_BE_SET_BACK or before is None:
            self._cannot_be_set_back = True
        elif self._settings.setdefault(name, before) == now:
            del self._settings[name]  # it has its original value again
        if kind is Kind.SET:
            driver.sync = driver.run(sync_after_setting, driver.sync, name)
            if name in ("attach", "detach"):
                driver.has_attached = True
                driver.in_its_own_way = driver.run(attached_to_itself)

    def lend(self, patience: float, autocommit: bool, writes: bool) -> DriverConnection:
        """Lend the driver's connection to the application, which may set anything on it."""
        assert self.lease is not None
        self._cannot_be_set_back = True
        if not self.lent:
            self.lent = True
            self.lease.driver.lend(patience, autocommit, writes)
        return self.lease.driver

    def sets(self, name: str) -> bool:
        """Whether the application has set a PRAGMA."""
        return name in self._settings

    @property
    def is_locked(self) -> bool:
        """Whether a transaction is open on the lent driver's connection. From any thread."""
        if self.lease is None or not self.lent:
            return False
        driver = self.lease.driver
        return not driver.thread_only and bool(driver.raw.in_transaction)

    @property
    def is_changed(self) -> bool:
        """Whether its user has set something on it."""
        return bool(self._settings) or self._cannot_be_set_back

    def lose(self, why: str) -> None:
        """Note that the connection cannot be used again, if its user has set something on it."""
        if self.is_changed:
            self.lost = why

    def let_go(self) -> None:
        """Restore the settings and give the connection back. If that is impossible, close it."""
        lease = self.lease
        if lease is None:
            return
        if self._cannot_be_set_back or self.lost is not None:
            lease.driver.suspect = True
        else:
            lease.tidy(set_back, self._settings)
            lease.driver.sync = self._sync
        lease.end()


NOTHING_KEPT = Kept()
"""That of a user who has set nothing; it stays as it is."""


def is_so_already(driver: DriverConnection, words: Words | None) -> bool:
    """Whether it is ``PRAGMA foreign_keys=ON`` and they are on, as sessions often begin."""
    if words is None or words.name != "foreign_keys" or words.value is None:
        return False
    return bool(driver.run(pragma, words.name)) is means_on(words.value)
