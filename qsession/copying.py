"""`copy`: copies one database to another. Its code is imported at the first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sqlalchemy import URL, MetaData

    from qsession.transfer.events import Listener, Report


class Declarative(Protocol):
    """A declarative base, by what is needed of it."""

    @property
    def metadata(self) -> MetaData: ...


async def copy(
    source: str | URL,
    target: str | URL,
    *,
    metadata: MetaData | Declarative | str | None = None,
    resume: bool = False,
    replace: bool = False,
    verify: bool = False,
    check: bool = False,
    zone: str | None = None,
    progress: Listener | None = None,
) -> Report:
    """Copy the tables of one database to another, which may be of another kind.

    The source is read in one transaction and is not changed. Tables that the target lacks are
    created from ``metadata`` (a ``MetaData``, a declarative base, or ``"module:name"`` of either),
    or as they are in the source. Each value is converted to the type of the target column, or
    reported. No value is rounded, cut or left out, with one exception: in a column of decimals, a
    float keeps 15 digits.

    ``resume``: commit each batch, and continue where an earlier run with ``resume`` stopped.
    Without it the copy is one transaction. ``replace``: first delete the rows of the target tables.
    ``verify``: before the commit, read the target and compare counts and checksums. ``check``:
    write nothing, only check whether everything fits; with ``replace``, as if the rows of the
    target were deleted. ``zone`` (``"UTC"``): the time zone of timestamps without one, if source
    and target treat them differently. ``progress``: a function called after each batch.

    Returns what was copied, with notes on what was left out of the schema.

    Raises `CopyError` if the target has rows, if source and target do not match, if rows do not fit
    (``problems`` has examples of each kind, ``counts`` the totals), or if the copy fails. Raises
    the errors of SQLAlchemy and the driver if a database cannot be opened. After an error or a
    cancellation the target is as before, except for batches that ``resume`` committed. A
    cancellation during the last COMMIT may come too late. If the connection is lost during the last
    COMMIT, it is not known whether the commit took effect; the error says so.
    """
    from qsession.transfer.options import Options, url_of
    from qsession.transfer.run import run

    options = Options(metadata, resume, replace, verify, check, zone, progress)
    return await run(url_of(source), url_of(target), options)
