"""Settings: all settings of an engine, in one frozen object that checks its values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Literal, get_args

from sqlalchemy.exc import ArgumentError

Access = Literal["read", "write", "auto"]
Durability = Literal["full", "normal", "strict"]
Reads = Literal["latest", "snapshot"]
Checkpoints = Literal["own", "external"]
Isolation = Literal["SERIALIZABLE", "REPEATABLE READ", "READ COMMITTED"]
ACCESSES = get_args(Access)
ISOLATIONS = get_args(Isolation)
READS = get_args(Reads)


def check_access(name: str, value: Any) -> Access:
    """Return ``value`` if it is an access mode; else raise `ArgumentError` for ``name``."""
    if value not in ACCESSES:
        raise ArgumentError(f"{name}={value!r} is not allowed: use 'read', 'write' or 'auto'")
    return value  # type: ignore[no-any-return]


def check_reads(name: str, value: Any) -> Reads:
    """Return ``value`` if ``reads`` may be set to it; else raise `ArgumentError`."""
    if value not in READS:
        raise ArgumentError(f"{name}={value!r} is not allowed: use 'latest' or 'snapshot'")
    return value  # type: ignore[no-any-return]


def check_priority(name: str, value: Any) -> int:
    """Return ``value`` if it is a priority; else raise `ArgumentError`."""
    if not isinstance(value, int):
        raise ArgumentError(
            f"{name}={value!r} is not allowed: use a whole number; lower numbers go first"
        )
    return value


@dataclass(frozen=True)
class Settings:
    """The settings of one engine. Times are in seconds.

    Raises `sqlalchemy.exc.ArgumentError`, which names the setting, the value given and the
    values allowed.
    """

    access: Access = "auto"
    """The access mode of transactions: see docs/guarantees.md."""
    durability: Durability = "full"
    """``full``: a commit survives a power cut. ``normal``: it survives a crash of the process.
    ``strict``: as ``full``, and a SELECT returns only data that is on disk."""
    reads: Reads = "latest"
    """What a SELECT sees in an ``auto`` transaction that has not written. ``latest``: the latest
    commit. ``snapshot``: the same snapshot as the first SELECT of the transaction."""
    queue_timeout: float = 30.0
    """How long a writer waits for its turn, or a task for a connection to a server, before
    `QueueTimeout` is raised."""
    max_waiting: int | None = None
    """How many tasks may wait; the next one gets `QueueFull`. ``None``: no limit."""
    stall_after: float = 0.25
    """How long a holder that has only read may idle while others wait. Then it loses the ticket.

    In access ``auto`` the time is divided by the number of those who wait.
    """
    warn_after: float = 5.0
    """How long a holder that has written may idle while others wait before a warning is logged."""
    wal_warn: int | None = 64 * 1024 * 1024
    """The size of the WAL in bytes above which a long reader is logged, or with
    ``checkpoints="external"`` that nobody restarts it; ``off``: never."""
    checkpoints: Checkpoints = "own"
    """Who moves the WAL into the database file. ``own``: qsession. ``external``: another program,
    such as Litestream. Then qsession never runs a checkpoint: see docs/howto/litestream.md."""
    inline: bool = True
    """Whether statements known to be short run on the event loop instead of in a thread."""
    max_hold: float | None = None
    """How long a transaction may hold the ticket before it is rolled back. ``None``: no limit."""
    min_size: int = 0
    """How many connections to a server are opened in advance and kept. No effect on SQLite."""
    max_size: int | None = None
    """The largest number of connections: ``pool_size`` without overflow. ``None``: not set."""
    pooler: bool = False
    """Whether a pooler such as PgBouncer in transaction mode stands before PostgreSQL: then no
    statement is prepared for later. No effect elsewhere."""

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, check(value))
            except (TypeError, ValueError, KeyError):
                raise ArgumentError(f"{name}={value!r} is not allowed: {_ALLOWED[name]}") from None
        if self.max_size is not None and self.min_size > self.max_size:
            raise ArgumentError(
                f"min_size={self.min_size!r} is not allowed: it is larger than "
                f"max_size={self.max_size!r}"
            )

    def with_options(self, options: Mapping[str, Any]) -> Settings:
        """A copy with the settings in ``options`` changed; unknown names are an error."""
        for name in options:
            if name not in NAMES:
                raise _unknown(name)
        return replace(self, **options) if options else self


@lru_cache(maxsize=1_000)
def check_options(names: tuple[str, ...]) -> None:
    """Raise `ArgumentError` if a name begins as an execution option of qsession, and is none.

    Cached, because each transaction asks for the options that it was given.
    """
    for name in names:
        if name.startswith("qsession_") and name not in OPTIONS and name not in _OF_SESSIONS:
            raise ArgumentError(
                f"{name!r} is not an execution option of qsession. The options are "
                f"{', '.join(OPTIONS)}. Other settings belong to the engine"
            )


def check_spelling(names: Iterable[str]) -> None:
    """Raise `ArgumentError` if a parameter of a URL for SQLite looks like a misspelt setting.

    SQLAlchemy passes others to the driver or to SQLite, or warns that it ignores them.
    """
    for name in set(names) - _OF_SQLITE:
        from difflib import get_close_matches

        if get_close_matches(name.lower(), NAMES, cutoff=0.8):
            raise _unknown(name)


def _unknown(name: str) -> ArgumentError:
    return ArgumentError(
        f"{name!r} is not a setting of qsession. The settings are {', '.join(NAMES)}"
    )


NAMES = tuple(field.name for field in fields(Settings))
OPTIONS = ("qsession_access", "qsession_reads", "qsession_priority")
"""The execution options. ``reads`` and ``priority`` have no effect on a server."""
_OF_SESSIONS = ("qsession_isolation", "qsession_locks")
"""Execution options that sessions and integrations of qsession set."""
_OF_SQLITE = frozenset(
    (
        *("uri", "timeout", "isolation_level", "detect_types", "check_same_thread"),
        *("cached_statements", "mode", "cache", "vfs", "immutable", "nolock", "psow", "modeof"),
    )
)
"""Parameters of Python's driver, and of SQLite (https://sqlite.org/uri.html)."""
OF_SERVERS = ("min_size", "max_size", "pooler")
"""The settings that SQLite's dialect does not know."""


