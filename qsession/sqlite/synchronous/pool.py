"""SynchronousPool: the pool of a synchronous engine."""

from __future__ import annotations

from sqlalchemy.pool import PoolProxiedConnection

from qsession.sqlite.pool import WriteQueuePool
from qsession.sqlite.synchronous.connection import SynchronousConnection
from qsession.waiting.background import background


class SynchronousPool(WriteQueuePool):
    """The class of ``engine.pool`` of a synchronous engine."""

    _is_asyncio = False

    def connect(self) -> PoolProxiedConnection:
        """A connection without a physical connection yet. The first call opens one and waits."""
        if not self._initialized:
            background.run(self._initialize)
        return SynchronousConnection(self)

    def dispose(self) -> None:
        """Close the connections that are not in use. The pool can be used again."""
        background.run(super().dispose)
