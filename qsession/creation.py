"""What all ways of making an engine have in common: our settings, and SQLAlchemy's function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.exc import ArgumentError

from qsession.config import Settings

if TYPE_CHECKING:
    from sqlalchemy import URL

_F = TypeVar("_F", bound=Callable[..., Any])


def wrapped(own: _F, room: ModuleType) -> _F:
    """A function of SQLAlchemy, or what instrumentation has put around it by now.

    Instrumentation may begin, and end, after this package was imported. Anything else that is found
    in the place of the function may be ours, as a drop-in, and would call itself.
    """
    now: _F = getattr(room, own.__name__)
    return now if inspect.unwrap(now) is inspect.unwrap(own) else own


def take_settings(url: URL, kw: dict[str, Any], names: Iterable[str]) -> tuple[Settings, URL]:
    """Remove the settings ``names`` from the keywords and the URL, and return them."""
    in_url = {name: url.query[name] for name in names if name in url.query}
    in_kw = {name: kw.pop(name) for name in names if name in kw}
    settings = Settings().with_options({**in_url, **in_kw})
    return settings, url.difference_update_query(in_url)


def pool_size(max_size: int | None, kw: dict[str, Any]) -> dict[str, Any]:
    """The keywords, with ``max_size`` expressed as SQLAlchemy's ``pool_size``."""
    if max_size is None:
        return kw
    if "pool_size" in kw or "max_overflow" in kw:
        raise ArgumentError("pass either max_size, or pool_size and max_overflow, not both")
    return {**kw, "pool_size": max_size, "max_overflow": 0}
