"""Schema migrations: on SQLite a run is one transaction that holds the write ticket.

``env.py`` calls `run`; an application calls `upgrade` when it starts. Both call
``_migrate``. Alembic is imported at its first use, because its import takes longer than qsession's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from qsession.engine import QueuedAsyncEngine, create_async_engine, is_queued
from qsession.migrate import gate, servers
from qsession.migrate.autogenerate import explained, not_of_litestream
from qsession.migrate.configuration import database_of, options_of
from qsession.migrate.sqlite import (
    back_up,
    drop_stale_copies,
    engine_beside,
    guarded,
    refusing_ignored_pragmas,
)
from qsession.sqlite.files.memory import memory_database
from qsession.sqlite.files.read_only import path_of
from qsession.urls import with_driver

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection, MetaData
    from sqlalchemy.engine import Dialect

WAIT = 600.0
"""Seconds a worker waits for another one's migration; on SQLite ``queue_timeout`` overrides it."""

# Passed from upgrade() to run() through env.py, and back.
_OURS, _BACKUP, _CAME = "qsession_connection", "qsession_backup", "qsession_came"
_OTHER_ENV = (
    "env.py did not call qsession.migrate.run(), which qsession.upgrade() needs: replace the "
    "contents of env.py with that call, or use the alembic command"
)

# The names in alembic.context belong to one run at a time in a process. So two upgrades take turns,
# even for two files on two event loops (alembic.util.langhelpers.ModuleClsProxy).
_alembic_context = threading.Lock()


def run(metadata: MetaData | Sequence[MetaData] | None = None, **options: Any) -> None:
    """Run the present ``alembic`` command. ``env.py`` needs only this call.

    ``--autogenerate`` compares the database with ``metadata``; ``options`` go to Alembic's
    ``context.configure``. The URL comes from the first of these that is set: ``-x url=...``, the
    environment variable ``QSESSION_URL``, the engine in advanced-alchemy's configuration, and
    ``sqlalchemy.url`` in the ini file. Options in advanced-alchemy's configuration apply as well.

    On SQLite the whole run is one transaction: if a step fails, schema and rows are unchanged. With
    ``transaction_per_migration=True`` each migration is a transaction. With ``--sql`` the
    statements are printed and no database is opened. Raises ``alembic.util.CommandError`` if the
    run cannot start, or would leave broken references, and `QueueTimeout` if a migration by
    another process takes too long.
    """
    from alembic import context, util

    config = context.config
    options = {**options_of(config), **options, "target_metadata": metadata}
    process = options.get("process_revision_directives")
    options["process_revision_directives"] = explained(metadata, process)
    if config.cmd_opts is not None and config.config_file_name is not None:
        _configure_logging(config.config_file_name)  # on the command line only
    if context.is_offline_mode():
        _print_sql(database_of(config), options)
        return
    attributes = config.attributes
    if (ours := attributes.get(_OURS)) is not None:
        attributes[_CAME].append(ours)
        _migrate(ours, options, attributes[_BACKUP])
        return
    if (theirs := attributes.get("connection")) is not None:
        _migrate_through(theirs, options)
        return
    with contextlib.suppress(RuntimeError):  # the normal case: no loop is running
        asyncio.get_running_loop()
        raise util.CommandError(
            "an Alembic command was called inside a running event loop, which it would block: "
            "use `await qsession.upgrade(...)` instead"
        )
    asyncio.run(_connect_and_migrate(database_of(config), options))


