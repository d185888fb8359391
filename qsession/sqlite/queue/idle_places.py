"""IdlePlaces: the lines of the application where holders of the ticket idle for long.

A handler that calls another service between reading and writing does so each time it runs. The
first such transaction keeps the ticket until ``stall_after`` is over. Later ones lose the ticket as
soon as they wait at that line. If one of them continues sooner, the line leaves the table.
"""

from __future__ import annotations

from collections import OrderedDict

from qsession.sqlite.driver.recent import keep
from qsession.waiting.callers import Caller, frames_of


class IdlePlaces:
    """A bounded table of places."""

    def __init__(self) -> None:
        self._places: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._places)

    def note(self, place: int | None, long: bool) -> None:
        """Record whether a holder idled at ``place`` for long."""
        if place is None:
            return
        if long:
            keep(self._places, place, None)
        else:
            self._places.pop(place, None)

    def __contains__(self, place: int | None) -> bool:
        return place in self._places


def place_of(task: Caller | None) -> int | None:
    """A key for the lines at which a caller waits; None if it is not known. In its loop."""
    if task is None or task.done():
        return None
    return hash(tuple((id(code), line) for code, line in frames_of(task)))
