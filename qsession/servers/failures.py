"""The meaning of a server's error codes: a conflict, a refused write, a lost connection.

https://www.postgresql.org/docs/current/errcodes-appendix.html
https://dev.mysql.com/doc/mysql-errors/8.4/en/server-error-reference.html
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import Connection
from sqlalchemy.sql.elements import RollbackToSavepointClause

from qsession.errors import ConflictError, QSessionError, ReadOnlyError
from qsession.servers.isolation import is_mysql

if TYPE_CHECKING:
    from sqlalchemy.engine import ExceptionContext

CONFLICTS: dict[object, str] = {
    "40001": "it could not be serialized with concurrent transactions",
    "40P01": "it was in a deadlock with another transaction",
    1213: "it was in a deadlock with another transaction",
    1205: "another transaction kept a row locked for too long",
    1020: "another transaction changed a row after this one had read it",  # MariaDB
}
READ_ONLY: tuple[object, ...] = ("25006", 1792)
LOST: tuple[object, ...] = ("57P01", "57P02", "57P03", 1053, 1927)
"""The server is shutting down or has ended this connection. Drivers may still treat it as open."""
COMMITTING = "qsession_committing"
REFUSED = "qsession_refused"
"""Why a transaction can only be rolled back: a code, and the error for later statements."""
RETURNING = "qsession_returning"
"""The same, during or after a ROLLBACK TO SAVEPOINT that may have resolved it."""
NO_SAVEPOINT = 1305
GONE: tuple[object, ...] = (1213, 1020, NO_SAVEPOINT)
"""After these errors, unlike after MySQL's other refusals, the server has ended the transaction.

