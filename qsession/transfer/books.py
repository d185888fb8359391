"""The progress of a copy that can be resumed, in a table of the target.

It changes in the transaction of each batch, so it is never ahead of the rows or behind them. For
each table it has the number of rows and their digest. A copy that is resumed reads the same rows of
the source again: if their digest is the same, what was copied is what the source holds now, and
the rest follows. So no clock and no version number of the source has to be trusted.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import (
    BigInteger,
    Column,
    MetaData,
    String,
    Table,
    Text,
    delete,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from qsession.errors import CopyError
from qsession.transfer.schema import BOOKS, Completing

books = Table(
    BOOKS,
    MetaData(),
    Column("name", String(191), primary_key=True),
    Column("rows_done", BigInteger, nullable=False),
    Column("digest", String(32), nullable=False),
    Column("completing", Text),
)
_STATEMENT = "statement "
FOLLOW = "--follow"
"""The name of the row that says that the target is behind a source which is followed."""


class SourceChanged(CopyError):
    """The source does not hold any more what was copied, so nothing can go on from there."""


class TakenOver(CopyError):
    """Another copy has made the target its own, while a source was followed."""


@dataclass(frozen=True)
class Entry:
    """How far one table is."""

    rows: int = 0
    digest: str = "0" * 32


async def are_there(target: AsyncConnection) -> bool:
    """Whether a copy into this database was begun and not finished."""
    return await target.run_sync(lambda sync: inspect(sync).has_table(BOOKS))


async def begin(target: AsyncConnection, names: list[str], completing: Completing) -> None:
    """Begin them, with the statements that complete the schema when all rows are there."""
    await target.run_sync(books.create, checkfirst=True)  # MySQL may have kept it, empty
    rows = [_row(name) for name in names]
    rows += [
        _row(f"{_STATEMENT}{number:06} {table}", statement)
        for number, (table, statement) in enumerate(completing, 1)
    ]
    await target.execute(insert(books), rows)


async def begin_following(
    target: AsyncConnection, token: str, rows: int, completing: Completing
) -> None:
    """Note that the target has ``rows`` rows of the source that knows ``token``, and is behind.

    ``completing``: the statements that bring its foreign keys back.
    """
    await begin(target, [FOLLOW], completing)
    await target.execute(
        update(books).where(books.c.name == FOLLOW).values(rows_done=rows, digest=token)
    )


async def note_following(target: AsyncConnection, token: str, changes: int) -> None:
    """Add ``changes`` to the rows, in the transaction that writes them and before it does.

    Raises :class:`TakenOver` if another copy was here in the meantime: its rows are to stay.
    """
    rows = books.c.rows_done + max(changes, 1)  # MySQL does not count a row that stays as it is
    noting = update(books).where(books.c.name == FOLLOW, books.c.digest == token)
    noted = 0
    if await are_there(target):
        noted = (await target.execute(noting.values(rows_done=rows))).rowcount
    if not noted:
        raise TakenOver(
            "another copy into this database has been at work since this one began to follow. This "
            "one stopped, and wrote nothing more"
        )


def _row(name: str, completing: str | None = None) -> dict[str, object]:
    return {
        "name": name,
        "rows_done": 0,
        "digest": Entry.digest,
        "completing": completing,
    }


async def load(target: AsyncConnection) -> tuple[dict[str, Entry], Completing]:
    """How far each table is, and the statements that complete the schema."""
    rows = (await target.execute(select(books).order_by(books.c.name))).all()
    entries = {row.name: Entry(row.rows_done, row.digest) for row in rows if row.completing is None}
    return entries, [
        (row.name.removeprefix(_STATEMENT).partition(" ")[2], row.completing)
        for row in rows
        if row.completing is not None
    ]


async def note(target: AsyncConnection, name: str, before: Entry, now: Entry) -> None:
    """Take ``now`` down in the transaction that writes the rows; commit it with them.

    Raises :class:`CopyError` if another copy was here in the meantime: then these rows, and no
    others, are to be rolled back.
    """
    done = await target.execute(
        update(books)
        .where(books.c.name == name, books.c.rows_done == before.rows)
        .where(books.c.digest == before.digest)
        .values(rows_done=now.rows, digest=now.digest)
    )
    if done.rowcount != 1:
        raise CopyError(
            f"another copy into this database is at work: it wrote rows of {name}. This one "
            "stopped, and no row was written twice"
        )


async def end(target: AsyncConnection) -> list[str]:
    """Remove them with the next COMMIT. On MySQL that leaves the table, empty.

    Returns what is to be sent after the last COMMIT, as a DROP TABLE is a COMMIT there.
    """
    if target.dialect.name in ("mysql", "mariadb"):
        await target.execute(delete(books))
        return [f"DROP TABLE IF EXISTS {BOOKS}"]
    await target.run_sync(books.drop)
    return []
