"""Statements: the methods of both pools and connections that run SQL, and their results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from qsession.pool.link import Take
from qsession.pool.rows import Answer

if TYPE_CHECKING:
    from qsession.rows import AnyRow

_T = TypeVar("_T")


class Statements:
    """Runs SQL text.

    ``$1``, ``$2`` stand for positional arguments; ``:name`` for keyword arguments or the keys of
    one mapping. A statement uses one of the two kinds. Text inside a string, a quoted identifier or
    a comment is not a placeholder.

    Outside a transaction each call is a separate transaction, which is committed when the call
    returns. All methods raise SQLAlchemy's errors, the errors of `qsession.errors`, and
    `sqlalchemy.exc.ArgumentError` if text and arguments do not match.

    Cancellation: the statement is interrupted. If it is in a transaction, that can only be rolled
    back.
    """

    async def execute(self, sql: str, /, *args: Any, **named: Any) -> int:
        """Run a statement and return the number of rows it inserted, updated or deleted.

        For a statement that returns rows, this is their number. For others, such as CREATE TABLE,
        it is 0.
        """
        return await self._run(_count, sql, args, named)

    async def fetch(self, sql: str, /, *args: Any, **named: Any) -> list[AnyRow]:
        """All rows. Each is a named tuple; ``row._mapping`` is a mapping of the same values.

        Empty for a statement that returns no rows.
        """
        return await self._run(_all, sql, args, named)

    async def fetchrow(self, sql: str, /, *args: Any, **named: Any) -> AnyRow | None:
        """The first row, or None if there is none."""
        return await self._run(_first, sql, args, named)

    async def fetchval(self, sql: str, /, *args: Any, **named: Any) -> Any:
        """The first value of the first row, or None if there is no row."""
        return await self._run(_value, sql, args, named)

    async def executemany(
        self, sql: str, rows: Iterable[Sequence[Any] | Mapping[str, Any]], /
    ) -> None:
        """Run a statement for each set of parameters, all in one transaction.

        ``rows`` contains sequences for ``$1``, ``$2``, or mappings for ``:name``.
        """
        raise NotImplementedError

    async def _run(
        self, take: Take[_T], sql: str, args: Sequence[Any], named: Mapping[str, Any]
    ) -> _T:
        raise NotImplementedError


def _count(result: Answer) -> int:
    return len(result.all()) if result.returns_rows else max(result.rowcount, 0)


def _all(result: Answer) -> list[AnyRow]:
    return list(result.all()) if result.returns_rows else []


def _first(result: Answer) -> AnyRow | None:
    return result.first() if result.returns_rows else None


def _value(result: Answer) -> Any:
    row = _first(result)
    return None if row is None else row[0]
