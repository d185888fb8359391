"""The errors qsession raises, and the SQLite result codes it tells apart.

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
        └── CopyError         lists the rows that do not fit

    UserWarning
    ├── UncommittedChangesWarning
    └── PlainEngineWarning

Each class inherits from an error that callers of SQLAlchemy already catch. An operational error has
an ``orig`` with the result code that SQLite itself would give, because existing retry code reads
it: 5 (BUSY) for a timeout, 517 (BUSY_SNAPSHOT) for a conflict. Other retry code reads the text, so
the one of such an ``orig`` begins with SQLite's, "database is locked". All other errors of SQLite
(constraints, a full disk, a file that is not a database) arrive in SQLAlchemy's own wrapper.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from sqlalchemy import exc

# https://sqlite.org/rescode.html. Python 3.10 has no names for the codes.
SQLITE_ERROR = 1
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
SQLITE_IOERR_SHORT_READ = 522
SQLITE_IOERR_FSYNC = 1034

_LOCKED = "database is locked"
"""What SQLite says of BUSY, and of each of its extended codes."""
REFUSED = "qsession_refused"
"""The key in the ``info`` of a connection to a server for why its transaction can only be rolled
back: a code, and the error for later statements.
"""


class QSessionError(exc.SQLAlchemyError):
    """The base class of all errors that qsession raises."""


class _Operational(QSessionError, exc.OperationalError):
    """An ``OperationalError`` that carries no statement.

    ``orig`` is the driver's error, or a ``sqlite3`` error with the code of the class if there is
    none.
    """

    sqlite_code: ClassVar[tuple[int, str]]
    """Number and name, as in ``sqlite_errorcode`` and ``sqlite_errorname`` of Python 3.11."""

    def __init__(self, message: str, orig: BaseException | None = None) -> None:
        if orig is None:
            number, name = self.sqlite_code
            busy = number & 0xFF == SQLITE_BUSY
            orig = sqlite3.OperationalError(f"{_LOCKED}: {message}" if busy else message)
            vars(orig).update(sqlite_errorcode=number, sqlite_errorname=name)
        exc.OperationalError.__init__(self, None, None, orig)
        self.message = message
        self.args = (message,)

    def __str__(self) -> str:
        """The message, preceded by details that SQLAlchemy adds, such as a note about autoflush."""
        return "\n".join([*(f"({detail})" for detail in self.detail), self.message])

    def __reduce__(self) -> tuple[type[_Operational], tuple[str], dict[str, Any]]:
        return type(self), (self.message,), self.__dict__


class ConflictError(_Operational):
    """Another transaction changed data that this one had read, before this one wrote.

    On a server: a serialization failure or a deadlock; ``orig`` is then the driver's error. Nothing
    was written. Roll back and run the transaction again; ``qsession.run`` does so automatically.
    """

    sqlite_code = SQLITE_BUSY_SNAPSHOT, "SQLITE_BUSY_SNAPSHOT"


class QueueTimeout(_Operational, exc.TimeoutError):
    """The write ticket, another process's lock, or a server connection was not free in time."""

    sqlite_code = SQLITE_BUSY, "SQLITE_BUSY"


class QueueFull(_Operational, exc.TimeoutError):
    """``max_waiting`` tasks were already waiting to write, or for a connection to a server."""

    sqlite_code = SQLITE_BUSY, "SQLITE_BUSY"


class HoldTimeout(_Operational):
    """A transaction held the ticket longer than ``max_hold`` seconds and was rolled back."""

    sqlite_code = SQLITE_ABORT_ROLLBACK, "SQLITE_ABORT_ROLLBACK"


class DurabilityError(_Operational):
    """A commit is in the file, but the disk has not confirmed it.

    Other transactions may already see it; a power cut may still undo it. Do not simply run the
    transaction again: check first whether its changes are there. The same error is raised if the
    file was deleted or replaced while it was open and the commit went to the old file; the message
    says which.
    """

    sqlite_code = SQLITE_IOERR_FSYNC, "SQLITE_IOERR_FSYNC"


class GroupAborted(_Operational):
    """Deprecated: never raised, since transactions are no longer committed in groups.

    It remains for code written for the first release that names it in an ``except`` clause.
    """

    sqlite_code = SQLITE_ABORT_ROLLBACK, "SQLITE_ABORT_ROLLBACK"


class NestedWriteError(QSessionError, exc.InvalidRequestError):
    """A task with uncommitted writes in one transaction tried to write in a second one."""


class ReadOnlyError(QSessionError, exc.InvalidRequestError):
    """A transaction whose access mode is ``read`` sent a statement that writes."""


class EngineDraining(QSessionError, exc.InvalidRequestError):
    """A transaction tried to begin after ``engine.drain()`` was called."""


@dataclass(frozen=True)
class Problem:
    """One row that the target cannot take as it is."""

    table: str
    column: str
    row: str
    """The primary key, as ``id=7``, or the number of the row where there is none."""
    value: str
    """As Python writes it, cut short."""
    reason: str

    def __str__(self) -> str:
        return f"{self.table}.{self.column}, {self.row}: {self.value}: {self.reason}"


class CopyError(QSessionError):
    """A copy to another database was refused, or failed.

    The message says what remains in the target: nothing, unless the copy can be resumed.
    """

    def __init__(
        self,
        message: str,
        problems: Sequence[Problem] = (),
        counts: Mapping[tuple[str, str, str], int] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.problems = tuple(problems)
        """Rows of the source that do not fit, examples of each kind."""
        self.counts = dict(counts or {})
        """The total number of such rows, by table, column and reason."""

    def __reduce__(self) -> tuple[type[CopyError], tuple[Any, ...]]:
        return type(self), (self.message, self.problems, self.counts)


class UncommittedChangesWarning(UserWarning):
    """A ``qsession()`` block ended without an error, and its changes were never committed.

    On SQLite also: a connection was closed, and lost what Python's ``sqlite3`` would have committed
    at once.
    """


class PlainEngineWarning(UserWarning):
    """``qsession.configure`` got an engine that ``qsession.create_async_engine`` did not make.

    Its sessions work, but only with SQLAlchemy's own guarantees: updates can be lost, access modes
    and isolation have no effect, and no ``ConflictError`` is raised, so ``run`` never retries.
    """


_MESSAGES = {  # sqlite3_errstr(), for Python 3.10, whose exceptions carry no code
    _LOCKED: SQLITE_BUSY,
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
    """The primary result code of a ``sqlite3`` exception; 0 if it has none."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return int(code) & 0xFF
    if not isinstance(error, sqlite3.Error):
        return 0
    if str(error).startswith("malformed database schema"):  # the name of an object follows
        return SQLITE_CORRUPT
    # A trigger's RAISE() may use any text.
    other = SQLITE_CONSTRAINT if isinstance(error, sqlite3.IntegrityError) else 0
    return _MESSAGES.get(str(error), other)
