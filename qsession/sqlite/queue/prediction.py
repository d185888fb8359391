"""Prediction: what a transaction will probably do, judged by earlier ones of its call site.

It works like the branch prediction of a processor. The call site is the place where the coroutines
of the task wait. The text of the statement is not used, because libraries vary it. A wrong guess
costs time, never correctness.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from types import FrameType
from typing import Any

from greenlet import getcurrent

from qsession.sqlite.driver.recent import keep
from qsession.sqlite.queue.holder import MACHINERY
from qsession.waiting.callers import Call, Caller, current_call

LEARNT = 16
"""The number of transactions after which a call site is known."""
STALLS = 3
"""The number of tickets taken away for idling after which a call site is known sooner.

A single one may be a cold start: imports, or the first use of a template.
"""
FORGETS = 256
"""The number of transactions after which the counts of a call site are halved."""
AFTER_CONFLICT = 1_000
"""The number of transactions that take the ticket first after a conflict at their call site."""
FRAMES = 16
"""The number of innermost callers that identify a call site."""


class Guess(Enum):
    """What the transactions of a call site probably do."""

    READS = "only reads: does not take the ticket"
    VALIDATES = "sometimes writes, or idles before it writes: validated at its first write"
    TICKET_FIRST = "writes soon: takes the ticket before it reads"


@dataclass(slots=True)
class Record:
    """What the transactions of one call site did."""

    runs: int = 0
    wrote: int = 0
    idled: int = 0
    """How many idled between reading and writing, and lost the ticket or would have lost it."""
    forced: int = 0
    """How many more transactions take the ticket first, after a conflict."""

    def guess(self) -> Guess:
        """What the next transaction probably does."""
        if self.forced:
            return Guess.TICKET_FIRST
        if self.runs < LEARNT:
            return Guess.VALIDATES if self.idled >= STALLS else Guess.TICKET_FIRST
        if not self.wrote:
            return Guess.READS
        if 2 * self.wrote < self.runs or 2 * self.idled >= self.wrote:
            return Guess.VALIDATES
        return Guess.TICKET_FIRST

    def note(self, wrote: bool, idled: bool) -> None:
        """Count a transaction."""
        if self.runs >= FORGETS:
            self.runs, self.wrote, self.idled = self.runs // 2, -(-self.wrote // 2), self.idled // 2
        self.runs += 1
        self.wrote += wrote
        self.idled += idled
        self.forced -= self.forced > 0


class Prediction:
    """A bounded table of call sites."""

    def __init__(self) -> None:
        self._sites: OrderedDict[int, Record] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sites)

    def guess(self, site: int) -> Guess:
        """What a transaction that begins at ``site`` probably does."""
        record = self._sites.get(site)
        return Guess.TICKET_FIRST if record is None else record.guess()

    def note(self, site: int, wrote: bool, idled: bool) -> None:
        """Record what a transaction that began at ``site`` did."""
        self._record(site).note(wrote, idled)

    def note_stall(self, site: int) -> bool:
        """Record that a ticket was taken away. True if the site's next ones go without a ticket.

        Of these it is not seen whether they idle, as long as nobody waits for them. So a known site
        that stalls goes without a ticket for twice ``LEARNT`` of those that write.
        """
        record = self._record(site)
        record.idled += 1 if record.runs < LEARNT else LEARNT
        return record.guess() is Guess.VALIDATES

    def conflicted(self, site: int | None) -> bool:
        """Whether one of the last transactions of a call site ended in a conflict."""
        record = None if site is None else self._sites.get(site)
        return record is not None and record.forced > 0

    def note_conflict(self, site: int) -> None:
        """Record that a transaction that began at ``site`` ended in a conflict."""
        self._record(site).forced = AFTER_CONFLICT

    def _record(self, site: int) -> Record:
        """The record of a call site, which becomes the most recently used one."""
        record = self._sites.get(site) or Record()
        keep(self._sites, site, record)
        return record


def call_site(caller: Caller | None = None) -> int:
    """A key for the lines at which coroutines of this task wait. In a greenlet.

    What runs in the greenlet itself, as in ``run_sync``, is not looked at; nor is the code that
    runs the task, which for an eager one is the code that made it.

    Of a thread that calls, it is the lines of the application that it stands in. ``caller``: the
    running one, if it is known.
    """
    call = current_call()
    frame, outermost = _in_task(caller) if call is None else (_in_thread(call), None)
    seen: list[int] = []
    while frame is not None and len(seen) < 2 * FRAMES:
        seen += id(frame.f_code), frame.f_lasti
        frame = None if frame is outermost else frame.f_back
    return hash(tuple(seen))


def _in_task(task: Any) -> tuple[FrameType | None, FrameType | None]:
    """The innermost frame that counts, and the outermost one."""
    task = task or asyncio.current_task()
    parent = getcurrent().parent
    frame = None if parent is None else parent.gr_frame
    outermost = None if task is None else getattr(task.get_coro(), "cr_frame", None)
    # The innermost frame runs the greenlet. Its line changes after the call has waited once.
    if frame is not None and frame is not outermost:
        frame = frame.f_back
    return frame, outermost


def _in_thread(call: Call) -> FrameType | None:
    """The innermost frame that counts. SQLAlchemy's are many, and the same for everybody."""
    frame = call.frame
    while frame is not None and frame.f_code.co_filename.startswith(MACHINERY):
        frame = frame.f_back
    return frame
