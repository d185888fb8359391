"""Creating an engine on a server: its pool, its listeners, and its replicas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy.ext.asyncio
from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from qsession.config import NAMES, Settings
from qsession.creation import pool_size, take_settings, wrapped
from qsession.servers import failures, isolation
from qsession.servers.hosts import try_each_host
from qsession.servers.pool import ServerPool
from qsession.servers.replicas import Replicas, read_from_replicas
from qsession.urls import database_at, parsed, with_driver


def create_server_engine(url: URL, kw: dict[str, Any]) -> AsyncEngine:
    """SQLAlchemy's engine with a :class:`ServerPool`, unless the caller names another pool."""
    explicit = "queue_timeout" in kw or "queue_timeout" in url.query
    settings, url = take_settings(url, kw, NAMES)
    kw = behind_pooler(url, settings, pool_size(settings.max_size, kw))
    ours: dict[str, Any] = {}
    if "pool" not in kw and "poolclass" not in kw:
        ours.update(poolclass=ServerPool, settings=settings)
        if explicit and "pool_timeout" not in kw:
            ours["pool_timeout"] = settings.queue_timeout
    create = wrapped(create_async_engine, sqlalchemy.ext.asyncio)
    try:
        engine = create(url, **kw, **ours)
    except ArgumentError:
        create(url, **kw)  # raises a clearer error if the driver is not asyncio
        raise
    if isinstance(engine.pool, ServerPool):
        engine.pool.database = database_at(engine.url)
    try_each_host(engine.dialect)
    listen(engine.sync_engine)
    if settings.access == "read":
        engine.sync_engine.update_execution_options(qsession_access="read")
    return engine


def create_replicated_engine(
    url: URL, read_urls: Sequence[str | URL] | None, max_lag: float | None, kw: dict[str, Any]
) -> AsyncEngine:
    """An engine on PostgreSQL that reads from the replicas at ``read_urls``."""
    if url.get_backend_name() != "postgresql":
        raise ArgumentError(
            f"read_urls and max_lag are for PostgreSQL: there are no replicas for {url.drivername}"
        )
    if isinstance(read_urls, str | URL) or not read_urls:
        kind = type(read_urls).__name__  # the value may show a password
        raise ArgumentError(f"read_urls is empty or a {kind}: use a list of URLs")
    if max_lag is not None and not (_is_number(max_lag) and max_lag >= 0):
        raise ArgumentError(
            f"max_lag={max_lag!r} is not allowed: use a number of seconds, or None for no limit"
        )
    if kw.get("isolation_level") == "SERIALIZABLE":
        raise ArgumentError(
            "pass either read_urls or isolation_level='SERIALIZABLE', not both: no replica offers "
            "it. qsession() is serializable without it, on the primary"
        )
    for name in ("pool", "poolclass", "creator", "async_creator"):
        if name in kw:
            raise ArgumentError(f"pass either read_urls or {name}=, not both")
    engine = create_server_engine(url, kw)
    pool = engine.sync_engine.pool
    assert isinstance(pool, ServerPool)
    servers = [_server(engine.dialect, url, each, pool.settings, kw) for each in read_urls]
    read_from_replicas(engine.sync_engine, Replicas(pool, servers, max_lag))
    return engine


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _server(
    dialect: Any, primary: URL, given: str | URL, settings: Settings, kw: Mapping[str, Any]
) -> tuple[str, Callable[..., Any]]:
    """A replica: where it is, and how to open a connection to it."""
    url = parsed(given)
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername=primary.drivername)
    url = with_driver(url)
    if url.drivername != primary.drivername:
        raise ArgumentError(
            f"{url.drivername} in read_urls is not the driver of the primary: use "
            f"{primary.drivername}"
        )
    in_url = {name: url.query[name] for name in NAMES if name in url.query}
    if settings.with_options(in_url) != settings:
        raise ArgumentError(
            f"{', '.join(in_url)} in read_urls differs from the primary: set it there, for all"
        )
    url = url.difference_update_query(in_url)
    arguments = behind_pooler(url, settings, dict(kw)).get("connect_args", {})
    positional, named = dialect.create_connect_args(url)
    named = {**named, **arguments}

    def connect(record: Any) -> Any:
        """As in SQLAlchemy's ``create_engine``."""
        args, kw = list(positional), dict(named)
        for listener in dialect.dispatch.do_connect:
            connection = listener(dialect, record, args, kw)
            if connection is not None:
                return connection
        return dialect.connect(*args, **kw)

    return database_at(url), connect


def create_synchronous_server_engine(url: URL, kw: dict[str, Any]) -> Engine:
    """SQLAlchemy's own engine and pool; it tells the server our options, and us its errors."""
    explicit = "queue_timeout" in kw or "queue_timeout" in url.query
    settings, url = take_settings(url, kw, NAMES)
    kw = behind_pooler(url, settings, pool_size(settings.max_size, kw))
    if explicit and "pool" not in kw and "poolclass" not in kw:
        kw.setdefault("pool_timeout", settings.queue_timeout)
    engine = wrapped(create_engine, sqlalchemy)(url, **kw)
    try_each_host(engine.dialect)
    listen(engine)
    if settings.access == "read":
        engine.update_execution_options(qsession_access="read")
    return engine


def listen(engine: Engine) -> None:
    """Add the listeners that pass options to the server and translate its errors."""
    event.listen(engine, "engine_connect", isolation.tell_new_connection)
    event.listen(engine, "set_connection_execution_options", isolation.tell_connection)
    event.listen(engine, "set_engine_execution_options", isolation.check_engine)
    isolation.check_engine(engine, engine.get_execution_options())
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


def behind_pooler(url: URL, settings: Settings, kw: dict[str, Any]) -> dict[str, Any]:
    """The keywords. With ``pooler``, the driver prepares no statement for a later transaction.

    That may run on another connection to the server, which does not know the statement.
    """
    if not settings.pooler:
        return kw
    return {
        **kw,
        "connect_args": {
            **_UNPREPARED.get(url.get_driver_name(), {}),
            **kw.get("connect_args", {}),
        },
    }


_UNPREPARED: dict[str, dict[str, Any]] = {
    # asyncpg sends a statement without a name again with each execution, in the same message.
    "asyncpg": {
        "statement_cache_size": 0,
        "prepared_statement_cache_size": 0,
        "prepared_statement_name_func": str,
    },
    "psycopg": {"prepare_threshold": None},
    "psycopg_async": {"prepare_threshold": None},
}
