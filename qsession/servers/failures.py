"""The meaning of a server's error codes: a conflict, a refused write, a lost connection.

https://www.postgresql.org/docs/current/errcodes-appendix.html
https://dev.mysql.com/doc/mysql-errors/8.4/en/server-error-reference.html
"""

from __future__ import annotations

import asyncio
from copy import copy
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy.engine import Connection
from sqlalchemy.sql.elements import RollbackToSavepointClause

from qsession import events
from qsession.errors import REFUSED, ConflictError, QSessionError, ReadOnlyError
from qsession.servers.isolation import ACCESS, is_mysql
from qsession.servers.position import REPLAYED, WRITTEN
from qsession.servers.replica import REPLICA
from qsession.urls import database_at

if TYPE_CHECKING:
    from sqlalchemy.engine import ExceptionContext

CONFLICTS: dict[object, str] = {
    "40001": "it could not be serialized with concurrent transactions",
    "40P01": "it was in a deadlock with another transaction",
    1213: "it was in a deadlock, or another node of a Galera cluster committed a change before it",
    1205: "another transaction kept a row locked, or a Galera node was behind, for too long",
    1020: "another transaction changed a row after this one had read it",  # MariaDB
}
READ_ONLY: tuple[object, ...] = ("25006", 1792)
LOST: tuple[object, ...] = ("57P01", "57P02", "57P03", 1053, 1927)
"""The server is shutting down or has ended this connection. Drivers may still treat it as open."""
UNPREPARED: tuple[object, ...] = ("26000", "42P05")
"""A prepared statement does not exist, or exists already."""
UNFINISHED = 1180
"""COMMIT failed on the way. A Galera node that loses the cluster then does not know whether the
others have the transaction, and may commit it itself when it is back."""
NOT_READY = 1047
"""A Galera node without the majority, or not in step yet, runs nothing, not even a ROLLBACK. Its
message begins with WSREP. From others it means a message of the protocol that they do not know."""
COMMITTING = "qsession_committing"
RETURNING = "qsession_returning"
"""As `REFUSED`, during or after a ROLLBACK TO SAVEPOINT that may have resolved it."""
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


def explain(context: ExceptionContext) -> BaseException | None:
    """Listens for every error of the driver, also during COMMIT."""
    if context.connection is not None and not _is_from_pool(context.connection):
        return None
    error = context.original_exception
    if isinstance(error, AssertionError) and isinstance(
        error.__context__, asyncio.CancelledError
    ):  # psycopg's executemany, cancelled at its beginning or end
        context.is_disconnect, context.invalidate_pool_on_disconnect = True, False
        return error.__context__
    code = _code_in(context)
    statement = _shorten(context.statement or "the end of the transaction, such as COMMIT")
    if context.statement == REPLAYED:  # after which the connection cannot be used
        context.is_disconnect = True
    if _rolls_back_to_savepoint(context):
        assert context.connection is not None
        gone = _savepoint_failed(context.connection, code)
        if gone is not None:
            return gone
    if code in CONFLICTS:
        counters = getattr(context.engine and context.engine.pool, "counters", None)
        if counters is not None:
            counters.conflicts += 1
        if events.observers:
            events.emit(events.Conflict(_database(context), statement))
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
    if _refused_by_standby(context.connection, context.statement, code):
        context.is_disconnect = True
        return _after_failover(statement, error)
    if code in READ_ONLY:
        return ReadOnlyError(
            f"{statement} writes, but the transaction is read-only ({code}: "
            f"{_first_line(error)}). Use qsession() or qsession_access='write'. If you did, the "
            "server itself is read-only, for example a replica."
        )
    if context.connection is None:
        return None
    if isinstance(error, asyncio.TimeoutError) and not error.args:  # asyncpg's command_timeout
        committing = _is_committing(context.connection)
        if committing or context.connection._is_autocommit_isolation():
            what = "COMMIT" if committing else "a statement in AUTOCOMMIT"
            told = (
                f"The server did not answer in time during {what}, and it is not known whether it "
                "took effect. Check the data before you repeat it."
            )
            error.args = (told,)
        return None
    if context.sqlalchemy_exception is None:
        return None  # this is a cancellation
    if code in UNPREPARED:
        context.sqlalchemy_exception.add_detail(
            "The connection to the server is not the one on which the statement was prepared. If "
            "the URL leads to a pooler such as PgBouncer, pass pooler=True to create_async_engine."
        )
    if code == NOT_READY and _first_line(error).startswith("WSREP"):
        context.is_disconnect = True
        context.sqlalchemy_exception.add_detail(
            "This node of the Galera cluster is not ready: it is not connected to the majority of "
            "the nodes, or has not caught up with them. It did not run the statement, and rolls "
            "back the transaction. The pool opens new connections, so a load balancer can choose "
            "another node."
        )
        return None
    if code in LOST or code == UNFINISHED:
        context.is_disconnect = True
    if context.is_disconnect:
        context.sqlalchemy_exception.add_detail(_fate(context.connection))
    return None


