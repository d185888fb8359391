"""What an application does about errors."""

from __future__ import annotations

import warnings

from sqlalchemy import exc
from sqlalchemy.exc import InvalidRequestError, OperationalError
from typing_extensions import assert_type

from qsession import (
    ConflictError,
    DurabilityError,
    EngineDraining,
    HoldTimeout,
    NestedWriteError,
    PlainEngineWarning,
    QSessionError,
    QueueFull,
    QueueTimeout,
    ReadOnlyError,
    UncommittedChangesWarning,
    qsession,
)

warnings.simplefilter("error", UncommittedChangesWarning)
warnings.simplefilter("ignore", PlainEngineWarning)
operational: list[type[OperationalError]] = [
    ConflictError,
    DurabilityError,
    HoldTimeout,
    QueueFull,
    QueueTimeout,
]
waiting: list[type[exc.TimeoutError]] = [QueueFull, QueueTimeout]
refused: list[type[InvalidRequestError]] = [EngineDraining, NestedWriteError, ReadOnlyError]


async def status() -> int:
    """The status of an answer."""
    try:
        async with qsession.begin():
            return 200
    except (QueueTimeout, QueueFull) as error:
        assert_type(error.message, str)
        return 503
    except ConflictError as error:
        code: int | None = getattr(error.orig, "sqlite_errorcode", None)
        return 409 if code == 517 else 500
    except QSessionError as error:
        print(error)
        return 500
