"""Listeners of "checkout" and "checkin": what they are told of the writer, and may answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DisconnectionError, InvalidRequestError

from qsession.sqlite.driver.physical import DriverConnection

if TYPE_CHECKING:
    from qsession.sqlite.pool import WriteQueuePool

ATTEMPTS = 2
"""As many as SQLAlchemy's own pool makes."""


def check_out(
    pool: WriteQueuePool, record: Any, proxied: Any, reopen: Callable[[], DriverConnection] | None
) -> DriverConnection:
    """The connection, of which listeners were told; another where one takes it for stale.

    ``reopen`` is None while a group has work on it: then it is used until that is committed.
    """
    for _ in range(ATTEMPTS):
        try:
            pool.dispatch.checkout(record.dbapi_connection, record, proxied)
        except DisconnectionError as error:
            if error.invalidate_pool:
                pool._invalidate_time = time.time()
            if reopen is None:
                break
            record.invalidate(error)
            reopen()
        else:
            break
    else:
        raise InvalidRequestError("This connection is closed")
    driver: DriverConnection = record.dbapi_connection
    return driver


def check_in(pool: WriteQueuePool, record: Any) -> None:
    """Tell listeners. What they raise is logged: the transaction itself has ended well."""
    try:
        if pool.dispatch.checkin:
            pool.dispatch.checkin(record.dbapi_connection, record)
    except Exception:
        pool.logger.exception("A listener of 'checkin' failed")
