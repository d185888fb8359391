"""Hosts: several servers in one URL, of which some may not answer.

A machine that hangs, or that was switched off, does not refuse a connection. asyncpg waits for it
until the time for all hosts is over, and psycopg for two minutes. So each host is tried by itself,
for some seconds, and the one that has served last comes first.
"""

from __future__ import annotations

import asyncio
from typing import Any

HOST_PATIENCE = 5
"""Seconds within which a host must open a connection, unless the application sets a limit."""
_LIMITS = {"asyncpg": "timeout", "psycopg": "connect_timeout", "psycopg_async": "connect_timeout"}
"""The drivers, and the argument that says how many seconds they wait for a host."""
_ATTRIBUTES = "target_session_attrs"


def try_each_host(dialect: Any) -> None:
    """Let a dialect of SQLAlchemy try hosts in this way, if it is one of PostgreSQL's."""
    if dialect.name == "postgresql" and dialect.driver in _LIMITS:
        dialect.connect = Hosts(dialect).connect


class Hosts:
    """Stands before ``connect`` of a dialect."""

    def __init__(self, dialect: Any) -> None:
        self._connect = dialect.connect
        self._limit = _LIMITS[dialect.driver]
        self._dbapi = dialect.loaded_dbapi
        self._first: dict[object, int] = {}
        """Which host comes first, for each list of hosts: replicas have lists of their own."""

    def connect(self, *args: Any, **kw: Any) -> Any:
        """As in SQLAlchemy. If no host can be used, the driver's ``OperationalError`` names all.

        If cancelled, the next call begins with the next host.
        """
        hosts, ports = _listed(kw.get("host")), _listed(kw.get("port"))
        if len(ports) < 2:
            ports = len(hosts) * (ports or [None])
        # With these, the driver chooses the order, or has a third list.
        special = kw.keys() & {"load_balance_hosts", "hostaddr", "dsn", "service"}
        if len(hosts) < 2 or len(hosts) != len(ports) or special:
            return self._connect(*args, **kw)
        places = list(zip(hosts, ports, strict=True))
        first = self._first.get(key := tuple(places), 0)
        kw.setdefault(self._limit, HOST_PATIENCE)
        failures = []
        for wanted in _each_attribute(kw.get(_ATTRIBUTES)):
            for number in range(first, first + len(places)):
                host, port = places[number % len(places)]
                one = {**kw, **wanted, "host": host}
                if port is not None:
                    one["port"] = port
                try:
                    connection = self._connect(*args, **one)
                except Exception as error:
                    failures.append(f"{host}:{port or ''} {_told(error, kw[self._limit])}")
                    last = error
                except BaseException:
                    self._first[key] = (number + 1) % len(places)
                    raise
                else:
                    self._first[key] = number % len(places)
                    return connection
        raise self._dbapi.OperationalError(
            f"None of the servers can be used. {'. '.join(failures)}"
        ) from last


def _each_attribute(wanted: Any) -> list[dict[str, Any]]:
    """What to ask of all hosts first, and then again of all."""
    if wanted == "prefer-standby":
        return [{_ATTRIBUTES: "standby"}, {_ATTRIBUTES: "any"}]
    return [{}]


def _listed(value: Any) -> list[Any]:
    """asyncpg has lists, and libpq commas."""
    if isinstance(value, str):
        return value.split(",")
    return list(value) if isinstance(value, list | tuple) else [value] if value else []


def _told(error: Exception, seconds: float) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return f"did not answer within {seconds} s"
    return f"failed: {error}"
