"""qsession: SQLite for async applications, without "database is locked"."""

from qsession.copying import copy
from qsession.engine import QueuedAsyncEngine, create_async_engine, create_engine, drain, stats
from qsession.errors import (
    ConflictError,
    CopyError,
    DurabilityError,
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
from qsession.statistics import Stats

__version__ = "0.1.0"

upgrade = qsession.upgrade

__all__ = [
    "AsyncConnectionPool",
    "Base",
    "ConflictError",
    "CopyError",
    "DurabilityError",
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
    "Stats",
    "UncommittedChangesWarning",
    "copy",
    "create_async_engine",
    "create_engine",
    "create_pool",
    "drain",
    "qsession",
    "stats",
    "upgrade",
]
