"""The errors qsession raises, and how SQLite's result codes are told apart.

::

    sqlalchemy.exc.SQLAlchemyError
    └── QSessionError
        ├── QueueTimeout      (also sqlalchemy.exc.TimeoutError)
        ├── QueueFull         (also sqlalchemy.exc.TimeoutError)
        ├── NestedWriteError  (also sqlalchemy.exc.InvalidRequestError)
        ├── ReadOnlyError     (also sqlalchemy.exc.InvalidRequestError)
        ├── EngineDraining    (also sqlalchemy.exc.InvalidRequestError)
        ├── HoldTimeout       (also sqlalchemy.exc.OperationalError)
        ├── GroupAborted      (also sqlalchemy.exc.OperationalError)
        ├── ConflictError     retryable
        └── CopyError         names the rows that do not fit

    UserWarning
    ├── UncommittedChangesWarning
    └── PlainEngineWarning

Each inherits what callers of SQLAlchemy already catch. Everything else that SQLite reports
(constraints, a full disk, a file that is no database) arrives as SQLAlchemy's own wrapper.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import exc


class QSessionError(exc.SQLAlchemyError):
    """Any error that qsession itself raises."""


class QueueTimeout(QSessionError, exc.TimeoutError):
    """The ticket, a lock of another process, or a connection to a server was not free in time."""


class QueueFull(QSessionError, exc.TimeoutError):
    """``max_waiting`` already wait, to write or for a connection; this one was turned away."""


class NestedWriteError(QSessionError, exc.InvalidRequestError):
    """A task that holds the ticket with uncommitted writes began a second writing transaction."""


class ReadOnlyError(QSessionError, exc.InvalidRequestError):
    """A statement that writes was sent in a transaction whose access mode is ``read``."""


class EngineDraining(QSessionError, exc.InvalidRequestError):
    """A transaction was to begin after ``engine.drain()`` was called."""


class _Operational(QSessionError, exc.OperationalError):
    """One that stands beside what the database reports, without a statement of its own."""

    def __init__(self, message: str) -> None:
        exc.OperationalError.__init__(self, None, None, sqlite3.OperationalError(message))
        self.message = message

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[type[_Operational], tuple[str]]:
        return type(self), (self.message,)


class HoldTimeout(_Operational):
    """A transaction held the ticket longer than ``max_hold`` seconds and was rolled back."""


class GroupAborted(_Operational):
    """SQLite rolled back a whole commit group, and this member of it could not be run again."""


class ConflictError(QSessionError):
    """What the transaction had read was changed by another one before it wrote.

    On a server: it was refused for the sake of another one, or a deadlock was broken at its cost.
    Nothing of it was written. Roll back and run it again: ``qsession.run`` does so by itself.
    """


class CopyError(QSessionError):
    """A copy to another database was refused, or failed.

    The message says what is left in the target: nothing, unless the copy can be resumed.
    """

    def __init__(
        self,
        message: str,
        problems: Sequence[Any] = (),
        counts: Mapping[tuple[str, str, str], int] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.problems = tuple(problems)
        """Rows of the source that do not fit, as ``transfer.Problem``: some of each kind."""
        self.counts = dict(counts or {})
        """How many there are in all, by table, column and reason."""

    def __reduce__(self) -> tuple[type[CopyError], tuple[Any, ...]]:
        return type(self), (self.message, self.problems, self.counts)


class UncommittedChangesWarning(UserWarning):
    """A ``qsession()`` block ended cleanly with changes that were never committed."""


class PlainEngineWarning(UserWarning):
    """``qsession.configure`` was given an engine that is not of ``qsession.create_async_engine``.

    Its sessions work, but with SQLAlchemy's own promises: updates can be lost, the modes and
    isolation mean nothing, and nothing is a ``ConflictError``, which ``run`` would run again.
    """


# https://sqlite.org/rescode.html. Python 3.10 has no names for the codes.
SQLITE_BUSY = 5
SQLITE_LOCKED = 6
SQLITE_READONLY = 8
SQLITE_INTERRUPT = 9
SQLITE_IOERR = 10
SQLITE_CORRUPT = 11
SQLITE_FULL = 13
SQLITE_CANTOPEN = 14
SQLITE_CONSTRAINT = 19
SQLITE_NOTADB = 26

_MESSAGES = {  # sqlite3_errstr(), for Python 3.10, whose exceptions carry no code
    "database is locked": SQLITE_BUSY,
    "database table is locked": SQLITE_LOCKED,
    "attempt to write a readonly database": SQLITE_READONLY,
    "interrupted": SQLITE_INTERRUPT,
    "disk I/O error": SQLITE_IOERR,
    "database disk image is malformed": SQLITE_CORRUPT,
    "database or disk is full": SQLITE_FULL,
    "unable to open database file": SQLITE_CANTOPEN,
    "file is not a database": SQLITE_NOTADB,
    "FOREIGN KEY constraint failed": SQLITE_CONSTRAINT,
}


def sqlite_code(error: BaseException) -> int:
    """The primary result code behind an exception of ``sqlite3``; 0 where there is none."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return int(code) & 0xFF
    return _MESSAGES.get(str(error), 0) if isinstance(error, sqlite3.Error) else 0
