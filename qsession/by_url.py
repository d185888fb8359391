"""Methods for engines that SQLAlchemy's ``create_async_engine`` makes of ``sqlite+qsession://``.

SQLAlchemy always uses the class ``AsyncEngine``: a dialect cannot name a subclass, and instances
take no attributes. So descriptors are set on that class. They work for engines of qsession only.
For any other engine, and for the class itself, the attribute does not exist.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine


class _OfOurs:
    """A method that exists only on engines for which ``is_ours`` is true."""

    def __init__(self, method: Callable[..., Any], is_ours: Callable[[AsyncEngine], bool]) -> None:
        self._method = method
        self._is_ours = is_ours

    def __get__(self, engine: AsyncEngine | None, owner: type[AsyncEngine]) -> Any:
        if engine is None or not self._is_ours(engine):
            raise AttributeError(
                f"{owner.__name__!r} object has no attribute {self._method.__name__!r}"
            )
        return MethodType(self._method, engine)


def offer(is_ours: Callable[[AsyncEngine], bool], *methods: Callable[..., Any]) -> None:
    """Add functions as methods to every ``AsyncEngine`` for which ``is_ours`` is true."""
    for method in methods:
        if method.__name__ not in vars(AsyncEngine):
            setattr(AsyncEngine, method.__name__, _OfOurs(method, is_ours))
