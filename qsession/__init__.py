"""qsession: SQLite for async applications, without "database is locked"."""

from .engine import QueuedAsyncEngine, create_async_engine
from .errors import (
    ConflictError,
    EngineDraining,
    GroupAborted,
    HoldTimeout,
    NestedWriteError,
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
    "EngineDraining",
    "GroupAborted",
    "HoldTimeout",
    "NestedWriteError",
    "PoolConnection",
    "QSession",
    "QSessionError",
    "QueueFull",
    "QueueTimeout",
    "QueuedAsyncEngine",
    "ReadOnlyError",
    "UncommittedChangesWarning",
    "create_async_engine",
    "create_pool",
    "qsession",
    "upgrade",
]
