"""What the user asked for, checked before anything is opened."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sqlalchemy import URL, MetaData, exc

from .events import Listener
from .reading import sqlite_file


@dataclass(frozen=True)
class Options:
    """The arguments of `copy`, which says what they mean."""

    metadata: MetaData | None
    resume: bool
    replace: bool
    verify: bool
    check: bool
    zone: tzinfo | None
    progress: Listener | None

    def __post_init__(self) -> None:
        if self.check and (self.resume or self.replace or self.verify):
            raise exc.ArgumentError("check writes nothing: give it without resume, replace, verify")


def zone_of(name: str | None) -> tzinfo | None:
    """The time zone of this name. Raises :class:`sqlalchemy.exc.ArgumentError`."""
    if name is None:
        return None
    if name.upper() == "UTC":
        return timezone.utc
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise exc.ArgumentError(f"no time zone {name!r}: say UTC, or Europe/Berlin") from None


def refuse_wrong_urls(source: URL, target: URL) -> None:
    """Raise :class:`sqlalchemy.exc.ArgumentError` if there can be nothing to copy."""
    for url in (source, target):
        if url.get_backend_name() == "sqlite" and sqlite_file(url) is None:
            raise exc.ArgumentError("a database in memory cannot be copied by its URL")
    file = sqlite_file(source)
    if file is not None and not file.is_file():
        raise exc.ArgumentError(f"there is no database {str(file)!r} to copy")
    if _place(source) == _place(target):
        raise exc.ArgumentError("source and target are the same database")


def _place(url: URL) -> tuple[Any, ...]:
    file = sqlite_file(url)
    if file is not None:
        return "sqlite", file.resolve()
    return url.get_backend_name(), url.host, url.port, url.database