def _one_of(*allowed: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in allowed:
            raise ValueError
        return str(value)

    return check


def _seconds(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    seconds = float(value)
    if math.isnan(seconds) or seconds < 0:
        raise ValueError
    return seconds


def _off(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.lower() in ("", "none", "off"))


def _seconds_or_off(value: Any) -> float | None:
    return None if _off(value) else _seconds(value)


def _count_or_off(value: Any) -> int | None:
    if _off(value):
        return None
    count = int(value)
    if isinstance(value, bool) or count < 0 or (isinstance(value, float) and value != count):
        raise ValueError
    return count


def _none_or_more(value: Any) -> int:
    count = _count_or_off(value)
    if count is None:
        raise ValueError
    return count


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    return {"true": True, "1": True, "false": False, "0": False}[str(value).lower()]


def _count(value: Any) -> int:
    count = _none_or_more(value)
    if not count:
        raise ValueError
    return count


def _one_or_more_or_off(value: Any) -> int | None:
    return None if _off(value) else _count(value)


_TIME = "a number of seconds, 0 or more"
_CHECKS: dict[str, Callable[[Any], Any]] = {
    "access": _one_of(*ACCESSES),
    "durability": _one_of(*get_args(Durability)),
    "reads": _one_of(*get_args(Reads)),
    "queue_timeout": _seconds,
    "max_waiting": _count_or_off,
    "stall_after": _seconds,
    "warn_after": _seconds,
    "wal_warn": _count_or_off,
    "checkpoints": _one_of(*get_args(Checkpoints)),
    "inline": _flag,
    "max_hold": _seconds_or_off,
    "min_size": _none_or_more,
    "max_size": _one_or_more_or_off,
    "pooler": _flag,
}
_ALLOWED = {
    "access": "one of 'read', 'write', 'auto'",
    "durability": "one of 'full', 'normal', 'strict'",
    "reads": "one of 'latest', 'snapshot'",
    "queue_timeout": _TIME,
    "max_waiting": "a whole number, 0 or more, or None for no limit",
    "stall_after": _TIME,
    "warn_after": _TIME,
    "wal_warn": "a number of bytes, or 'off'",
    "checkpoints": "one of 'own', 'external'",
    "inline": "true or false",
    "max_hold": f"{_TIME}, or None for no limit",
    "min_size": "a whole number, 0 or more",
    "max_size": "a whole number, 1 or more, or None",
    "pooler": "true or false",
}