async def upgrade(
    revision: str = "head",
    *,
    url: str | URL | None = None,
    engine: AsyncEngine | None = None,
    config: str | os.PathLike[str] | Config | None = None,
    backup: str | os.PathLike[str] | None = None,
) -> None:
    """Upgrade the database to ``revision``, as ``alembic upgrade`` does, inside a running loop.

    Any number of workers may call this when they start. One migrates; the others wait for up to 600
    seconds, or on SQLite for the ``queue_timeout`` of the URL or engine.

    The database is that of ``engine``, else of ``url``, else the one that `run` would use.
    ``config`` is an Alembic ``Config`` or the path of an ini file. The default is ``alembic.ini``
    in the working folder. ``backup`` names a new file: if a migration is due, the SQLite database
    is first copied to it.

    ``env.py`` must call `run`. Raises the errors of the migration, and
    ``alembic.util.CommandError`` as `run` does. After an error or a cancellation the
    transaction is rolled back and the schema is unchanged.
    """
    from alembic import command, util

    alembic_config = _load_config(config)
    database = engine if engine is not None else url
    if database is None:
        database = database_of(alembic_config)

    def work(connection: Connection) -> None:
        handed_over: dict[str, Any] = {_OURS: connection, _BACKUP: backup, _CAME: []}
        alembic_config.attributes.update(handed_over)
        try:
            command.upgrade(alembic_config, revision)
        except RuntimeError as error:
            called = alembic_config.attributes[_CAME]
            if called or "running event loop" not in str(error):  # it is of a migration
                raise
            raise util.CommandError(_OTHER_ENV) from error  # by its asyncio.run()
        else:
            if not alembic_config.attributes[_CAME]:
                raise util.CommandError(_OTHER_ENV)
        finally:
            for name in handed_over:
                del alembic_config.attributes[name]

    async with (
        _alembic_turn(),
        _engine_for(database) as migrating,
        migrating.connect() as connection,
    ):
        await connection.run_sync(work)


@contextlib.asynccontextmanager
async def _alembic_turn() -> AsyncIterator[None]:
    pause = 0.001  # an asyncio lock cannot be shared by two loops, so this one is polled
    while not _alembic_context.acquire(blocking=False):
        await asyncio.sleep(pause)
        pause = min(2 * pause, 0.05)
    try:
        yield
    finally:
        _alembic_context.release()


async def _connect_and_migrate(database: URL | AsyncEngine, options: dict[str, Any]) -> None:
    async with _engine_for(database) as engine:
        try:
            async with engine.connect() as connection:
                await connection.run_sync(_migrate, options)
        finally:
            if engine is database:  # its connections belong to this event loop, which ends now
                await engine.dispose()


@contextlib.asynccontextmanager
async def _engine_for(database: str | URL | AsyncEngine) -> AsyncIterator[AsyncEngine]:
    """An engine for one migration of a database.

    The stock SQLite driver commits each DDL statement separately, so a URL with that driver is
    opened with qsession. Raises ``alembic.util.CommandError`` for a memory database of an engine
    with the stock driver.
    """
    if isinstance(database, AsyncEngine):
        if database.dialect.name != "sqlite":
            yield database
            return
        if is_queued(database):
            with engine_beside(database.sync_engine) as beside:
                yield QueuedAsyncEngine(beside)
            return
        _refuse_stock_memory(database.url)
        database = database.url
    url = with_driver(database)
    settings: dict[str, Any] = {}
    if url.get_backend_name() == "sqlite":
        url = url.set(drivername="sqlite+qsession")
        if "queue_timeout" not in url.query:
            settings["queue_timeout"] = WAIT
    own = create_async_engine(url, **settings)
    try:
        yield own
    finally:
        await own.dispose()


def _refuse_stock_memory(url: URL) -> None:
    from alembic import util

    if memory_database(url) is not None:
        raise util.CommandError(
            f"{url!r} is a memory database, which only its own engine can see, and SQLAlchemy's "
            "SQLite driver would commit each statement of a migration separately: create the "
            "engine with qsession.create_async_engine()"
        )


