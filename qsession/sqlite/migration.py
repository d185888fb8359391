"""What SQLite needs around a migration: foreign keys off, leftovers gone, references checked."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
        before = _orphans(outside)
        origin = _origins(_tables(outside), _tables(connection))
    new: Counter[tuple[str, str]] = Counter()
    for (child, parent, key), count in after.items():
        old = (origin.get(child, child), origin.get(parent, parent), key)
        known = min(count, before[old])
        before[old] -= known
        new[child, parent] += count - known
    if new := +new:
        broken = ", ".join(
            f"{count} in {child!r} to {parent!r}" for (child, parent), count in new.items()
        )
        raise util.CommandError(
            f"the migration would leave references to rows that do not exist: {broken}. "
            "It was rolled back"
        )


_Orphans = Counter[tuple[str, str, tuple[Any, ...]]]
"""How many rows of which table refer to which table by which key, and there is no such row.

The key is what is left of a row in a table that is built anew, which gives out the numbers of its
rows and of its references anew. Names are in lower case.
"""


def _orphans(connection: Connection) -> _Orphans:
    """By ``PRAGMA foreign_key_check``, table by table: a reference to columns that are not unique
    makes it fail (https://sqlite.org/foreignkeys.html, section 3), for all tables if it is asked
    for all.
    """
    found: _Orphans = Counter()
    for table in _tables(connection):
        try:
            checked = connection.exec_driver_sql(
                "SELECT DISTINCT parent, fkid FROM pragma_foreign_key_check(?)", (table,)
            ).all()
        except DBAPIError as error:
            if "foreign key mismatch" not in str(error.orig):
                raise
            found[table, "columns that are not unique", ()] += 1
            continue
        for parent, number in checked:
            for key in _keys(connection, table, number):
                found[table, parent.lower(), key] += 1
    return found


def _keys(connection: Connection, table: str, number: int) -> Iterator[tuple[Any, ...]]:
    """What each broken reference of one kind says; an empty key each in a table WITHOUT ROWID."""
    wanted = _names(
        connection,
        'SELECT "from" FROM pragma_foreign_key_list(?) WHERE id = ? ORDER BY seq',
        (table, number),
    )
    taken = _names(connection, "SELECT lower(name) FROM pragma_table_xinfo(?)", (table,))
    rowid = next((each for each in ("rowid", "_rowid_", "oid") if each not in taken), None)
    quote = connection.dialect.identifier_preparer.quote_identifier
    rows = "FROM pragma_foreign_key_check(?) AS found"
    having = "WHERE found.fkid = ?"
    numbered = connection.exec_driver_sql(
        f"SELECT count(*), count(found.rowid) {rows} {having}",
        (table, number),
    )
    count, with_rowid = numbered.one()
    if rowid is None or not with_rowid:
        yield from [()] * count
        return
    columns = ", ".join(f"child.{quote(each)}" for each in wanted)
    for row in connection.exec_driver_sql(
        f"SELECT {columns} {rows} CROSS JOIN {quote(table)} AS child "
        f"ON child.{rowid} = found.rowid {having}",
        (table, number),
    ):
        yield tuple(row)


def _names(connection: Connection, sql: str, about: tuple[Any, ...]) -> list[str]:
    return list(connection.exec_driver_sql(sql, about).scalars())


def _tables(connection: Connection) -> dict[str, int]:
    """The tables, and the page that each begins at, which a table keeps when it is renamed."""
    return {
        name.lower(): page
        for name, page in connection.exec_driver_sql(
            "SELECT name, rootpage FROM sqlite_master WHERE type = 'table' AND rootpage > 0"
        )
    }


def _origins(before: dict[str, int], after: dict[str, int]) -> dict[str, str]:
    """What the tables that were renamed were called."""
    names = {page: name for name, page in before.items()}
    return {
        name: names[page] for name, page in after.items() if name not in before and page in names
    }


def back_up(connection: Connection, target: Path) -> None:
    """Copy the database, as it was before this transaction, to a new file."""
    from alembic import util

    source = connection.exec_driver_sql("PRAGMA database_list").all()[0][2]
    if not source:
        raise util.CommandError("a database in memory has no file to back up")
    if target.exists():
        raise util.CommandError(f"the backup {str(target)!r} exists already: name a new file")
    await_only(asyncio.to_thread(backup.back_up, source, target))
