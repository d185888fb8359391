"""SQL without the ORM: a pool similar to asyncpg's, on an engine of qsession."""

from qsession.pool.connection import PoolConnection
from qsession.pool.pool import AsyncConnectionPool, create_pool

__all__ = ["AsyncConnectionPool", "PoolConnection", "create_pool"]
