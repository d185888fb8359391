"""Commits: tells the observers of a file which commits may have changed which tables.

While somebody observes a file, one more connection to it is open. On it ``PRAGMA data_version``
changes when any other connection has committed, in this process or in another one
(https://sqlite.org/pragma.html#pragma_data_version). It is looked at after each commit of our own,
and at times, for commits of other programs. This number tells of every commit, but not what it has
changed, nor how many there were. For our own commits the tables are known: see :class:`Witness`.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from qsession.errors import SQLITE_BUSY, sqlite_code
from qsession.sqlite.changes.program import Written
from qsession.sqlite.driver.physical import DriverConnection
from qsession.sqlite.durability.syncer import Alarm
from qsession.sqlite.files.filesystem import file_identity
from qsession.sqlite.processes import fork
from qsession.sqlite.transaction.sending import data_version
from qsession.waiting.subscription import State, Subscription, Tables

T = TypeVar("T")


def commits_of(path: str, identity: tuple[int, ...] | None) -> Commits:
    """The commits of a database file in this process. They live as long as a reference to them.

    The path counts as well as device and inode, as for the syncer.
    """
    if identity is None:
        return Commits(None)
    key = os.path.realpath(path), identity
    with _lock:
        commits = _commits.get(key)
        if commits is None:
            commits = _commits[key] = Commits(identity)
        return commits


class Commits:
    """The subscriptions to one file, and the connection that looks for commits.

    Invariant: every commit up to the state that ``_seen`` stands for was told to all subscriptions.
    A commit of our own that is under way is told when it has ended.
    """

    observed = False
    """Whether anybody observes the file. Each transaction that writes looks here."""

    def __init__(self, identity: tuple[int, ...] | None) -> None:
        self._identity = identity
        self.begin_anew()
        fork.parts.add(self)

    def begin_anew(self) -> None:
        """In a forked child: observers, connection and thread belong to the parent."""
        self.observed = False
        self._subscriptions: weakref.WeakSet[Subscription] = weakref.WeakSet()
        self._driver: DriverConnection | None = None
        self._seen = 0
        """``PRAGMA data_version`` when it was last looked at."""
        self._under_way = 0
        """Commits of our own that are under way."""
        self._lock = threading.Lock()
        self._alarm = Alarm()

    # Observers.

    def join(self, subscription: Subscription, driver: DriverConnection | None = None) -> bool:
        """Tell a subscription of every commit from now on. False: it needs a connection.

        ``driver``: a connection for this, which is kept if there is none yet.
        """
        with self._lock:
            if self._driver is None:
                if driver is None:
                    return False
                self._seen = data_version(driver.raw)
                self._driver = driver
                driver.post(self._serve, driver, self._alarm)
            self._subscriptions.add(subscription)
            self.observed = True
        self._alarm.ring()  # it may want to look more often
        return True

    def keeps(self, driver: DriverConnection) -> bool:
        """Whether it uses this connection."""
        return self._driver is driver

    def leave(self, pool: object) -> None:
        """End the subscriptions of an engine that is disposed of."""
        for each in self._live():
            if each.pool is pool:
                each.end(State.OVER)
        self.look_soon()

    def look_soon(self) -> None:
        """Look now, and close the connection if nobody observes any more."""
        self._alarm.ring()

    def close(self, patience: float) -> None:
        """Close the connection and wait for that in this thread, before a fork.

        The observers subscribe again.
        """
        driver = self._stop(State.LOST)
        if driver is not None:
            driver.end(patience)

    def _live(self) -> list[Subscription]:
        with self._lock:
            found = list(self._subscriptions)
        return [each for each in found if each.state is State.LIVE]

    def _tell(self, tables: Tables | None) -> None:
        for each in self._live():
            each.tell(tables)

    # The connection.

    def _serve(self, raw: sqlite3.Connection, driver: DriverConnection, alarm: Alarm) -> None:
        """Look for commits of other programs as long as anybody observes. In its thread."""
        while True:
            intervals = [each.look_every for each in self._live()]
            if not intervals and self._has_ended(driver):
                break
            alarm.sleep(min(intervals, default=0.0))
            if self._driver is not driver:
                return  # its end is under way
            if file_identity(driver.path) != self._identity or not self._look():
                self._stop(State.LOST)
                break
        driver.terminate()

    def _has_ended(self, driver: DriverConnection) -> bool:
        """Give up the connection, unless somebody has just begun to observe."""
        with self._lock:
            if any(each.state is State.LIVE for each in list(self._subscriptions)):
                return False
            if self._driver is driver:
                self.observed, self._driver = False, None
            return True

    def _stop(self, state: State) -> DriverConnection | None:
        """End all subscriptions. Returns the connection, which is no longer used."""
        with self._lock:
            driver, self._driver, self.observed = self._driver, None, False
            found = list(self._subscriptions)
            self._subscriptions = weakref.WeakSet()
            alarm, self._alarm = self._alarm, Alarm()
        for each in found:
            each.end(state)
        alarm.ring()
        return driver

    def _look(self) -> bool:
        """Tell of commits that are not our own. False if the connection is of no use any more."""
        with self._lock:
            try:
                now = self._version()
            except sqlite3.Error:
                return False
            if now is None or now == self._seen or self._under_way:
                return True
            self._seen = now
        self._tell(None)
        return True

    def _version(self) -> int | None:
        """``PRAGMA data_version``; None if another program has locked the whole file."""
        if self._driver is None:
            return None
        try:
            return data_version(self._driver.raw)
        except sqlite3.Error as error:
            if sqlite_code(error) == SQLITE_BUSY:
                return None
            raise

    # Commits of our own.

    def begin(self) -> bool:
        """A commit of our own begins. What others have committed before is told now.

        False if SQLite cannot say now what they have committed.
        """
        with self._lock:
            self._under_way += 1
            now = self._version_or_none()
            others = now is not None and now != self._seen
            if now is not None:
                self._seen = now
        if others:
            self._tell(None)
        return now is not None

    def end(self, tables: Callable[[], Tables | None]) -> None:
        """It has ended. ``tables``: called if there was a commit; those that have changed."""
        with self._lock:
            now = self._version_or_none()
            self._under_way -= 1
            changed = now is None or now != self._seen
            if now is not None:
                self._seen = now
        if changed:
            self._tell(tables())

    def _version_or_none(self) -> int | None:
        try:
            return self._version()
        except sqlite3.Error:
            return None  # the next look finds out


class Witness:
    """Watches one commit of our own, in the thread in which it happens.

    ``PRAGMA data_version`` of the connection that commits changes only by commits of others. If it
    is the same before our commit and after the look after it, then what this look has found is our
    commit alone, and its tables are known. If not, all tables count.
    """

    def __init__(
        self, commits: Commits, driver: DriverConnection, sent: Mapping[str, Any] | None
    ) -> None:
        self._commits = commits
        self._driver = driver
        self._sent = sent
        """The statements that may write, each with parameters; None if not all are known."""

    def around(self, function: Callable[..., T], raw: sqlite3.Connection, *args: Any) -> T:
        """Call ``function(raw, *args)``, which commits, and tell the observers."""
        tables: Tables | None = None
        before = _version_of(raw)  # first: if others commit or change the schema later, it differs
        knows = self._commits.begin()
        try:
            tables = self._tables(raw)
            return function(raw, *args)
        finally:
            self._commits.end(lambda: tables if knows and _version_of(raw) == before else None)

    def _tables(self, raw: sqlite3.Connection) -> Tables | None:
        if self._sent is None:
            return None
        written = self._driver.written
        if written is None:
            written = self._driver.written = Written()
        try:
            tables: Tables | None = written.by(raw, self._sent)
        except Exception:  # also of an adapter of the application
            return None
        return tables


def _version_of(raw: sqlite3.Connection) -> object:
    try:
        return data_version(raw)
    except sqlite3.Error:
        return object()  # equal to nothing


_commits: weakref.WeakValueDictionary[Any, Commits] = weakref.WeakValueDictionary()
_lock = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )
