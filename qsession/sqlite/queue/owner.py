"""What the queue needs to know of a transaction that holds the ticket, or waits for it."""

from __future__ import annotations

import asyncio
from typing import Protocol

from qsession.waiting.callers import Caller
from qsession.waiting.ticket import Ticket


class Owner(Protocol):
    """A transaction, as the queue sees it."""

    last_statement: str

    @property
    def task(self) -> Caller | None:
        """Who used it last: a task, or a thread of a synchronous engine."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that used it last."""

    @property
    def ticket(self) -> Ticket | None:
        """The ticket that its present work has."""

    @property
    def wrote(self) -> bool: ...

    @property
    def locked_by_driver(self) -> bool:
        """Whether the application has SQLite's lock, by the driver's connection."""
        ...

    @property
    def running(self) -> bool:
        """Whether a statement of it runs, or waits."""

    @property
    def promised(self) -> bool:
        """Whether what it reads may not change before it writes: access ``write``."""

    @property
    def activity(self) -> int:
        """Changes whenever it has done something."""

    @property
    def site(self) -> int | None:
        """Its call site, if that is of interest."""

    def reads_for(self) -> tuple[float, float]:
        """Seconds that a statement which only reads has run for: by itself, and by the clock."""

    def taken_away(self, place: int | None, stalled: bool) -> None:
        """Take note that its ticket was taken away while it stood at ``place``.

        ``stalled``: it had kept others waiting for long.
        """

    def abandon(self, failure: Exception | None = None) -> None:
        """Roll it back without waiting, from any thread."""
