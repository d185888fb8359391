"""Database URLs: the accepted forms, and the driver that each one gets."""

from __future__ import annotations

from importlib.util import find_spec

from sqlalchemy import URL, make_url

_ENCODE = "In a password, write @ : / ? # % as %40 %3A %2F %3F %23 %25"

_POSTGRESQL = ("postgresql+asyncpg", "postgresql+psycopg")
_DRIVERS = {
    "sqlite": ("sqlite+qsession",),
    "sqlite+aiosqlite": ("sqlite+qsession",),
    "postgres": _POSTGRESQL,
    "postgresql": _POSTGRESQL,
    "mysql": ("mysql+asyncmy", "mysql+aiomysql"),
    "mariadb": ("mariadb+asyncmy", "mariadb+aiomysql"),
}
"""The asyncio drivers for a URL without one, such as hosting services give out."""


def parsed(given: str | URL) -> URL:
    """The URL.

    Raises `sqlalchemy.exc.ArgumentError`, or ``ValueError`` if the port is not a number. The
    message does not show the port, which may be part of a password.
    """
    try:
        return make_url(given)
    except ValueError:
        raise ValueError(f"the port is not a number. {_ENCODE}") from None


def with_driver(given: str | URL) -> URL:
    """The URL with an asyncio driver. A URL that names another driver keeps it.

    The first installed driver is chosen; if none is installed, the first one, so that the import
    error names it. Raises what `parsed` raises.
    """
    url = parsed(given)
    drivers = _DRIVERS.get(url.drivername)
    if drivers is not None:
        installed = (each for each in drivers if len(drivers) == 1 or find_spec(_module(each)))
        url = url.set(drivername=next(installed, drivers[0]))
    if url.drivername == "postgresql+asyncpg" and "sslmode" in url.query:
        # asyncpg's name for libpq's sslmode is ssl; the values are the same
        ssl = url.query["sslmode"]
        url = url.difference_update_query(["sslmode"]).update_query_dict({"ssl": ssl})
    return url


def _module(drivername: str) -> str:
    return drivername.rpartition("+")[2]


_PRODUCTS = {
    "postgresql": "PostgreSQL",
    "mysql": "MySQL or MariaDB",  # the URL does not tell which
    "mariadb": "MariaDB",
}


def place_of(url: URL) -> str:
    """The database that a URL names, for a message: without user, password and parameters."""
    backend = url.get_backend_name()
    if backend == "sqlite":
        return f"the file {url.database!r}"
    host = url.host or url.query.get("host") or url.query.get("unix_socket") or "the default host"
    at = host if isinstance(host, str) else ", ".join(host)
    at = f"[{at}]" if ":" in at and url.host else at
    return f"{_PRODUCTS.get(backend, backend)} at {at}{f':{url.port}' if url.port else ''}"


def database_at(url: URL) -> str:
    """The database of a server, in events: ``PostgreSQL at db.example:5432/shop``."""
    return f"{place_of(url)}/{url.database or ''}"
