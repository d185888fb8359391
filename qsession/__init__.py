"""qsession: SQLite for async applications, without "database is locked"."""

from .copying import copy
from .engine import QueuedAsyncEngine, create_async_engine
from .errors import (
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
from .models import Base
from .pool_api import AsyncConnectionPool, PoolConnection, create_pool
from .session import QSession, qsession

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
