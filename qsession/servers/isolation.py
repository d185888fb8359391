"""The isolation of transactions on a server: how qsession's options are passed to the server.

For PostgreSQL, SQLAlchemy's own execution options put it into BEGIN. For MySQL, a separate
statement before each transaction sets it for the next transaction only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy.engine import Connection, Engine

from qsession.config import check_access, check_options

ISOLATION = "qsession_isolation"
ACCESS = "qsession_access"


def tell_new_connection(connection: Connection) -> None:
    """Listens for each new ``Connection``, and applies the options of its engine.

    The usual way, ``isolation_level`` in the options of the engine, does not work for an engine
    derived by ``execution_options()``: there the original engine's value wins.
    """
    options = _in_sqlalchemys_terms(connection.engine, connection.get_execution_options())
    if options.get("postgresql_readonly") is False:
        del options["postgresql_readonly"]  # the default of a pooled connection
    if not options:
        return
    try:
        connection.execution_options(**options)
    except BaseException as error:  # cancelled: no other code knows this connection yet
        connection.invalidate(error)
        raise


def tell_connection(connection: Connection, options: dict[str, Any]) -> None:
    """Listens for ``Connection.execution_options``, and adds options.

    An ``isolation_level`` in the options of the engine stays.
    """
    check_options(tuple(options))
    told = _in_sqlalchemys_terms(connection.engine, options)
    if "isolation_level" in connection.engine.get_execution_options():
        told.pop("isolation_level", None)
    options.update(told)


def check_engine(_engine: Engine, options: Mapping[str, Any]) -> None:
    """Listens for ``Engine.execution_options``, and refuses a misspelt one."""
    check_options(tuple(options))


def _in_sqlalchemys_terms(engine: Engine, options: Mapping[str, Any]) -> dict[str, Any]:
    dialect: Any = engine.dialect
    told: dict[str, Any] = {}
    if ACCESS in options:
        check_access(ACCESS, options[ACCESS])
    if is_mysql(dialect):
        return told
    if ISOLATION in options and "isolation_level" not in options:
        # Also SERIALIZABLE if it only reads: otherwise PostgreSQL can show it a state that is not
        # consistent with any serial order of the other transactions. No replica offers that, and
        # a reader is to get the same from each server.
        snapshot = options.get(ACCESS) == "read" and hasattr(engine, "replicas")
        level = "REPEATABLE READ" if snapshot else "SERIALIZABLE"
        told["isolation_level"] = options[ISOLATION] or level
    if ACCESS in options and "postgresql_readonly" in dialect.connection_characteristics:
        told["postgresql_readonly"] = options[ACCESS] == "read"
    return told


def tell_mysql(connection: Connection, *_: object) -> None:
    """Listens for the beginning of each transaction on MySQL or MariaDB, also two-phase ones."""
    parts = _mysql_parts(connection.get_execution_options())
    if not parts:
        return
    statement = f"SET TRANSACTION {', '.join(parts)}"
    cursor: Any = None
    try:
        cursor = connection.connection.cursor()
        cursor.execute(statement)
        cursor.close()
    except BaseException as error:  # as SQLAlchemy does for its own BEGIN
        connection._handle_dbapi_exception(error, statement, (), cursor, None)


def _mysql_parts(options: Mapping[str, Any]) -> list[str]:
    parts = []
    only_reads = options.get(ACCESS) == "read"
    if ISOLATION in options and "isolation_level" not in options:
        # InnoDB's SERIALIZABLE locks what it reads. If writers do so, a snapshot is serializable as
        # well, and it neither waits for writers nor makes them wait.
        level = "REPEATABLE READ" if only_reads else "SERIALIZABLE"
        parts.append(f"ISOLATION LEVEL {options[ISOLATION] or level}")
    if only_reads:
        parts.append("READ ONLY")
    return parts


def is_mysql(dialect: Any) -> bool:
    """Whether the server is MySQL or MariaDB."""
    return dialect.name in ("mysql", "mariadb")
