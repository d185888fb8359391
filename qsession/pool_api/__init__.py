"""SQL without the ORM: a pool in the manner of asyncpg's, on an engine of qsession."""

from .connection import PoolConnection
from .pool import AsyncConnectionPool, create_pool

__all__ = ["AsyncConnectionPool", "PoolConnection", "create_pool"]
