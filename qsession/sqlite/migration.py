"""What SQLite needs around a migration: foreign keys off, leftovers gone, references checked."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine, MetaData, Table, exists, inspect, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import AsyncAdaptedQueuePool
from sqlalchemy.util import await_only

from . import backup
from .pool import WriteQueuePool

if TYPE_CHECKING:
    from sqlalchemy import Connection

STALE = "_alembic_tmp_"  # what Alembic calls the copy while it rebuilds a table


@contextlib.contextmanager
def engine_beside(engine: Engine) -> Iterator[Engine]:
    """An engine beside ``engine``: the same file, listeners and queue, with its own connections.

    What a migration sets on its connection, ``PRAGMA foreign_keys`` first, then never reaches the
    application's writer, whatever happens.
    """
    pool = engine.pool.recreate()
    assert isinstance(pool, WriteQueuePool)
    try:
        yield Engine(pool, engine.dialect, engine.url)
    finally:
        AsyncAdaptedQueuePool.dispose(pool)  # not the pool's own: a memory database lives on
        pool.writer.dispose()


def hold_without_foreign_keys(connection: Connection) -> None:
    """Take the ticket, for good, and turn foreign keys off, before the transaction begins.

    With them on, dropping the old copy of a rebuilt table deletes the rows that refer to it
    (https://sqlite.org/lang_altertable.html, section 7). Inside a transaction the PRAGMA does
    nothing; as the first statement it is sent before BEGIN.
    """
    _ = connection.connection.driver_connection  # a holder that was asked for it is not suspended
    connection.exec_driver_sql("PRAGMA foreign_keys=OFF")


def drop_stale_copies(connection: Connection) -> None:
    """Drop the empty ``_alembic_tmp_*`` tables of a migration that failed under another driver.

    One that holds rows is never dropped: it may be the only copy of them, if that migration broke
    off after it had dropped the table itself.
    """
    from alembic import util

    for name in inspect(connection).get_table_names():
        if not name.startswith(STALE):
            continue
        table = Table(name, MetaData())
        if connection.scalar(select(exists().select_from(table))):
            raise util.CommandError(
                f"the table {name!r} was left behind by a migration that failed halfway, and it "
                f"holds rows. If {name.removeprefix(STALE)!r} exists and is complete, drop "
                f"{name!r}; if not, rename {name!r} to it. Then migrate again"
            )
        table.drop(connection)


def refuse_new_orphans(connection: Connection) -> None:
    """Raise if rows refer to rows that are not there, and did not before this transaction."""
    from alembic import util

    after = _orphans(connection)
    if not after:
        return
    with connection.engine.connect() as outside:  # a snapshot from before: nothing is committed
        outside.execution_options(qsession_access="read")
        new = after - _orphans(outside)
    if new:
        broken = ", ".join(
            f"{count} in {child!r} to {parent!r}" for (child, parent), count in new.items()
        )
        raise util.CommandError(
            f"the migration would leave references to rows that do not exist: {broken}. "
            "It was rolled back"
        )


def _orphans(connection: Connection) -> Counter[tuple[str, str]]:
    """How many rows of which table refer to a missing row of which other table."""
    try:
        rows = connection.exec_driver_sql(
            'SELECT "table", parent, count(*) FROM pragma_foreign_key_check GROUP BY 1, 2'
        )
        return Counter({(child, parent): count for child, parent, count in rows})
    except DBAPIError as error:  # the schema itself is wrong: a parent key that is not unique
        return Counter({(str(error.orig), ""): 1})


def back_up(connection: Connection, target: Path) -> None:
    """Copy the database, as it was before this transaction, to a new file."""
    from alembic import util

    source = connection.exec_driver_sql("PRAGMA database_list").all()[0][2]
    if not source:
        raise util.CommandError("a database in memory has no file to back up")
    if target.exists():
        raise util.CommandError(f"the backup {str(target)!r} exists already: name a new file")
    await_only(asyncio.to_thread(backup.back_up, source, target))
