"""How isolated a transaction is on a server: from the options of ours to what the server is told.

PostgreSQL is told with the BEGIN that it gets anyway, by SQLAlchemy's own execution options. MySQL
has no such BEGIN: it is told beforehand, for the next transaction only, in a statement of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy.engine import Connection

from qsession.config import check_access

ISOLATION = "qsession_isolation"
ACCESS = "qsession_access"


def tell_new_connection(connection: Connection) -> None:
    """Listens for each new ``Connection``: what the options of its engine ask for.

    SQLAlchemy's own way, ``isolation_level`` among the options of the engine, lets those of an
    engine win over those of one made from it.
    """
    options = _in_sqlalchemys_terms(connection.dialect, connection.get_execution_options())
    if options.get("postgresql_readonly") is False:
        del options["postgresql_readonly"]  # as it comes from the pool
    if not options:
        return
    try:
        connection.execution_options(**options)
    except BaseException as error:  # cancelled: nobody else knows this connection yet
        connection.invalidate(error)
        raise


def tell_connection(connection: Connection, options: dict[str, Any]) -> None:
    """Listens for ``Connection.execution_options``, which may still be added to.

    An ``isolation_level`` among the options of the engine stays.
    """
    told = _in_sqlalchemys_terms(connection.dialect, options)
    if "isolation_level" in connection.engine.get_execution_options():
        told.pop("isolation_level", None)
    options.update(told)


def _in_sqlalchemys_terms(dialect: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    if ACCESS in options:
        check_access(ACCESS, options[ACCESS])
    if is_mysql(dialect):
        return told
    if ISOLATION in options and "isolation_level" not in options:
        # SERIALIZABLE where it only reads, too: with less, PostgreSQL can show such a transaction
        # a state that no serial order of the others explains.
        told["isolation_level"] = options[ISOLATION] or "SERIALIZABLE"
    if ACCESS in options and "postgresql_readonly" in dialect.connection_characteristics:
        told["postgresql_readonly"] = options[ACCESS] == "read"
    return told


def tell_mysql(connection: Connection, *_: object) -> None:
    """Listens for the beginning of each transaction on MySQL or MariaDB, in two phases as well."""
    parts = _mysql_parts(connection.get_execution_options())
    if not parts:
        return
    statement = f"SET TRANSACTION {', '.join(parts)}"
    cursor: Any = None
    try:
        cursor = connection.connection.cursor()
        cursor.execute(statement)
        cursor.close()
    except BaseException as error:  # as SQLAlchemy does around a BEGIN of its own
        connection._handle_dbapi_exception(error, statement, (), cursor, None)


def _mysql_parts(options: Mapping[str, Any]) -> list[str]:
    parts = []
    only_reads = options.get(ACCESS) == "read"
    if ISOLATION in options and "isolation_level" not in options:
        # InnoDB's SERIALIZABLE locks what it reads. A snapshot beside writers that do so is as
        # serializable, and neither waits for them nor makes them wait.
        level = "REPEATABLE READ" if only_reads else "SERIALIZABLE"
        parts.append(f"ISOLATION LEVEL {options[ISOLATION] or level}")
    if only_reads:
        parts.append("READ ONLY")
    return parts


def is_mysql(dialect: Any) -> bool:
    """Whether the server is MySQL or MariaDB."""
    return dialect.name in ("mysql", "mariadb")
