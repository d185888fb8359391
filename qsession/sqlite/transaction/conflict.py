"""The errors that report a conflict."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm.exc import StaleDataError

from qsession.errors import ConflictError


def conflict(reason: str) -> ConflictError:
    """The error for a transaction whose reads have changed."""
    return ConflictError(
        "Another transaction changed data that this one had read, before this one wrote: "
        f"{reason}. Nothing was written. Roll back and run it again (qsession.run does so "
        "automatically). To avoid conflicts, take the write ticket before reading, with "
        "with_for_update(), qsession() or access='write'. If the transaction only reads, use a "
        "snapshot: qsession.reader() or qsession_access='read'."
    )


def as_stale_data(error: ConflictError, context: Any) -> Exception:
    """A ``StaleDataError`` for a statement that checks a ``version_id_col``, else the conflict.

    Code that uses such a column expects this error, as from SQLAlchemy. The conflict is its cause.
    """
    table = _checks_version_of(context)
    if table is None:
        return error
    stale = StaleDataError(
        f"UPDATE or DELETE statement on table {table!r} expected to match a version that another "
        f"transaction has changed. {error}"
    )
    stale.__cause__ = error
    return stale


def _checks_version_of(context: Any) -> str | None:
    """The table of an ORM UPDATE or DELETE that checks a version; None for other statements.

    The ORM names the bound parameter after the table and the version column
    (sqlalchemy/orm/persistence.py).
    """
    compiled: Any = getattr(context, "compiled", None)
    table = getattr(getattr(compiled, "statement", None), "table", None)
    if table is None or not (context.isupdate or context.isdelete):
        return None
    for mapper in _mappers_of(table):
        column = mapper.version_id_col
        if column is not None and {column._label, column.key} & set(compiled.binds):
            return str(table.name)
    return None


def _mappers_of(table: Any) -> list[Any]:
    from sqlalchemy.orm import mapperlib

    registries: Any = getattr(mapperlib, "_all_registries", set)()
    return [mapper for each in registries for mapper in each.mappers if table in mapper.tables]
