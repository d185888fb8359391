"""How an engine is made from SQLAlchemy's keywords and ours, in the URL or beside it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from ..config import NAMES, Settings
from .pool import ServerPool


def create_server_engine(url: URL, kw: dict[str, Any]) -> AsyncEngine:
    """SQLAlchemy's engine on a :class:`ServerPool`, unless the caller names another pool."""
    explicit = "queue_timeout" in kw or "queue_timeout" in url.query
    settings, url = take_settings(url, kw, NAMES)
    kw = pool_size(settings.max_size, kw)
    if "pool" not in kw and "poolclass" not in kw:
        kw.update(poolclass=ServerPool, settings=settings)
        if explicit:
            kw.setdefault("pool_timeout", settings.queue_timeout)
    return create_async_engine(url, **kw)


def take_settings(url: URL, kw: dict[str, Any], names: Iterable[str]) -> tuple[Settings, URL]:
    """The settings called ``names``, taken out of the keywords and of the URL."""
    in_url = {name: url.query[name] for name in names if name in url.query}
    in_kw = {name: kw.pop(name) for name in names if name in kw}
    settings = Settings().with_options({**in_url, **in_kw})
    return settings, url.difference_update_query(in_url)


def pool_size(max_size: int | None, kw: dict[str, Any]) -> dict[str, Any]:
    """The keywords with ``max_size`` said in SQLAlchemy's terms."""
    if max_size is None:
        return kw
    if "pool_size" in kw or "max_overflow" in kw:
        raise ArgumentError("give max_size, or pool_size and max_overflow, not both")
    return {**kw, "pool_size": max_size, "max_overflow": 0}
