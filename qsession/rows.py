"""The type of a row whose columns are not known to the type checker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Row

if TYPE_CHECKING:
    from typing import TypeAlias

    from typing_extensions import Unpack

    AnyRow: TypeAlias = Row[Unpack[tuple[Any, ...]]]
    """Of any number of columns. To SQLAlchemy 2.1, ``Row[Any]`` is a row of one column."""
