"""The errors qsession raises, and how SQLite's result codes are told apart.

::

    sqlalchemy.exc.SQLAlchemyError
    └── QSessionError
        ├── ConflictError     (also sqlalchemy.exc.OperationalError)  retryable
        ├── QueueTimeout      (also sqlalchemy.exc.OperationalError and TimeoutError)
        ├── QueueFull         (also sqlalchemy.exc.OperationalError and TimeoutError)
        ├── HoldTimeout       (also sqlalchemy.exc.OperationalError)
        ├── DurabilityError   (also sqlalchemy.exc.OperationalError)
        ├── GroupAborted      (also sqlalchemy.exc.OperationalError)  never raised
        ├── NestedWriteError  (also sqlalchemy.exc.InvalidRequestError)
        ├── ReadOnlyError     (also sqlalchemy.exc.InvalidRequestError)
        ├── EngineDraining    (also sqlalchemy.exc.InvalidRequestError)
        └── CopyError         names the rows that do not fit

    UserWarning
    ├── UncommittedChangesWarning
    └── PlainEngineWarning

Each inherits what callers of SQLAlchemy already catch. Those that are operational errors have an
``orig`` with the result code that SQLite itself gives in such a case, as existing code that retries
looks there: 5 (BUSY) for one that waited in vain, 517 (BUSY_SNAPSHOT) for a conflict. Everything
else that SQLite reports (constraints, a full disk, a file that is no database) arrives as
SQLAlchemy's own wrapper.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from sqlalchemy import exc

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
SQLITE_ABORT_ROLLBACK = 516
SQLITE_BUSY_SNAPSHOT = 517
SQLITE_IOERR_FSYNC = 1034


class QSessionError(exc.SQLAlchemyError):
    """Any error that qsession itself raises."""


class _Operational(QSessionError, exc.OperationalError):
    """One that code knows as an error of the database, without a statement of its own.

    ``orig`` is the error of the driver that it stands for; without one, an error of ``sqlite3``
    with the code of the class.
    """

    sqlite_code: ClassVar[tuple[int, str]]
    """Number and name, as ``sqlite_errorcode`` and ``sqlite_errorname`` of Python 3.11 give it."""

    def __init__(self, message: str, orig: BaseException | None = None) -> None:
        if orig is None:
            orig = sqlite3.OperationalError(message)
            number, name = self.sqlite_code
            vars(orig).update(sqlite_errorcode=number, sqlite_errorname=name)
        exc.OperationalError.__init__(self, None, None, orig)
        self.message = message
        self.args = (message,)

    def __str__(self) -> str:
        """The message, with what SQLAlchemy adds, as that it was raised by autoflush."""
        return "\n".join([*(f"({detail})" for detail in self.detail), self.message])

    def __reduce__(self) -> tuple[type[_Operational], tuple[str], dict[str, Any]]:
        return type(self), (self.message,), self.__dict__


class ConflictError(_Operational):
    """What the transaction had read was changed by another one before it wrote.

    On a server: it was refused for the sake of another one, or a deadlock was broken at its cost;
    ``orig`` is the driver's error then. Nothing of it was written. Roll back and run it again:
    ``qsession.run`` does so by itself.
    """

    sqlite_code = SQLITE_BUSY_SNAPSHOT, "SQLITE_BUSY_SNAPSHOT"


class QueueTimeout(_Operational, exc.TimeoutError):
    """The ticket, a lock of another process, or a connection to a server was not free in time."""

    sqlite_code = SQLITE_BUSY, "SQLITE_BUSY"


class QueueFull(_Operational, exc.TimeoutError):
    """``max_waiting`` already wait, to write or for a connection; this one was turned away."""

    sqlite_code = SQLITE_BUSY, "SQLITE_BUSY"


class HoldTimeout(_Operational):
    """A transaction held the ticket longer than ``max_hold`` seconds and was rolled back."""

    sqlite_code = SQLITE_ABORT_ROLLBACK, "SQLITE_ABORT_ROLLBACK"


class DurabilityError(_Operational):
    """A commit is in the file, but the disk has not confirmed it.

    Others may see the transaction already; a power cut may still take it. So it must not be run
    again as one that failed: look first whether it is there. Or the file was deleted or replaced
    while it was open, and the commit went to the old one: then the message says so.
    """

    sqlite_code = SQLITE_IOERR_FSYNC, "SQLITE_IOERR_FSYNC"


class GroupAborted(_Operational):
    """Deprecated: nothing raises it since transactions are no longer committed in groups.

    It is there for code of the first release that names it in an ``except`` clause.
    """

    sqlite_code = SQLITE_ABORT_ROLLBACK, "SQLITE_ABORT_ROLLBACK"


class NestedWriteError(QSessionError, exc.InvalidRequestError):
    """A task that holds the ticket with uncommitted writes began a second writing transaction."""


class ReadOnlyError(QSessionError, exc.InvalidRequestError):
    """A statement that writes was sent in a transaction whose access mode is ``read``."""


class EngineDraining(QSessionError, exc.InvalidRequestError):
    """A transaction was to begin after ``engine.drain()`` was called."""


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
    if not isinstance(error, sqlite3.Error):
        return 0
    if str(error).startswith("malformed database schema"):  # and what is malformed
        return SQLITE_CORRUPT
    # A trigger's RAISE() says whatever it likes.
    other = SQLITE_CONSTRAINT if isinstance(error, sqlite3.IntegrityError) else 0
    return _MESSAGES.get(str(error), other)
