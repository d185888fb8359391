"""What an engine has that SQLAlchemy's own ``create_async_engine`` makes of ``sqlite+qsession://``.

SQLAlchemy calls the class ``AsyncEngine`` directly: a dialect cannot name a subclass, and instances
take no attributes. So the class is given the names, by descriptors that answer for engines of ours
alone. For every other engine, and for the class itself, there is no such attribute, as before.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine


class _OfOurs:
    """A method that an engine has if ``is_ours`` says so."""

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
    """Let an ``AsyncEngine`` for which ``is_ours`` is true have these functions as methods."""
    for method in methods:
        if method.__name__ not in vars(AsyncEngine):
            setattr(AsyncEngine, method.__name__, _OfOurs(method, is_ours))
