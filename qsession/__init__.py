"""qsession: SQLite for async applications, without "database is locked"."""

from qsession.copying import copy
from qsession.engine import QueuedAsyncEngine, create_async_engine
from qsession.errors import (
    ConflictError,
    CopyError,
    EngineDraining,
    GroupAborted,
    HoldTimeout,
    NestedWriteError,
    PlainEngineWarning,
    QSessionError,
    QueueFull,
    QueueTimeout,
    ReadOnlyError,
    UncommittedChangesWarning,
)
from qsession.models import Base
from qsession.pool import AsyncConnectionPool, PoolConnection, create_pool
from qsession.session.maker import QSession, qsession

upgrade = qsession.upgrade

__all__ = [
    "AsyncConnectionPool",
    "Base",
    "ConflictError",
    "CopyError",
    "EngineDraining",
    "GroupAborted",
    "HoldTimeout",
    "NestedWriteError",
    "PlainEngineWarning",
    "PoolConnection",
    "QSession",
    "QSessionError",
    "QueueFull",
    "QueueTimeout",
    "QueuedAsyncEngine",
    "ReadOnlyError",
    "UncommittedChangesWarning",
    "copy",
    "create_async_engine",
    "create_pool",
    "qsession",
    "upgrade",
]
