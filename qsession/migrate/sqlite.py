"""What SQLite needs around a migration: foreign keys off, cleanup of leftovers, a backup."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, MetaData, Table, event, exists, inspect, select
from sqlalchemy.util import await_only

from qsession.migrate.references import refuse_new_orphans
from qsession.sqlite.pool import WriteQueuePool
from qsession.sqlite.transaction.statement import Kind, means_on, words_of
from qsession.tools import backup

if TYPE_CHECKING:
    from sqlalchemy import Connection

logger = logging.getLogger("qsession")

STALE = "_alembic_tmp_"  # Alembic's prefix for the copy while it rebuilds a table


@contextlib.contextmanager
def engine_beside(engine: Engine) -> Iterator[Engine]:
    """Another engine with the same file, listeners and queue, but separate connections.

    So settings of the migration, such as ``PRAGMA foreign_keys``, never reach the application's
    connections.
    """
    assert isinstance(engine.pool, WriteQueuePool)
    pool = engine.pool.beside()
    try:
        yield Engine(pool, engine.dialect, engine.url)
    finally:
        pool.close()  # not dispose(), which would delete a memory database
        if (syncer := pool.running_syncer) is not None:
            syncer.close()


@contextlib.contextmanager
def guarded(connection: Connection) -> Iterator[None]:
    """Migrate with foreign keys off, and check all references before each COMMIT.

    With foreign keys on, dropping the old copy of a rebuilt table deletes the rows that refer to it
    (https://sqlite.org/lang_altertable.html, section 7). Inside a transaction the PRAGMA does
    nothing, so it is sent before the first one. If a migration sends it, that has no effect. Each
    transaction takes the write lock when it begins, and its references are compared with a snapshot
    from that moment. An ``autocommit_block()`` is checked as a whole, at its end.
    """
    connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
    connection.rollback()
    # Another pool, because the migration's own pool may allow only one connection.
    with engine_beside(connection.engine) as beside, beside.connect() as before:
        before.execution_options(qsession_access="read")

        def begin(_: Connection) -> None:
            if not _in_autocommit_block(connection):
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            before.rollback()
            before.exec_driver_sql("SELECT count(*) FROM sqlite_master")

        def commit(_: Connection) -> None:
            if not (_in_autocommit_block(connection) or _wrote(connection)):
                return
            try:
                refuse_new_orphans(connection, before)
            except BaseException:
                connection.connection.rollback()  # SQLAlchemy treats it as ended by COMMIT
                raise
            finally:
                before.rollback()  # so that the WAL can be checkpointed after COMMIT

        event.listen(connection, "begin", begin)
        event.listen(connection, "commit", commit)
        event.listen(connection, "before_cursor_execute", _leave_foreign_keys, retval=True)
        yield


def _in_autocommit_block(connection: Connection) -> bool:
    return connection.get_isolation_level() == "AUTOCOMMIT"


def _wrote(connection: Connection) -> bool:
    routed: Any = connection.connection
    return bool(routed.transaction.wrote)


def _leave_foreign_keys(
    _connection: Any, _cursor: Any, sql: str, parameters: Any, _context: Any, _many: bool
) -> tuple[str, Any]:
    """Replace ``PRAGMA foreign_keys=...`` by a query, so that foreign keys stay off."""
    words = words_of(sql)
    if words.kind is not Kind.SET or words.name != "foreign_keys":
        return sql, parameters
    logger.info("%r was not sent: foreign keys stay off until all migrations have run", sql)
    return "PRAGMA foreign_keys", ()


@contextlib.contextmanager
def refusing_ignored_pragmas(connection: Connection) -> Iterator[None]:
    """Raise if ``PRAGMA foreign_keys=OFF`` has no effect, on a connection of another driver.

    SQLite ignores it inside a transaction, and a table rebuild after it would delete rows.
    """

    def look(
        connection: Connection, _cursor: Any, sql: str, _parameters: Any, _context: Any, _many: bool
    ) -> None:
        from alembic import util

        words = words_of(sql)
        if words.name != "foreign_keys" or words.value is None or means_on(words.value):
            return
        if connection.exec_driver_sql("PRAGMA foreign_keys").scalar():
            raise util.CommandError(
                f"{sql!r} had no effect: SQLite ignores it inside a transaction. Send it in "
                "`with op.get_context().autocommit_block():`, or let qsession.migrate.run() open "
                "the connection, which handles foreign keys"
            )

    event.listen(connection, "after_cursor_execute", look)
    try:
        yield
    finally:
        event.remove(connection, "after_cursor_execute", look)


def drop_stale_copies(connection: Connection) -> None:
    """Drop the empty ``_alembic_tmp_*`` tables of a migration that failed under another driver.

    A table with rows is never dropped: it may have the only copy of them, if that migration failed
    after it had dropped the original table.
    """
    from alembic import util

    for name in inspect(connection).get_table_names():
        if not name.startswith(STALE):
            continue
        table = Table(name, MetaData())
        if connection.scalar(select(exists().select_from(table))):
            raise util.CommandError(
                f"a migration that failed halfway left the table {name!r}, and it has rows. If "
                f"{name.removeprefix(STALE)!r} exists and is complete, drop {name!r}; if not, "
                f"rename {name!r} to {name.removeprefix(STALE)!r}. Then migrate again"
            )
        table.drop(connection)


def back_up(connection: Connection, target: Path) -> None:
    """Copy the database, in its state before this transaction, to a new file."""
    from alembic import util

    source = connection.exec_driver_sql("PRAGMA database_list").all()[0][2]
    if not source:
        raise util.CommandError("a memory database has no file to back up: omit backup=")
    if target.exists():
        raise util.CommandError(f"the backup {str(target)!r} already exists: name a new file")
    unchecked = await_only(asyncio.to_thread(backup.back_up, source, target))
    if unchecked:
        logger.warning(
            "The backup %r is complete, but the content of %s could not be fully checked: indexes "
            "or constraints use functions or collations that the application registers",
            str(target),
            ", ".join(unchecked),
        )
