"""Events: what the queue did, told to those who subscribe.

Integrations for metrics, traces and logs are built on them. Without a subscriber no event is made.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from threading import get_ident
from typing import Protocol

logger = logging.getLogger("qsession")


@dataclass(frozen=True)
class Event:
    """What all events have."""

    database: str
    """The path of the file; on a server, its product, host and name."""
    at: float = field(default_factory=time.time, kw_only=True)
    """When it happened, as ``time.time()`` has it; of a wait, when it was over.

    A lone write of a pool tells of its wait for the ticket together with that for the disk.
    """


@dataclass(frozen=True)
class TicketWait(Event):
    """A transaction has waited for its turn to write. Sent in its task, when the wait is over."""

    seconds: float
    outcome: str
    """``granted``; ``timeout`` (`QueueTimeout`); ``full`` (`QueueFull`); ``cancelled``; or
    ``dismissed``: it reads without the ticket.
    """
    statement: str
    """The statement that had to wait."""


@dataclass(frozen=True)
class ConnectionWait(Event):
    """A task has waited for a connection to a server. Sent in this task, when the wait is over."""

    seconds: float
    outcome: str
    """``granted``; ``timeout`` (`QueueTimeout`); ``full`` (`QueueFull`); or ``cancelled``."""


@dataclass(frozen=True)
class DiskWait(Event):
    """A commit has waited until it was on disk. Sent in its task, when the wait is over."""

    seconds: float
    outcome: str
    """``confirmed``; ``failed`` (`DurabilityError`); or ``cancelled``: the disk will confirm it
    later, but no task waits for that.
    """


@dataclass(frozen=True)
class TicketHeld(Event):
    """A transaction has given the ticket back, or it was taken away. Any thread."""

    seconds: float
    wrote: bool
    """Whether it had gone on to write, so that nobody could take the ticket away."""
    task: str
    statement: str
    """Its last statement."""
    where: str
    """The line of the application that ended it; empty below `LONG` seconds."""


@dataclass(frozen=True)
class TicketTaken(Event):
    """The ticket was taken away from a transaction that had only read. Any thread."""

    seconds: float
    """How long it had been held."""
    task: str
    statement: str
    where: str
    """The line of the application at which its task waits."""


@dataclass(frozen=True)
class Conflict(Event):
    """A transaction could not be continued, because what it had read was changed. In its task."""

    statement: str


@dataclass(frozen=True)
class Retry(Event):
    """`run`, or an integration, works again after a conflict. In its task, before the pause."""

    attempt: int
    """The number of the attempt that has failed, from 1."""
    pause: float
    """Seconds until the next attempt."""


@dataclass(frozen=True)
class Synced(Event):
    """An fsync of the WAL has ended. Sent in the thread that syncs."""

    seconds: float
    failed: bool


LONG = 0.01
"""Seconds from which on a `TicketHeld` says where it was given back."""


class Observer(Protocol):
    """A function that takes events.

    It is called where the event happens, so it must be quick, and must not wait. An exception
    in it is logged, and changes nothing. What happens while Python collects garbage is not told:
    the collector may have interrupted code that has a lock which the observer takes.
    """

    def __call__(self, event: Event, /) -> None: ...


observers: list[Observer] = []
"""All subscribers. The queue looks here before it makes an event.

It is changed by one operation at a time, which Python does not interrupt, so it needs no lock.
"""


def subscribe(observer: Observer) -> Callable[[], None]:
    """Send the events of all engines of this process to ``observer``.

    Returns a function that ends the subscription. Any thread may call both.
    """
    if _note_collection not in gc.callbacks:
        gc.callbacks.append(_note_collection)

    def told(event: Event, /) -> None:
        """Belongs to this subscription alone: a function may be subscribed twice."""
        observer(event)

    observers.append(told)

    def unsubscribe() -> None:
        with suppress(ValueError):  # it has ended already
            observers.remove(told)

    return unsubscribe


_collects = 0
"""The thread that collects garbage now; 0 if none does."""


def _note_collection(phase: str, _: object) -> None:
    global _collects  # noqa: PLW0603 - only one thread collects at a time
    _collects = get_ident() if phase == "start" else 0


def emit(event: Event) -> None:
    """Send an event to all subscribers."""
    if _collects == get_ident():
        return
    for observer in tuple(observers):
        try:
            observer(event)
        except Exception:
            logger.exception("A subscriber of qsession.events failed with %r", event)
