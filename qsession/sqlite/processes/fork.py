"""Fork: a child process gets no open connection.

SQLite records the locks of a process in its memory. A child inherits this memory, but not the
locks. So on an open file it relies on locks that it does not have, and when another process closes
the file, the WAL to which the child still writes is deleted
(https://sqlite.org/howtocorrupt.html, 2.6). Therefore idle connections are closed before a fork,
the child begins with empty pools, and it cannot open a file that was in use at that moment.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
import weakref
from typing import Any, Protocol

PATIENCE = 2.0
"""Seconds that a fork waits for each connection that is closing, and for a checkpoint."""


class Part(Protocol):
    """An object that a child inherits and must reset."""

    def begin_anew(self) -> None:
        """In the child: reset the state, which belongs to the parent, as do its threads."""
        ...


class Pool(Part, Protocol):
    """An object that has idle connections."""

    def close_idle(self) -> None:
        """Close them in this thread, because the process is about to fork."""
        ...


class Connection(Protocol):
    """A connection of SQLite with its thread."""

    identity: tuple[int, ...] | None
    closing: bool

    @property
    def is_open(self) -> bool:
        """Whether SQLite has the file open, or is about to open it."""
        ...

    def end(self, patience: float) -> None:
        """Close it and wait for that in this thread."""
        ...

    def leave_to_parent(self) -> None:
        """In the child: do not use it any more."""
        ...


pools: weakref.WeakSet[Pool] = weakref.WeakSet()
connections: weakref.WeakSet[Connection] = weakref.WeakSet()
parts: weakref.WeakSet[Part] = weakref.WeakSet()

_carried: set[tuple[int, ...] | None] = set()
"""The files that the parent had open; None for a file that it was about to open."""


def refuse_carried(path: str, identity: tuple[int, ...] | None) -> None:
    """Raise if the parent of this process had the file open when it forked."""
    if _carried and (identity in _carried or None in _carried):
        raise sqlite3.OperationalError(
            f"This process was forked while its parent was using {path!r}. SQLite's locks are not "
            "inherited, so writes of this process could be lost; nothing was done. Fork while no "
            "transaction is open, and no connection on which a PRAGMA was set, or start the "
            "process with spawn."
        )


def close(record: Any) -> None:
    """Close the connection of a pool record, which stays, and wait for that."""
    if record is not None and record.dbapi_connection is not None:
        record.dbapi_connection.end(PATIENCE)
        record.close()


def _before() -> None:
    for pool in list(pools):
        pool.close_idle()
    for connection in list(connections):
        if connection.closing:  # its thread may not have closed it yet
            connection.end(PATIENCE)


def _in_child() -> None:
    for connection in list(connections):
        if connection.is_open:
            _carried.add(connection.identity)
            connection.leave_to_parent()
            # It must not be closed here, not even when the interpreter ends.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
    for part in [*parts, *pools]:
        part.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_child=_in_child)
