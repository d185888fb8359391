"""What an error of a server means, by its code: a conflict, a write that may not be, a lost server.

https://www.postgresql.org/docs/current/errcodes-appendix.html
https://dev.mysql.com/doc/mysql-errors/8.4/en/server-error-reference.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import Connection

from ..errors import ConflictError, ReadOnlyError

if TYPE_CHECKING:
    from sqlalchemy.engine import ExceptionContext

CONFLICTS: dict[object, str] = {
    "40001": "its result would not fit any order of the transactions that ran beside it",
    "40P01": "it and another one waited for each other",
    1213: "it and another one waited for each other",
    1205: "a row that it wanted stayed locked by another one for too long",
    1020: "a row that it wanted was changed by another one after it had looked",  # MariaDB
}
READ_ONLY: tuple[object, ...] = ("25006", 1792)
LOST: tuple[object, ...] = ("57P01", "57P02", "57P03", 1053, 1927)
"""The server ends, or has ended this connection. Drivers may still take it for open."""
COMMITTING = "qsession_committing"
CONFLICT = "qsession_conflict"
DEADLOCK = 1213
"""After it, unlike after MySQL's other refusals, the whole transaction is gone on the server."""


def code_of(error: BaseException) -> object:
    """The number from a driver of MySQL, the SQLSTATE from one of PostgreSQL, or None."""
    if error.args and isinstance(error.args[0], int):
        return error.args[0]
    return getattr(error, "sqlstate", None)


def explain(context: ExceptionContext) -> Exception | None:
    """Listens for every error of the driver, the ones of COMMIT included."""
    error = context.original_exception
    code = code_of(error)
    statement = _shorten(context.statement or "COMMIT, or what ends the transaction otherwise")
    if code in CONFLICTS:
        counters = getattr(context.engine and context.engine.pool, "counters", None)
        if counters is not None:
            counters.conflicts += 1
        conflict = ConflictError(
            f"The transaction was refused at {statement}: {CONFLICTS[code]} ({code}: "
            f"{_first_line(error)}). Nothing of it was written. Roll back and run it again, or "
            "let qsession.run do so."
        )
        connection = context.connection
        if connection is not None and not (
            connection.invalidated or connection._is_autocommit_isolation()
        ):
            connection.info[CONFLICT] = code, str(conflict)
        return conflict
    if code in READ_ONLY:
        return ReadOnlyError(
            f"{statement} writes, in a transaction that only reads ({code}: "
            f"{_first_line(error)}). Use qsession(), or qsession_access='write'; or "
            "the server itself takes no writes, as a replica does not."
        )
    if context.connection is None or context.sqlalchemy_exception is None:
        return None  # it was not opened, or this is a cancellation
    if code in LOST:
        context.is_disconnect = True
    if context.is_disconnect:
        context.sqlalchemy_exception.add_detail(_fate(context.connection))
    return None


def _fate(connection: Connection) -> str:
    if not connection.invalidated and connection.info.get(COMMITTING):
        return (
            "The connection to the server was lost while COMMIT ran: whether it took effect is "
            "not known. Look before the work is done again."
        )
    return (
        "The connection to the server was lost, and the server rolls the transaction back. The "
        "pool opens new connections when the server can be reached."
    )


def note_begin(connection: Connection) -> None:
    """Listens for the beginning of each transaction."""
    connection.info.pop(COMMITTING, None)
    connection.info.pop(CONFLICT, None)


def refuse_after_conflict(connection: Connection, *_: object) -> None:
    """Listens for each statement and each COMMIT: a transaction that was refused has to end.

    MySQL would run the next statement, after a deadlock in a new transaction, and commit it without
    what came before; PostgreSQL would answer a COMMIT with a rollback, and no error.
    """
    if not connection.invalidated and CONFLICT in connection.info:
        _, message = connection.info[CONFLICT]
        raise ConflictError(f"The transaction has ended in a conflict already: {message}")


def note_rollback_to_savepoint(connection: Connection, *_: object) -> None:
    """Listens for each: what was before the savepoint is still there, but for a deadlock."""
    if connection.invalidated:
        return
    code, _message = connection.info.get(CONFLICT, (DEADLOCK, ""))
    if code != DEADLOCK:
        del connection.info[CONFLICT]


def note_commit(connection: Connection) -> None:
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
