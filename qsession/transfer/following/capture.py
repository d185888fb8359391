"""What is put into a source so that each change of a row is taken down, and taken out again.

Triggers write the primary key of each row that was inserted, updated or deleted into a table beside
it, in the transaction of the change. So every writer is included, also one without qsession, and
what is rolled back was never there. Only keys are taken down: the rows are read when they are
needed. A table without a primary key is copied anew when it has changed.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

from sqlalchemy import Connection, MetaData, exc, text

from qsession.errors import CopyError
from qsession.transfer.following.conflicts import conflicts_of, key_that_is_rowid, quoted
from qsession.transfer.left_out import virtual_tables
from qsession.transfer.schema import BOOKS, FOLLOWING

_NOTES = f"{FOLLOWING} (name TEXT PRIMARY KEY, value TEXT)"
MOVED = "qsession_moved"
"""How the names of triggers begin that refuse writes to a file which was left."""
_OURS = text(
    "SELECT type, name FROM sqlite_master WHERE type IN ('table', 'trigger') "
    r"AND (name LIKE 'qsession\_follow%' ESCAPE '\' OR name LIKE 'qsession\_moved%' ESCAPE '\') "
    "ORDER BY type DESC, name"
)
_TABLES = text(
    r"SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\_%' ESCAPE '\' "
    r"AND name NOT LIKE 'qsession\_follow%' ESCAPE '\' "
    r"AND name NOT LIKE '\_litestream\_%' ESCAPE '\' ORDER BY name"
)
_SCHEMA = text(
    "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE (type = 'table' "
    "OR (type = 'index' AND sql LIKE 'CREATE UNIQUE%') "
    r"OR (type = 'trigger' AND name LIKE 'qsession\_follow%' ESCAPE '\')) "
    r"AND name NOT LIKE 'sqlite\_%' ESCAPE '\' AND name NOT LIKE '\_litestream\_%' ESCAPE '\' "
    "ORDER BY type, name"
)
_KEY = text("SELECT name FROM pragma_table_info(:table) WHERE pk ORDER BY pk")


@dataclass(frozen=True)
class Captured:
    """A table whose changes are taken down."""

    number: int
    table: str
    key: tuple[str, ...]
    """The primary key; empty if there is none."""

    @property
    def log(self) -> str:
        """The table that has them: ``seq``, which grows, and ``k1``, ``k2`` and so on."""
        return f"{FOLLOWING}_{self.number}"

    @property
    def columns(self) -> list[str]:
        """Those of the key in ``log``."""
        return [f"k{number}" for number in range(1, len(self.key) + 1)]


@dataclass(frozen=True)
class Capture:
    """All that is taken down of a file."""

    token: str
    """The name of this copy, which the target has as well."""
    schema: str
    """A checksum of the tables, as they were."""
    tables: tuple[Captured, ...]

    def refuse_another_schema(self, connection: Connection) -> None:
        """Raise :class:`CopyError` if a table was changed, or a trigger taken away."""
        if _schema(connection) != self.schema:
            raise CopyError(
                "the tables of the source were changed while it was followed (by a migration, for "
                "example), so changes of rows may have been missed. Begin anew with --replace"
            )


def install(connection: Connection, metadata: MetaData | None) -> Capture:
    """Put it all into a file, in a transaction that has the lock. The caller commits.

    What an earlier copy has left is taken out first. ``metadata``: only its tables. Raises
    :class:`CopyError` for a table that cannot be followed.
    """
    remove(connection)
    names = real_tables(connection)
    if metadata is not None:
        wanted = {table.name.lower() for table in metadata.tables.values()}
        names = [name for name in names if name.lower() in wanted]
    connection.exec_driver_sql(f"CREATE TABLE {_NOTES}")
    tables = _captured(connection, dict(enumerate(names, 1)))
    for each in tables:
        for statement in _statements(connection, each):
            connection.exec_driver_sql(statement)
    capture = Capture(secrets.token_hex(16), _schema(connection), tables)
    for name, value in (("token", capture.token), ("schema", capture.schema)):
        _note(connection, name, value)
    return capture


def find(connection: Connection) -> Capture | None:
    """What an earlier copy has put into a file, if it takes changes down as it did then."""
    token, schema = noted(connection, "token"), noted(connection, "schema")
    if token is None or schema is None or _schema(connection) != schema:
        return None
    rows = connection.execute(
        text(
            "SELECT name, tbl_name FROM sqlite_master WHERE type = 'trigger' "
            r"AND name LIKE 'qsession\_follow\_%\_insert' ESCAPE '\'"
        )
    )
    tables = {int(name.removeprefix(FOLLOWING).split("_")[1]): table for name, table in rows}
    return Capture(token, schema, _captured(connection, dict(sorted(tables.items()))))


def remove(connection: Connection, *, keep_closed: bool = False) -> bool:
    """Take everything out, in a transaction; whether there was more than notes.

    ``keep_closed``: a file that was left keeps its triggers that refuse writes.
    """
    take(connection)
    found = connection.execute(_OURS).all()
    for kind, name in found:
        if not (keep_closed and (name.startswith(MOVED) or name == FOLLOWING)):
            connection.exec_driver_sql(f"DROP {kind} {quoted(name)}")
    return len(found) > 1


def is_there(connection: Connection) -> bool:
    """Whether a copy has put anything into a file, or left it there."""
    return connection.execute(_OURS).first() is not None


def take(connection: Connection) -> None:
    """Take SQLite's lock by a write, so that nothing changes from here to COMMIT."""
    connection.exec_driver_sql(f"CREATE TABLE IF NOT EXISTS {_NOTES}")
    connection.exec_driver_sql(f"UPDATE {FOLLOWING} SET value = value WHERE name = 'token'")  # noqa: S608


