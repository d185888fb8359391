"""SynchronousPool: the pool of a synchronous engine."""

from __future__ import annotations

from sqlalchemy.pool import PoolProxiedConnection

from qsession.sqlite.pool import WriteQueuePool
from qsession.sqlite.synchronous.connection import SynchronousConnection
from qsession.waiting.background import background


class SynchronousPool(WriteQueuePool):
    """What ``engine.pool`` is: its connections are for threads."""

    _is_asyncio = False

    def connect(self) -> PoolProxiedConnection:
        """A connection that has no physical one yet. The first call opens one, and waits for it."""
        if not self._initialized:
            background.run(self._initialize)
        return SynchronousConnection(self)

    def dispose(self) -> None:
        """Close what is not in use. The pool can be used again."""
        background.run(super().dispose)
