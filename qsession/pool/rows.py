"""SQLAlchemy rows for a statement that was run without SQLAlchemy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import Row
from sqlalchemy.engine.result import SimpleResultMetaData
from sqlalchemy.exc import NoSuchColumnError

if TYPE_CHECKING:
    from qsession.rows import AnyRow


class Answer(Protocol):
    """The result of a statement, for example SQLAlchemy's `CursorResult`."""

    @property
    def returns_rows(self) -> bool: ...

    @property
    def rowcount(self) -> int:
        """The number of changed rows; -1 if unknown."""

    def all(self) -> Sequence[AnyRow]: ...

    def first(self) -> AnyRow | None: ...


class Found:
    """The result of a driver with all rows fetched."""

    __slots__ = ("_description", "_rows", "rowcount")

    def __init__(self, rows: list[Any], description: Any, rowcount: int) -> None:
        self._rows = rows
        self._description = description
        self.rowcount = rowcount

    @property
    def returns_rows(self) -> bool:
        return self._description is not None

    def all(self) -> list[AnyRow]:
        columns = self._columns()
        index = columns._key_to_index
        return [Row(columns, None, index, row) for row in self._rows]

    def first(self) -> AnyRow | None:
        if not self._rows:
            return None
        columns = self._columns()
        return Row(columns, None, columns._key_to_index, self._rows[0])

    def _columns(self) -> _Columns:
        return _columns(tuple([column[0] for column in self._description]))


class _Columns(SimpleResultMetaData):
    """The metadata of rows. An unknown column name raises SQLAlchemy's usual error."""

    __slots__ = ()

    def _key_fallback(self, key: Any, err: Exception | None, raiseerr: bool = True) -> Any:
        if raiseerr:
            raise NoSuchColumnError(f"Could not locate column in row for column '{key}'") from err


@lru_cache(maxsize=1_000)
def _columns(names: tuple[str, ...]) -> _Columns:
    """The metadata for these columns. If a name occurs twice, it refers to the last one."""
    return _Columns(names)
