"""Owner: the interface of a transaction that holds the ticket or waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from types import FrameType
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
        """The ticket of its present work."""

    @property
    def stack(self) -> Collection[FrameType]:
        """Where a thread stood when it took the ticket: frames of the application."""
        ...

    @property
    def wrote(self) -> bool: ...

    @property
    def locked_by_driver(self) -> bool:
        """Whether the application has SQLite's lock through the driver's connection."""
        ...

    @property
    def running(self) -> bool:
        """Whether a statement of it runs or waits."""

    @property
    def promised(self) -> bool:
        """Whether its reads must not change before it writes: access ``write``."""

    @property
    def insists(self) -> bool:
        """Whether it may idle for ``stall_after`` before its first write, however many wait."""

    @property
    def activity(self) -> int:
        """Changes after each action of the transaction."""

    @property
    def site(self) -> int | None:
        """Its call site, if the prediction uses it."""

    def reads_for(self) -> tuple[float, float]:
        """How long the present SELECT has run: processor time and clock time, in seconds."""

    def taken_away(self, place: int | None, stalled: bool) -> None:
        """Note that its ticket was taken away while its task waited at ``place``.

        ``stalled``: whether it had kept others waiting for long.
        """

    def abandon(self, failure: Exception | None = None) -> None:
        """Roll it back without waiting, from any thread."""
