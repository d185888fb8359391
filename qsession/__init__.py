"""qsession: SQLite for async applications, without "database is locked"."""

import importlib
import typing

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
from qsession.session.maker import QSession, qsession

if typing.TYPE_CHECKING:
    from qsession.observation.observation import Observation
    from qsession.pool import AsyncConnectionPool, PoolConnection, create_pool
    from qsession.statistics import Stats

__version__ = "0.1.0"

upgrade = qsession.upgrade
observe = qsession.observe
changed = qsession.changed

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
    "Observation",
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
    "changed",
    "copy",
    "create_async_engine",
    "create_engine",
    "create_pool",
    "drain",
    "observe",
    "qsession",
    "stats",
    "upgrade",
]

_LATER = {
    "AsyncConnectionPool": "qsession.pool",
    "Observation": "qsession.observation.observation",
    "PoolConnection": "qsession.pool",
    "Stats": "qsession.statistics",
    "create_pool": "qsession.pool",
}
"""Names that many programs never use, and the modules that are imported when one does."""
_MODULES = ("events", "observation", "pool", "statistics")
"""Modules that need no import of their own: ``qsession.events`` is there as well."""

if not typing.TYPE_CHECKING:  # a type checker would take any name for one of this module

    def __getattr__(name: str) -> object:
        if name in _MODULES:
            return importlib.import_module(f"{__name__}.{name}")
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(importlib.import_module(_LATER[name]), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_MODULES})