def close(connection: Connection, to: str) -> None:
    """Have a file refuse to be written from the next COMMIT on, with a message that says why.

    Twice is as once. ``to``: the database that took its place, for people.
    """
    told = (
        f"this database has moved to {to}: write there. (qsession copy --follow --switch moved it, "
        "and ends a move that was interrupted. qsession copy --clean lets writes in again)"
    ).replace("'", "''")
    for number, name in enumerate(real_tables(connection), 1):
        for operation in ("INSERT", "UPDATE", "DELETE"):
            connection.exec_driver_sql(
                f"CREATE TRIGGER IF NOT EXISTS {MOVED}_{number}_{operation.lower()} "
                f"BEFORE {operation} ON {quoted(name)} BEGIN SELECT RAISE(ABORT, '{told}'); END"
            )
    _note(connection, "moved", to)


def noted(connection: Connection, name: str) -> str | None:
    """What is noted in a file: its ``token``, or the database that it ``moved`` to."""
    try:
        found = connection.exec_driver_sql(
            f"SELECT value FROM {FOLLOWING} WHERE name = ?",  # noqa: S608
            (name,),
        ).scalar()
    except exc.OperationalError:  # no copy was here
        return None
    return None if found is None else str(found)


def real_tables(connection: Connection) -> list[str]:
    """The tables that can have triggers, without those of copies and of Litestream."""
    virtual = virtual_tables(connection)
    names = [str(name) for (name,) in connection.execute(_TABLES)]
    return [name for name in names if name not in virtual and name != BOOKS]


def _note(connection: Connection, name: str, value: str) -> None:
    connection.exec_driver_sql(f"INSERT OR REPLACE INTO {FOLLOWING} VALUES (?, ?)", (name, value))  # noqa: S608


def _captured(connection: Connection, names: Mapping[int, str]) -> tuple[Captured, ...]:
    return tuple(
        Captured(number, name, tuple(connection.scalars(_KEY, {"table": name})))
        for number, name in names.items()
    )


