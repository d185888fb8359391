"""Settings: everything a user may set on an engine, as one frozen object that checks itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from sqlalchemy.exc import ArgumentError

Access = Literal["read", "write", "auto"]
Durability = Literal["full", "normal", "strict"]
Reads = Literal["latest", "snapshot"]
Isolation = Literal["SERIALIZABLE", "REPEATABLE READ", "READ COMMITTED"]
ACCESSES = get_args(Access)
ISOLATIONS = get_args(Isolation)
READS = get_args(Reads)


def check_access(name: str, value: Any) -> Access:
    """``value`` if it is an access mode; else `ArgumentError`, which calls it ``name``."""
    if value not in ACCESSES:
        raise ArgumentError(f"{name}={value!r}: give one of 'read', 'write', 'auto'")
    return value  # type: ignore[no-any-return]


def check_reads(name: str, value: Any) -> Reads:
    """``value`` if it says what reads see; else `ArgumentError`, which calls it ``name``."""
    if value not in READS:
        raise ArgumentError(f"{name}={value!r}: give one of 'latest', 'snapshot'")
    return value  # type: ignore[no-any-return]


def check_priority(name: str, value: Any) -> int:
    """``value`` if it can be compared with other priorities; else `ArgumentError`."""
    if not isinstance(value, int):
        raise ArgumentError(f"{name}={value!r}: give a whole number; lower goes first")
    return value


@dataclass(frozen=True)
class Settings:
    """The settings of one engine. Times are in seconds.

    Raises `sqlalchemy.exc.ArgumentError`, which names the setting, the value and what is
    allowed.
    """

    access: Access = "auto"
    """What a transaction may assume: see docs/guarantees.md."""
    durability: Durability = "full"
    """``full``: an acknowledged commit survives a power cut. ``normal``: a crash of the process.
    ``strict``: as ``full``, and nothing is read before it is on disk."""
    reads: Reads = "latest"
    """What a SELECT of an ``auto`` transaction sees that has not written yet. ``latest``: the
    latest commit. ``snapshot``: what the first one of the transaction saw."""
    queue_timeout: float = 30.0
    """How long a writer, or who wants a connection to a server, waits for its turn before
    `QueueTimeout`."""
    max_waiting: int | None = None
    """How many may wait for that; one more gets `QueueFull`. ``None``: any number."""
    stall_after: float = 0.25
    """How long a holder may idle while others wait before they stop waiting for it."""
    warn_after: float = 5.0
    """How long a holder that has written may idle while others wait before it is logged."""
    wal_warn: int | None = 64 * 1024 * 1024
    """Bytes of WAL past which the reader that keeps it from being reused is logged, or ``off``."""
    inline: bool = True
    """Whether statements known to be short run on the event loop instead of in a thread."""
    max_hold: float | None = None
    """How long a transaction may hold the ticket before it is rolled back. ``None``: for ever."""
    min_size: int = 0
    """How many connections to a server are opened ahead and kept. SQLite's open when needed."""
    max_size: int | None = None
    """How many connections there may be: ``pool_size`` with no overflow. ``None``: as it says."""

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, check(value))
            except (TypeError, ValueError, KeyError):
                raise ArgumentError(f"{name}={value!r} is not allowed: {_ALLOWED[name]}") from None
        if self.max_size is not None and self.min_size > self.max_size:
            raise ArgumentError(
                f"min_size={self.min_size!r} is not allowed: at most max_size={self.max_size!r}"
            )

    def with_options(self, options: Mapping[str, Any]) -> Settings:
        """These settings, with those that ``options`` names changed; other keys are an error."""
        for name in options:
            if name not in NAMES:
                raise ArgumentError(f"{name!r} is not a setting of qsession: {', '.join(NAMES)}")
        return replace(self, **options) if options else self


NAMES = tuple(field.name for field in fields(Settings))


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
    "inline": _flag,
    "max_hold": _seconds_or_off,
    "min_size": _none_or_more,
    "max_size": _one_or_more_or_off,
}
_ALLOWED = {
    "access": "one of 'read', 'write', 'auto'",
    "durability": "one of 'full', 'normal', 'strict'",
    "reads": "one of 'latest', 'snapshot'",
    "queue_timeout": _TIME,
    "max_waiting": "a whole number, 0 or more, or None for any number",
    "stall_after": _TIME,
    "warn_after": _TIME,
    "wal_warn": "a number of bytes, or 'off'",
    "inline": "true or false",
    "max_hold": f"{_TIME}, or None for no limit",
    "min_size": "a whole number, 0 or more",
    "max_size": "a whole number, 1 or more, or None",
}
