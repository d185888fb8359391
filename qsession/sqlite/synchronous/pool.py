"""SynchronousPool: the pool of a synchronous engine."""

from __future__ import annotations

from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.util import await_only

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

    def wait_for_drain(self, timeout: float | None) -> None:
        """As `drain`, while the calling thread waits."""
        background.run(lambda: await_only(self.drain(timeout)))
