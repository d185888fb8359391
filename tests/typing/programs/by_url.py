"""A framework has made the engine from the URL; the application changed nothing but that."""

from __future__ import annotations

from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from typing_extensions import assert_type

import qsession

asynchronous = create_async_engine("sqlite+qsession:///app.db?queue_timeout=5")
synchronous = create_engine("sqlite+qsession:///app.db")


async def look() -> bool:
    """The figures, and the ordered end."""
    assert_type(asynchronous, AsyncEngine)
    found = qsession.stats(asynchronous)
    assert_type(found.waiting, int)
    await qsession.drain(asynchronous, 10)
    if (holder := found.holder) is not None:
        assert_type(holder.where, str)
        assert_type(holder.stack, tuple[str, ...])
    assert_type(found.waits.quantile(0.99), float)
    return found.holds.since(found.waits).count > 0


def look_without_asyncio() -> int:
    """A synchronous engine is not awaited."""
    qsession.drain(synchronous, timeout=1.5)
    return qsession.stats(synchronous).commits


# A mistake.
qsession.stats("sqlite+qsession://")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
