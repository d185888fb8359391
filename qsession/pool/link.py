"""Link: what a connection of the pool sends its statements through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from qsession.pool.parameters import Given
from qsession.pool.rows import Answer

T = TypeVar("T")
Take = Callable[[Answer], T]
"""What is taken from an answer before its cursor is closed."""


class Link(Protocol):
    """A connection to the database that is opened when it is needed, and replaced when it is lost.

    Only one task at a time uses it. All raise what SQLAlchemy raises for the database's errors.
    A statement that is cancelled is broken off, and its transaction can only be rolled back.
    """

    in_transaction: bool
    """Whether a transaction is open, maybe with savepoints in it."""

    async def open(self) -> None:
        """Have a connection. Cancelled: there is none."""

    async def run(
        self, take: Take[T], sql: str, args: Sequence[Any], named: Mapping[str, Any]
    ) -> T:
        """Run a statement; outside of a transaction it is committed."""
        ...

    def bind_many(self, sql: str, rows: Iterable[Given]) -> Any:
        """A statement with all of ``rows``, for `run_many`; None if there are none."""

    async def run_many(self, bound: Any) -> None:
        """Run a statement for each of its rows, in the transaction that is open."""

    async def begin(self, options: Mapping[str, Any]) -> Any:
        """Begin a transaction, or a savepoint in it; for `end`."""

    async def end(self, begun: Any, commit: bool) -> None:
        """Commit what ``begin`` has returned, or roll it back. If a commit fails, it is rolled
        back.
        """

    async def close(self) -> None:
        """Roll back what is open, and give the connection back; without effect if there is none."""

    async def invalidate(self) -> None:
        """Close the connection, where no statement runs."""
