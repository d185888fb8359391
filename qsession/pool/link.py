"""Link: how a connection of the pool sends its statements."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from qsession.pool.parameters import Given
from qsession.pool.rows import Answer

T = TypeVar("T")
Take = Callable[[Answer], T]
"""A function that takes the result from an answer before its cursor is closed."""


class Link(Protocol):
    """A connection to the database that is opened when needed, and replaced when lost.

    Only one task at a time uses it. All methods raise SQLAlchemy's errors. A cancelled statement is
    interrupted, and its transaction can only be rolled back.
    """

    in_transaction: bool
    """Whether a transaction is open, perhaps with savepoints."""

    async def open(self) -> None:
        """Open a connection. If cancelled, there is none."""

    async def run(
        self, take: Take[T], sql: str, args: Sequence[Any], named: Mapping[str, Any]
    ) -> T:
        """Run a statement; outside a transaction it is committed."""
        ...

    def bind_many(self, sql: str, rows: Iterable[Given]) -> Any:
        """A statement with all ``rows``, for `run_many`; None if there are no rows."""

    async def run_many(self, bound: Any) -> None:
        """Run a statement for each of its rows, in the open transaction."""

    async def begin(self, options: Mapping[str, Any]) -> Any:
        """Begin a transaction, or a savepoint in it; for `end`."""

    async def end(self, begun: Any, commit: bool) -> None:
        """Commit or roll back the result of ``begin``. If a commit fails, it is rolled back."""

    async def close(self) -> None:
        """Roll back an open transaction, and give the connection back, if there is one."""

    async def invalidate(self) -> None:
        """Close the connection, while no statement runs."""
