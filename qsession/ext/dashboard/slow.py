"""Slow places: lines of the application that held the ticket for long, lost it, or failed.

They are of this process only, and are collected from `qsession.events` while somebody looks.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from dataclasses import asdict, dataclass
from typing import Any

from qsession import events

KEPT = 200
"""Places that are remembered; the one that was quiet for longest is forgotten first."""
_CUT = 500


@dataclass
class Place:
    """What has happened at one line, with one statement."""

    kind: str
    """``held`` for long, ``taken`` away, ``conflict``, ``timeout`` or ``full``."""
    statement: str
    where: str
    times: int = 0
    longest: float = 0.0
    """Seconds that the ticket was held, or that it was waited for."""
    total: float = 0.0
    last: float = 0.0
    """When it happened last, in seconds since 1970."""


class SlowPlaces:
    """Collects events, and groups them by place.

    `observe` may be called in any thread, and only appends; `grouped` does the work.
    """

    def __init__(self, slow: float) -> None:
        self._slow = slow
        self._new: deque[tuple[float, events.Event]] = deque(maxlen=10_000)
        self._places: OrderedDict[tuple[str, str, str, str], Place] = OrderedDict()

    def observe(self, event: events.Event) -> None:
        """Take note of an event if it is of interest."""
        if isinstance(event, events.TicketHeld):
            noted = event.seconds >= self._slow
        elif isinstance(event, (events.TicketWait, events.ConnectionWait)):
            noted = event.outcome in ("timeout", "full")
        else:
            noted = isinstance(event, (events.TicketTaken, events.Conflict))
        if noted:
            self._new.append((time.time(), event))

    def grouped(self, database: str, limit: int) -> list[dict[str, Any]]:
        """The places of a database that have cost most, at most ``limit``."""
        while self._new:
            self._add(*self._new.popleft())
        found = [place for key, place in self._places.items() if key[0] == database]
        found.sort(key=lambda place: (place.total, place.times), reverse=True)
        return [asdict(place) for place in found[:limit]]

    def _add(self, at: float, event: events.Event) -> None:
        kind = {events.TicketHeld: "held", events.TicketTaken: "taken"}.get(type(event), "conflict")
        kind = str(getattr(event, "outcome", kind))
        statement = str(getattr(event, "statement", ""))[:_CUT]
        where = str(getattr(event, "where", ""))[:_CUT]
        key = (event.database, kind, statement, where)
        place = self._places.pop(key, None) or Place(kind, statement, where)
        seconds = float(getattr(event, "seconds", 0.0))
        place.times += 1
        place.total += seconds
        place.longest = max(place.longest, seconds)
        place.last = at
        self._places[key] = place
        if len(self._places) > KEPT:
            self._places.popitem(last=False)
