"""`copy`: the way into the copying of databases, which is imported when it is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy import URL

    from qsession.transfer.events import Listener, Report


async def copy(
    source: str | URL,
    target: str | URL,
    *,
    metadata: Any = None,
    resume: bool = False,
    replace: bool = False,
    verify: bool = False,
    check: bool = False,
    zone: str | None = None,
    progress: Listener | None = None,
) -> Report:
    """Copy the tables of one database to another one, which may be of another kind.

    The source is read in one transaction, of what is committed now; its data stays as it is. Tables
    that the target lacks are made, after ``metadata`` (a ``MetaData``, a declarative base, or
    ``"module:name"`` of either), or as they are in the source. Each value is converted to the type
    of its column there, or reported: nothing is rounded, cut or left out, but for what a float has
    past its 15th digit in a column of decimals.

    ``resume``: commit each batch, and go on where an earlier run with ``resume`` stopped. Without
    it the whole copy is one transaction. ``replace``: delete the rows that the tables have.
    ``verify``: read the target again and compare counts and checksums, before it is committed.
    ``check``: write nothing, only look whether everything fits; with ``replace``, in a target that
    has rows, as if they were deleted. ``zone`` (``"UTC"``) is that of
    timestamps without one, where source and target differ in that. ``progress`` is told after each
    batch.

    Returns what was copied, and notes on what was left out of the schema.

    Raises `CopyError` if the target has rows, if source and target do not go together, for rows
    that do not fit (``problems`` names some of each kind, ``counts`` counts all), and for what goes
    wrong on the way; and what SQLAlchemy and the driver raise when a database cannot be opened.
    After an error or a cancellation the target is as it was, but for what ``resume`` goes on with.
    Only a cancellation in the middle of the last COMMIT may come too late, and a connection that is
    lost there leaves it open whether it took effect; the error says so.
    """
    from qsession.transfer.options import Options, url_of
    from qsession.transfer.run import run

    options = Options(metadata, resume, replace, verify, check, zone, progress)
    return await run(url_of(source), url_of(target), options)