https://mariadb.com/kb/en/innodb-system-variables/#innodb_snapshot_isolation for 1020.
"""


def code_of(error: BaseException) -> object:
    """The error number from a MySQL driver, the SQLSTATE from a PostgreSQL driver, or None."""
    if error.args and isinstance(error.args[0], int):
        return error.args[0]
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)  # of psycopg2


def _code_in(context: ExceptionContext) -> object:
    """The code of an error of the driver; None for an error that other code raised.

    SQLAlchemy reports both: a column type of the application, for example, may raise anything.
    """
    error = context.original_exception
    if not isinstance(error, context.dialect.loaded_dbapi.Error):
        return None
    code = code_of(error)
    return code if isinstance(code, int) == is_mysql(context.dialect) else None


def explain(context: ExceptionContext) -> Exception | None:
    """Listens for every error of the driver, also during COMMIT."""
    error = context.original_exception
    code = _code_in(context)
    statement = _shorten(context.statement or "the end of the transaction, such as COMMIT")
    if _rolls_back_to_savepoint(context):
        assert context.connection is not None
        gone = _savepoint_failed(context.connection, code)
        if gone is not None:
            return gone
    if code in CONFLICTS:
        counters = getattr(context.engine and context.engine.pool, "counters", None)
        if counters is not None:
            counters.conflicts += 1
        conflict = ConflictError(
            f"The server refused the transaction at {statement}: {CONFLICTS[code]} ({code}: "
            f"{_first_line(error)}). Nothing was written. Roll back and run the transaction "
            "again, or use qsession.run.",
            error,
        )
        connection = context.connection
        if connection is not None and not (
            connection.invalidated or connection._is_autocommit_isolation()
        ):
            connection.info[REFUSED] = code, _already(conflict)
        return conflict
    if code in READ_ONLY:
        return ReadOnlyError(
            f"{statement} writes, but the transaction is read-only ({code}: "
            f"{_first_line(error)}). Use qsession() or qsession_access='write'. If you did, the "
            "server itself is read-only, for example a replica."
        )
    if context.connection is None or context.sqlalchemy_exception is None:
        return None  # there is no connection, or this is a cancellation
    if code in LOST:
        context.is_disconnect = True
    if context.is_disconnect:
        context.sqlalchemy_exception.add_detail(_fate(context.connection))
    return None


def _rolls_back_to_savepoint(context: ExceptionContext) -> bool:
    """Whether SQLAlchemy itself sent it; one that the application wrote may be wrong."""
    compiled = getattr(context.execution_context, "compiled", None)
    return isinstance(getattr(compiled, "statement", None), RollbackToSavepointClause)


def _already(conflict: ConflictError) -> ConflictError:
    told = f"The transaction has already ended in a conflict: {conflict}"
    return ConflictError(told, conflict.orig)


def _savepoint_failed(connection: Connection, code: object) -> ConflictError | None:
    """The meaning of a failed ROLLBACK TO SAVEPOINT; None if its own error is clear.

    If the savepoint no longer exists, neither does the transaction before it: MySQL commits at DDL,
    and with innodb_rollback_on_timeout InnoDB also drops the whole transaction at 1205.
    """
    if connection.invalidated:
        return None
    refused = connection.info.pop(RETURNING, None)
    if code != NO_SAVEPOINT:
        if refused is not None:
            connection.info[REFUSED] = refused
        return None
    if refused is not None:
        connection.info[REFUSED] = NO_SAVEPOINT, refused[1]
        return ConflictError(
            f"The savepoint no longer exists, nor does the transaction before it. {refused[1]}"
        )
    lost = QSessionError(
        "The transaction could not be rolled back to a savepoint: the server had already ended it, "
        "either because DDL commits or because of an error. The work before the savepoint may be "
        "committed or lost. Roll back, and check the data before you repeat the work."
    )
    connection.info[REFUSED] = NO_SAVEPOINT, lost
    return None


def _fate(connection: Connection) -> str:
    if not connection.invalidated and connection.info.get(COMMITTING):
        return (
            "The connection to the server was lost during COMMIT, and it is not known whether the "
            "transaction was committed. Check the data before you repeat the work."
        )
    return (
        "The connection to the server was lost, and the server rolls back the transaction. The "
        "pool opens new connections when the server can be reached."
    )


def forget(connection: Connection, *_: object) -> None:
    """Listens for the beginning of each transaction, and for its rollback, before that is sent."""
    if not connection.invalidated:
        for name in (COMMITTING, REFUSED, RETURNING):
            connection.info.pop(name, None)


def end_two_phases(connection: Connection, *_: object) -> None:
    """Listens for each rollback of a two-phase transaction on MySQL or MariaDB.

    If the server has already dropped it, SQLAlchemy's XA END would fail, so the connection is
    closed (https://dev.mysql.com/doc/refman/8.4/en/xa-states.html).
    """
    if not connection.invalidated and REFUSED in connection.info:
        connection.invalidate()


def refuse_after_conflict(connection: Connection, *_: object) -> None:
    """Listens for each statement, PREPARE and COMMIT: a refused transaction must end.

    MySQL would run the next statement, after a deadlock in a new transaction, and commit it without
    the earlier ones. PostgreSQL would answer a COMMIT with a rollback, but no error.
    """
    if not connection.invalidated and REFUSED in connection.info:
        _, error = connection.info[REFUSED]
        raise copy(error)


def note_rollback_to_savepoint(connection: Connection, *_: object) -> None:
    """Listens for each one, before it is sent: the work before the savepoint may still exist."""
    if connection.invalidated:
        return
    code, _error = connection.info.get(REFUSED, (None, None))
    if code not in GONE:
        connection.info[RETURNING] = connection.info.pop(REFUSED, None)


def note_commit(connection: Connection, *_: object) -> None:
    """Listens for each COMMIT, before it is sent."""
    connection.info[COMMITTING] = True
    counters: Any = getattr(connection.engine.pool, "counters", None)
    if counters is not None:
        counters.commits += 1


def _first_line(error: BaseException) -> str:
    return str(error.args[-1] if error.args else error).strip().split("\n", 1)[0]


def _shorten(sql: str) -> str:
    text = " ".join(sql.split())
    return text if len(text) <= 200 else f"{text[:197]}..."
