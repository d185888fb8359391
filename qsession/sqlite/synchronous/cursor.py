"""The cursors of a synchronous engine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar

from qsession.sqlite.cursor import Connected, RoutedCursor, StreamCursor

T = TypeVar("T")


class Waiting(Connected, Protocol):
    """A connection whose thread may wait."""

    def wait_for(self, function: Callable[[], T]) -> T: ...


class SynchronousCursor(RoutedCursor):
    """A cursor whose statements run on the loop in the background."""

    _connection: Waiting

    def run(self, sql: str, parameters: Any, context: Any = None, many: bool = False) -> None:
        self._connection.wait_for(partial(super().run, sql, parameters, context, many))


class SynchronousStream(StreamCursor):
    """A cursor that fetches its rows on demand, on the loop in the background."""

    _connection: Waiting

    def run(self, sql: str, parameters: Any, context: Any = None, many: bool = False) -> None:
        self._connection.wait_for(partial(super().run, sql, parameters, context, many))

    def _fetch(self, size: int | None) -> None:
        self._connection.wait_for(partial(super()._fetch, size))
