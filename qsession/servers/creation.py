"""Creating an engine from the keywords of SQLAlchemy and qsession, and from the URL."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from qsession.config import NAMES, Settings
from qsession.servers import failures, isolation
from qsession.servers.pool import ServerPool


def create_server_engine(url: URL, kw: dict[str, Any]) -> AsyncEngine:
    """SQLAlchemy's engine with a :class:`ServerPool`, unless the caller names another pool."""
    explicit = "queue_timeout" in kw or "queue_timeout" in url.query
    settings, url = take_settings(url, kw, NAMES)
    kw = pool_size(settings.max_size, kw)
    ours: dict[str, Any] = {}
    if "pool" not in kw and "poolclass" not in kw:
        ours.update(poolclass=ServerPool, settings=settings)
        if explicit and "pool_timeout" not in kw:
            ours["pool_timeout"] = settings.queue_timeout
    try:
        engine = create_async_engine(url, **kw, **ours)
    except ArgumentError:
        create_async_engine(url, **kw)  # raises a clearer error if the driver is not asyncio
        raise
    listen(engine.sync_engine)
    if settings.access == "read":
        engine.sync_engine.update_execution_options(qsession_access="read")
    return engine


def create_synchronous_server_engine(url: URL, kw: dict[str, Any]) -> Engine:
    """SQLAlchemy's own engine and pool; it tells the server our options, and us its errors."""
    explicit = "queue_timeout" in kw or "queue_timeout" in url.query
    settings, url = take_settings(url, kw, NAMES)
    kw = pool_size(settings.max_size, kw)
    if explicit and "pool" not in kw and "poolclass" not in kw:
        kw.setdefault("pool_timeout", settings.queue_timeout)
    engine = create_engine(url, **kw)
    listen(engine)
    if settings.access == "read":
        engine.update_execution_options(qsession_access="read")
    return engine


def listen(engine: Engine) -> None:
    """Add the listeners that pass options to the server and translate its errors."""
    event.listen(engine, "engine_connect", isolation.tell_new_connection)
    event.listen(engine, "set_connection_execution_options", isolation.tell_connection)
    event.listen(engine, "handle_error", failures.explain)
    for begin in ("begin", "begin_twophase"):
        event.listen(engine, begin, failures.forget)
    for what in ("before_cursor_execute", "commit", "prepare_twophase", "commit_twophase"):
        event.listen(engine, what, failures.refuse_after_conflict)
    for commit in ("commit", "commit_twophase"):
        event.listen(engine, commit, failures.note_commit)
    event.listen(engine, "rollback_savepoint", failures.note_rollback_to_savepoint)
    if isolation.is_mysql(engine.dialect):
        event.listen(engine, "begin", isolation.tell_mysql)
        event.listen(engine, "begin_twophase", isolation.tell_mysql)
        event.listen(engine, "rollback_twophase", failures.end_two_phases)
    for rollback in ("rollback", "rollback_twophase"):
        event.listen(engine, rollback, failures.forget)


def take_settings(url: URL, kw: dict[str, Any], names: Iterable[str]) -> tuple[Settings, URL]:
    """Remove the settings ``names`` from the keywords and the URL, and return them."""
    in_url = {name: url.query[name] for name in names if name in url.query}
    in_kw = {name: kw.pop(name) for name in names if name in kw}
    settings = Settings().with_options({**in_url, **in_kw})
    return settings, url.difference_update_query(in_url)


def pool_size(max_size: int | None, kw: dict[str, Any]) -> dict[str, Any]:
    """The keywords, with ``max_size`` expressed as SQLAlchemy's ``pool_size``."""
    if max_size is None:
        return kw
    if "pool_size" in kw or "max_overflow" in kw:
        raise ArgumentError("pass either max_size, or pool_size and max_overflow, not both")
    return {**kw, "pool_size": max_size, "max_overflow": 0}
