"""Source: where an observation learns of commits, and which tables its statements read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from sqlalchemy import TableClause, exc, inspect
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapper

from qsession.waiting.subscription import Subscription, Tables


class Sent(NamedTuple):
    """A statement as it was sent to the driver."""

    sql: str
    parameters: Any


class Source(Protocol):
    """The commits to one database. Each observation has its own source."""

    async def subscribe(self) -> Subscription:
        """A new subscription, which is told of every commit from now on."""
        ...

    async def read_by(self, connection: AsyncConnection, sent: Sequence[Sent]) -> Tables | None:
        """The tables that statements read; None if every commit counts."""
        ...

    async def named(self, connection: AsyncConnection, names: Tables) -> Tables | None:
        """The same tables, if commits to them can be told apart; None if every commit counts."""
        ...

    def begin(self, anything: bool) -> None:
        """A read begins. ``anything``: whether the schema may have changed since the last one."""
        ...

    def leave(self, subscription: Subscription) -> None:
        """End a subscription. Any thread."""
        ...


def names_of(tables: Iterable[object]) -> Tables:
    """The names of tables, which are given as `Table`, mapped class or name, in lower case.

    Raises `sqlalchemy.exc.ArgumentError` for anything else.
    """
    names: set[str] = set()
    for each in tables:
        found = inspect(each, raiseerr=False) if not isinstance(each, str) else None
        if isinstance(each, str):
            names.add(each)
        elif isinstance(each, TableClause):
            names.add(each.name)
        elif isinstance(found, Mapper):
            names |= {str(getattr(table, "name", "")) for table in found.tables}
        else:
            raise exc.ArgumentError(f"{each!r} is not a table, a mapped class or a table's name")
    return frozenset(name.lower() for name in names)