def _is_from_pool(connection: Connection) -> bool:
    """Whether it is one of the application's. SQLAlchemy asks the first one what server it is,
    before the pool gives it away: there is no transaction then, and no ``info``.
    """
    lost = connection.closed or connection.invalidated
    return lost or getattr(connection.connection, "_pool", None) is not None


def _database(context: ExceptionContext) -> str:
    """The database that raised an error, in events: it may be that of a replica."""
    connection, named = context.connection, ""
    if connection is not None and not (connection.closed or connection.invalidated):
        named = getattr(cast("Any", connection.connection)._pool, "database", "")
    return named or (database_at(context.engine.url) if context.engine else "")


def _refused_by_standby(connection: Connection | None, statement: str | None, code: object) -> bool:
    """Whether a connection leads to a standby of PostgreSQL, but is for more than reading there.

    A connection to a replica does so on purpose.
    """
    if connection is None or connection.invalidated:
        return False
    options = connection.get_execution_options()
    if statement == WRITTEN:
        refused = code == "55000"
    elif code == "0A000":  # neither READ WRITE nor SERIALIZABLE is supported in BEGIN
        serializable = options.get("isolation_level") == "SERIALIZABLE"
        refused = serializable or options.get(ACCESS) != "read"
    else:
        refused = code == "25006" and options.get(ACCESS) != "read"
    if not refused or REPLICA in connection.info:
        return False
    return _is_standby(connection.connection.driver_connection)


def _is_standby(driver: Any) -> bool:
    """What the server tells its clients, since version 14, also when it is promoted.

    https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-ASYNC
    """
    if hasattr(driver, "get_settings"):  # asyncpg
        return getattr(driver.get_settings(), "in_hot_standby", "off") == "on"
    info = getattr(driver, "info", None)  # psycopg
    return info is not None and info.parameter_status("in_hot_standby") == "on"


def _after_failover(statement: str, error: BaseException) -> ConflictError:
    conflict = ConflictError(
        f"The server could not run {statement}: it is a standby, which only reads. The primary may "
        "have changed. Nothing was written, and the connections of the pool are replaced. Run the "
        "transaction again, or use qsession.run. If it is a standby each time, name the primary in "
        "the URL, or all servers and target_session_attrs=primary.",
        error,
    )
    conflict.connection_invalidated = True
    return conflict


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
    if _is_committing(connection):
        return (
            "The connection to the server was lost during COMMIT, and it is not known whether the "
            "transaction was committed. Check the data before you repeat the work."
        )
    if connection._is_autocommit_isolation():
        return (
            "The connection to the server was lost during a statement in AUTOCOMMIT, and it is not "
            "known whether the statement took effect. Check the data before you repeat it."
        )
    return (
        "The connection to the server was lost, and the server rolls back the transaction. The "
        "pool opens new connections when the server can be reached."
    )


def _is_committing(connection: Connection) -> bool:
    return not connection.invalidated and COMMITTING in connection.info


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
