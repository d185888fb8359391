"""Statements: what can be run on a pool and on a connection alike, and what comes back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Row

from qsession.pool.link import Take
from qsession.pool.rows import Answer

_T = TypeVar("_T")


class Statements:
    """Runs SQL given as text.

    ``$1``, ``$2`` stand for positional arguments; ``:name`` for keyword arguments or for the keys
    of one mapping. A statement uses one of the two kinds. Nothing inside a string, a quoted
    identifier or a comment is a placeholder.

    Outside of a transaction each call is a transaction of its own: when it returns, what it wrote
    is committed. All raise what SQLAlchemy raises for the database's errors, the errors of
    `qsession.errors`, and `sqlalchemy.exc.ArgumentError` where text and arguments do not fit.

    Cancellation: the statement is broken off, and its transaction, if it is in one, can only be
    rolled back.
    """

    async def execute(self, sql: str, /, *args: Any, **named: Any) -> int:
        """Run a statement and return how many rows it inserted, updated or deleted.

        For a statement that returns rows it is their number; for others, as CREATE TABLE, 0.
        """
        return await self._run(_count, sql, args, named)

    async def fetch(self, sql: str, /, *args: Any, **named: Any) -> list[Row[Any]]:
        """All rows. Each is a tuple whose values are attributes, too; ``row._mapping`` is a dict.

        Empty for a statement that returns no rows.
        """
        return await self._run(_all, sql, args, named)

    async def fetchrow(self, sql: str, /, *args: Any, **named: Any) -> Row[Any] | None:
        """The first row, or None if there is none."""
        return await self._run(_first, sql, args, named)

    async def fetchval(self, sql: str, /, *args: Any, **named: Any) -> Any:
        """The first value of the first row, or None if there is no row."""
        return await self._run(_value, sql, args, named)

    async def executemany(
        self, sql: str, rows: Iterable[Sequence[Any] | Mapping[str, Any]], /
    ) -> None:
        """Run a statement for each set of parameters, all of them in one transaction.

        ``rows`` holds sequences for ``$1``, ``$2`` and mappings for ``:name``.
        """
        raise NotImplementedError

    async def _run(
        self, take: Take[_T], sql: str, args: Sequence[Any], named: Mapping[str, Any]
    ) -> _T:
        raise NotImplementedError


def _count(result: Answer) -> int:
    return len(result.all()) if result.returns_rows else max(result.rowcount, 0)


def _all(result: Answer) -> list[Row[Any]]:
    return list(result.all()) if result.returns_rows else []


def _first(result: Answer) -> Row[Any] | None:
    return result.first() if result.returns_rows else None


def _value(result: Answer) -> Any:
    row = _first(result)
    return None if row is None else row[0]
