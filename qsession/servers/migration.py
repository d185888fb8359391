"""Turns between processes that migrate one database on a server."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from ..errors import QueueTimeout
from .failures import code_of
from .isolation import is_mysql

_LOCK = "qsession.migrate"
_KEY = int.from_bytes(_LOCK.encode()[:8], "big")
"""Of PostgreSQL's advisory lock, which belongs to one database; MySQL's belong to the server."""
_NAME = f"CONCAT('{_LOCK}.', MD5(DATABASE()))"
_NOT_AVAILABLE = "55P03"


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
        connection.commit()
    except BaseException:
        connection.invalidate()  # the server may have given it the lock all the same
        raise
    if not held:
        raise QueueTimeout(f"Another process has been migrating this database for {wait:g} s.")
    try:
        yield
    finally:
        _unlock(connection)


def _lock(connection: Connection, wait: float) -> bool:
    if is_mysql(connection.dialect):
        return (
            connection.exec_driver_sql(f"SELECT GET_LOCK({_NAME}, {math.ceil(wait)})").scalar() == 1
        )
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(wait * 1000)}")
    try:
        connection.exec_driver_sql(f"SELECT pg_advisory_lock({_KEY})")
    except DBAPIError as error:
        if error.orig is None or code_of(error.orig) != _NOT_AVAILABLE:
            raise
        connection.rollback()
        return False
    return True


def _unlock(connection: Connection) -> None:
    try:
        connection.rollback()  # what a migration that failed has left
        if is_mysql(connection.dialect):
            connection.exec_driver_sql(f"DO RELEASE_LOCK({_NAME})")
        else:
            connection.exec_driver_sql(f"SELECT pg_advisory_unlock({_KEY})")
        connection.commit()
    except BaseException as error:
        connection.invalidate()  # the lock ends with its session
        if not isinstance(error, Exception):
            raise