def _migrate(
    connection: Connection, options: dict[str, Any], backup: str | os.PathLike[str] | None = None
) -> None:
    """Run the present Alembic command on a connection that qsession opened."""
    from alembic import context, util

    on_server = connection.dialect.name != "sqlite"
    context.configure(connection=connection, **_defaults(connection.dialect) | options)
    asked = context.get_context().opts
    looks_only = bool(asked.get("dont_mutate"))  # alembic current
    migrates = "destination_rev" in asked and not looks_only  # upgrade, downgrade, stamp
    if on_server:
        if backup is not None:
            raise util.CommandError("backup= works only on SQLite: use the server's backup tools")
        turn = servers.one_at_a_time(connection, WAIT) if migrates else contextlib.nullcontext()
        with turn, context.begin_transaction():
            context.run_migrations()
        return
    connection.execution_options(qsession_access="read" if looks_only else "write")
    if not migrates:
        with context.begin_transaction():
            context.run_migrations()
        return
    with _gate(connection), guarded(connection):
        with context.begin_transaction():  # none, where each migration is one
            with _in_transaction(connection):
                if backup is not None and not _at_target():
                    back_up(connection, Path(backup))
                drop_stale_copies(connection)
            context.run_migrations()
        connection.commit()  # Alembic leaves its query of the version table open


def _in_transaction(connection: Connection) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if connection.in_transaction() else connection.begin()


def _gate(connection: Connection) -> contextlib.AbstractContextManager[None]:
    dialect: Any = connection.dialect
    asked = dialect.asked_timeout
    return gate.one_at_a_time(path_of(dialect.database), WAIT if asked is None else asked)


def _migrate_through(connection: Connection | AsyncConnection, options: dict[str, Any]) -> None:
    """Run it on a connection of the application, and leave its transaction and settings alone."""
    from alembic import context, util

    if isinstance(connection, AsyncConnection):
        raise util.CommandError(
            "attributes['connection'] is an AsyncConnection, but Alembic needs a synchronous one: "
            "call the command in `await connection.run_sync(...)`, and pass the connection that "
            "your function gets"
        )
    dialect = connection.dialect
    context.configure(connection=connection, **_defaults(dialect) | options)
    stock = dialect.name == "sqlite" and dialect.driver != "qsession"
    guard = refusing_ignored_pragmas(connection) if stock else contextlib.nullcontext()
    with guard, context.begin_transaction():
        context.run_migrations()


def _defaults(dialect: Dialect | type[Dialect]) -> dict[str, Any]:
    """Alembic's options for a database, unless env.py sets them."""
    if dialect.name != "sqlite":
        return {}
    return {
        "render_as_batch": True,
        "transactional_ddl": dialect.driver == "qsession",
        "include_name": not_of_litestream,
    }


def _at_target() -> bool:
    """Whether the database is at the wanted revision. False for a relative revision such as +1."""
    from alembic import context, util

    try:
        wanted = context.script.get_revisions(util.to_tuple(context.get_revision_argument(), ()))
    except util.CommandError:
        return False
    heads = context.get_context().get_current_heads()
    return {each.revision for each in wanted} == set(heads)


def _print_sql(database: URL | AsyncEngine, options: dict[str, Any]) -> None:
    from alembic import context

    url = with_driver(database.url if isinstance(database, AsyncEngine) else database)
    context.configure(
        url=url,
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
        **_defaults(url.get_dialect()) | options,
    )
    with context.begin_transaction():
        context.run_migrations()


def _load_config(config: str | os.PathLike[str] | Config | None) -> Config:
    from alembic import util
    from alembic.config import Config

    if isinstance(config, Config):
        return config
    path = Path("alembic.ini" if config is None else config)
    if not path.is_file():
        raise util.CommandError(
            f"there is no Alembic configuration at {str(path.absolute())!r}: run `qsession init` "
            "to write one, or pass config="
        )
    return Config(path)


def _configure_logging(path: str) -> None:
    from logging.config import fileConfig

    with contextlib.suppress(KeyError):  # an ini file that has no [loggers]
        fileConfig(path, disable_existing_loggers=False)
