"""What the user asked for, checked before anything is opened."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sqlalchemy import URL, MetaData, exc

from qsession.transfer.events import Listener
from qsession.transfer.schema import load_metadata
from qsession.transfer.untouched import sqlite_file
from qsession.urls import place_of, with_driver

_KNOWN = frozenset(("sqlite", "postgresql", "mysql", "mariadb"))


@dataclass(frozen=True)
class Options:
    """The arguments of `copy`, which says what they mean.

    Raises :class:`sqlalchemy.exc.ArgumentError`.
    """

    metadata: Any
    """A ``MetaData`` or None; whatever else may name one is replaced by it."""
    resume: bool
    replace: bool
    verify: bool
    check: bool
    zone: Any
    """A ``tzinfo`` or None; a name is replaced by it."""
    progress: Listener | None

    def __post_init__(self) -> None:
        if self.check and (self.resume or self.verify):
            raise exc.ArgumentError(
                "--check writes nothing: do not combine it with --resume or --verify"
            )
        if self.metadata is not None:
            object.__setattr__(self, "metadata", _load(self.metadata))
        object.__setattr__(self, "zone", _zone_of(self.zone))


def _load(named: Any) -> MetaData:
    """The MetaData of the models, whose module may raise anything when it is imported."""
    try:
        return load_metadata(named)
    except exc.ArgumentError:
        raise
    except (Exception, SystemExit) as error:
        raise exc.ArgumentError(
            f"{named!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error


def _zone_of(name: str | tzinfo | None) -> tzinfo | None:
    if name is None or isinstance(name, tzinfo):
        return name
    if name.upper() == "UTC":
        return timezone.utc
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise exc.ArgumentError(
            f"there is no time zone {name!r}: use, for example, UTC or Europe/Berlin"
        ) from None


def url_of(given: str | URL) -> URL:
    """The URL of a database, with the driver that `create_pool` would take for it.

    Raises :class:`sqlalchemy.exc.ArgumentError`.
    """
    try:
        return with_driver(given)
    except ValueError as error:  # the port is no number
        raise exc.ArgumentError(f"this is not a database URL: {error}") from None


def refuse_wrong_urls(source: URL, target: URL) -> None:
    """Raise :class:`sqlalchemy.exc.ArgumentError` if there can be nothing to copy.

    Two names of one database on a server are found out when it is open.
    """
    for url in (source, target):
        if url.get_backend_name() not in _KNOWN:
            raise exc.ArgumentError(
                f"qsession copy knows SQLite, PostgreSQL, MySQL and MariaDB, not {url.drivername}"
            )
        if url.get_backend_name() == "sqlite" and sqlite_file(url) is None:
            raise exc.ArgumentError("a database in memory cannot be copied: it has no URL")
        if url.get_backend_name() in ("mysql", "mariadb") and not url.database:
            raise exc.ArgumentError(f"the URL of {place_of(url)} names no database: append /name")
    file, other = sqlite_file(source), sqlite_file(target)
    if file is None:
        return
    if not file.is_file():
        raise exc.ArgumentError(f"there is no database {str(file)!r} to copy")
    if other is not None and other.exists() and other.samefile(file):
        raise exc.ArgumentError("source and target are the same database")