def _schema(connection: Connection) -> str:
    rows = [tuple(row) for row in connection.execute(_SCHEMA)]
    return blake2b(repr(rows).encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _statements(connection: Connection, captured: Captured) -> list[str]:
    """The table of changes, and the triggers that fill it.

    What can be known before a change is taken down before it. An AFTER trigger may not run, though
    rows were deleted: an UPDATE OR REPLACE deletes a row, and with it, by a foreign key, the row
    that it changes. And an action of a foreign key may leave OLD.x converted to the type of the
    child, where an AFTER trigger reads it.
    """
    log, columns, key = captured.log, captured.columns, captured.key
    table = quoted(captured.table)

    def trigger(name: str, when: str, *body: str) -> str:
        return (
            f"CREATE TRIGGER {log}_{name} {when} BEGIN {' '.join(f'{each};' for each in body)} END"
        )

    made = [f"CREATE TABLE {log} (seq INTEGER PRIMARY KEY{''.join(f', {c}' for c in columns)})"]
    if not key:
        changed = f"INSERT INTO {log} VALUES (NULL)"  # noqa: S608
        return made + [
            trigger(each.lower(), f"BEFORE {each} ON {table}", changed)
            for each in ("INSERT", "UPDATE", "DELETE")
        ]
    into = f"INSERT INTO {log} ({', '.join(columns)})"
    new, old = ([f"{row}.{quoted(name)}" for name in key] for row in ("NEW", "OLD"))
    # Binary, or a key that was only written in capitals would be taken for the same.
    other = " OR ".join(f"({o} COLLATE BINARY) IS NOT {n}" for o, n in zip(old, new, strict=True))
    made += [
        trigger("insert", f"AFTER INSERT ON {table}", f"{into} VALUES ({', '.join(new)})"),
        trigger(
            "update",
            f"BEFORE UPDATE ON {table}",
            f"{into} VALUES ({', '.join(old)})",
            f"{into} SELECT {', '.join(new)} WHERE {other}",
        ),
        # REPLACE has stored a default by then.
        trigger(
            "update_default",
            f"AFTER UPDATE ON {table} WHEN {other}",
            f"{into} VALUES ({', '.join(new)})",
        ),
        trigger("delete", f"BEFORE DELETE ON {table}", f"{into} VALUES ({', '.join(old)})"),
    ]
    there = ", ".join(f"{table}.{quoted(name)}" for name in key)
    looking = f"{into} SELECT {there} FROM {table} WHERE"  # noqa: S608
    conflicts = conflicts_of(connection, captured.table)
    finding = [f"{looking} {each.where(lambda c: f'NEW.{quoted(c)}')}" for each in conflicts]
    rowid = _rowid(connection, captured.table)
    if rowid is not None:
        same = f"{looking} {table}.{rowid} = NEW.{rowid}"
        changes = f"BEFORE UPDATE ON {table} WHEN NEW.{rowid} <> OLD.{rowid}"
        made.append(trigger("before_rowid", changes, same))
        finding.append(same)
    if finding:
        made.append(trigger("before_insert", f"BEFORE INSERT ON {table}", *finding))
    for number, each in enumerate(conflicts, 1):
        of = f" OF {', '.join(map(quoted, each.columns))}" if each.columns else ""
        when = f"BEFORE UPDATE{of} ON {table}"
        read = ", ".join(f"NEW.{quoted(name)}" for name in each.asks_for)
        body = (f"SELECT {read}", finding[number - 1]) if read else (finding[number - 1],)
        made.append(trigger(f"before_update_{number}", when, *body))
    return made


def _rowid(connection: Connection, table: str) -> str | None:
    """The name of the rowid, of a table whose primary key is something else."""
    if key_that_is_rowid(connection, table) is not None:
        return None
    columns = connection.scalars(
        text("SELECT lower(name) FROM pragma_table_xinfo(:table)"), {"table": table}
    )
    taken = set(columns)
    free = next((name for name in ("rowid", "_rowid_", "oid") if name not in taken), None)
    try:
        connection.exec_driver_sql(f"SELECT {free} FROM {quoted(table)} LIMIT 0")  # noqa: S608
    except exc.OperationalError:  # WITHOUT ROWID
        return None
    return free
