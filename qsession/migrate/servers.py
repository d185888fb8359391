"""Turns between processes that migrate a database on a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection

from qsession.errors import QSessionError, QueueTimeout
from qsession.migrate.patience import wait_until
from qsession.servers.isolation import is_mysql

_LOCK = "qsession.migrate"
_KEY = int.from_bytes(_LOCK.encode()[:8], "big")
"""The key of PostgreSQL's advisory lock, which belongs to a database; MySQL's to the server."""
_NAME = f"CONCAT('{_LOCK}.', MD5(DATABASE()))"


@contextmanager
def one_at_a_time(connection: Connection, wait: float) -> Iterator[None]:
    """Hold the lock of migrations on the connection's database; raises :class:`QueueTimeout`.

    It belongs to the session on the server and outlives its transactions: MySQL ends one at each
    DDL statement. So it needs a connection that is the session's alone, not one shared by a pooler
    between transactions. ``wait`` is in seconds. No transaction is open when it is held. Databases
    that have no such lock are migrated without.
    """
    if connection.dialect.name != "postgresql" and not is_mysql(connection.dialect):
        yield
        return
    try:
        held = _lock(connection, wait)
    except BaseException:
        connection.invalidate()  # the server may have granted the lock all the same
        raise
    if not held:
        raise QueueTimeout(
            f"Another process has been migrating this database for {wait:g} s; this process "
            "migrated nothing. Run it again when the other process has finished."
        )
    try:
        yield
    finally:
        _unlock(connection)


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
