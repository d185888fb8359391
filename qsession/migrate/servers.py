"""Turns between processes that migrate a database on a server."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection

from qsession.errors import QSessionError, QueueTimeout
from qsession.migrate.patience import wait_until
from qsession.servers.isolation import is_mysql

logger = logging.getLogger("qsession")

_LOCK = "qsession.migrate"
_KEY = int.from_bytes(_LOCK.encode()[:8], "big")
"""The key of PostgreSQL's advisory lock, which belongs to a database; MySQL's to the server."""
_NAME = f"CONCAT('{_LOCK}.', MD5(DATABASE()))"


@contextmanager
def one_at_a_time(connection: Connection, wait: float) -> Iterator[None]:
    """Hold the lock of migrations on the connection's database; raises :class:`QueueTimeout`.

    It belongs to the session on the server and outlives its transactions: MySQL ends one at each
    DDL statement. A pooler gives each transaction another session. Behind one the lock is held by
    an open transaction on a second connection. ``wait`` is in seconds. No transaction is open on
    ``connection`` when it is held. Databases that have no such lock are migrated without. In a
    Galera cluster the lock is one node's, which the log says.
    """
    if connection.dialect.name != "postgresql" and not is_mysql(connection.dialect):
        yield
        return
    if _is_pooled(connection):
        with _locked_beside(connection, wait):
            yield
        return
    try:
        held = _lock(connection, wait)
    except BaseException:
        connection.invalidate()  # the server may have granted the lock all the same
        raise
    if not held:
        raise _too_late(wait)
    try:
        _warn_of_cluster(connection)
        yield
    finally:
        _unlock(connection)


def _too_late(wait: float) -> QueueTimeout:
    return QueueTimeout(
        f"Another process has been migrating this database for {wait:g} s; this process "
        "migrated nothing. Run it again when the other process has finished."
    )


def _is_pooled(connection: Connection) -> bool:
    """Whether a pooler stands before PostgreSQL. It gives its clients a process id of its own."""
    driver: Any = connection.connection.driver_connection
    if hasattr(driver, "get_server_pid"):  # asyncpg
        told = driver.get_server_pid()
    elif hasattr(driver, "info"):  # psycopg
        told = driver.info.backend_pid
    else:
        return False
    real = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
    connection.rollback()
    return bool(told != real)


@contextmanager
def _locked_beside(connection: Connection, wait: float) -> Iterator[None]:
    """Hold the lock in a transaction, whose connection a pooler leaves alone until it ends.

    At READ COMMITTED it keeps no snapshot while it idles, so nothing has to wait for it.
    """
    ask = f"SELECT pg_try_advisory_xact_lock({_KEY})"
    options = {"isolation_level": "READ COMMITTED"}
    with connection.engine.connect().execution_options(**options) as beside:

        def locked() -> bool:
            got = bool(beside.exec_driver_sql(ask).scalar())
            if not got:
                beside.rollback()
            return got

        if not wait_until(locked, wait):
            raise _too_late(wait)
        beside.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
        yield


def _lock(connection: Connection, wait: float) -> bool:
    """Poll for the lock for up to ``wait`` seconds. In a greenlet.

    A wait on the server would keep a snapshot, for which CREATE INDEX CONCURRENTLY of the lock's
    holder waits (https://www.postgresql.org/docs/current/sql-createindex.html, "Building Indexes
    Concurrently"). It would also be subject to the server's statement timeout.
    """
    return wait_until(lambda: _lock_now(connection), wait)


def _lock_now(connection: Connection) -> bool:
    """Take the lock if it is free. No transaction is open afterwards."""
    ask = f"SELECT pg_try_advisory_lock({_KEY})"
    if is_mysql(connection.dialect):
        ask = f"SELECT GET_LOCK({_NAME}, 0)"
    got = connection.exec_driver_sql(ask).scalar()
    connection.commit()
    if got is None:  # https://mariadb.com/kb/en/get_lock/
        raise QSessionError(
            "The migration lock could not be taken: GET_LOCK returned NULL, which means that the "
            "server is out of memory or the statement was killed. Nothing was migrated; run the "
            "migration again."
        )
    return bool(got)


def _warn_of_cluster(connection: Connection) -> None:
    """Say that others may migrate meanwhile, through other nodes of a Galera cluster."""
    if not is_mysql(connection.dialect):
        return
    row = connection.exec_driver_sql("SHOW GLOBAL STATUS LIKE 'wsrep_cluster_size'").first()
    connection.commit()
    if row is not None and int(row[1]) > 1:
        logger.warning(
            "The migration lock holds on one node of a Galera cluster only, and this cluster has "
            "%s. Let all processes that migrate connect to the same node.",
            row[1],
        )


def _unlock(connection: Connection) -> None:
    try:
        connection.rollback()  # left by a failed migration
        if is_mysql(connection.dialect):
            connection.exec_driver_sql(f"DO RELEASE_LOCK({_NAME})")
        else:
            connection.exec_driver_sql(f"SELECT pg_advisory_unlock({_KEY})")
        connection.commit()
    except BaseException as error:
        connection.invalidate()  # the lock ends with its session
        if not isinstance(error, Exception):
            raise
