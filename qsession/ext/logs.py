"""Logs: events of the queue as records of the standard logging, with their fields as ``extra``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from qsession import events

LEVELS: dict[type[events.Event], int] = {
    events.TicketWait: logging.WARNING,
    events.ConnectionWait: logging.WARNING,
    events.DiskWait: logging.WARNING,
    events.TicketHeld: logging.WARNING,
    events.TicketTaken: logging.INFO,
    events.Conflict: logging.INFO,
    events.Retry: logging.INFO,
    events.Synced: logging.WARNING,
}
FAILED = ("timeout", "full", "failed")
TEXTS: dict[type[events.Event], str] = {
    events.TicketWait: "%(database)s: waited %(seconds).3f s for the ticket: %(outcome)s",
    events.ConnectionWait: "%(database)s: waited %(seconds).3f s for a connection: %(outcome)s",
    events.DiskWait: "%(database)s: a commit waited %(seconds).3f s for the disk: %(outcome)s",
    events.TicketHeld: "%(database)s: %(task)s held the ticket for %(seconds).3f s (%(where)s)",
    events.TicketTaken: "%(database)s: %(task)s lost the ticket after %(seconds).3f s (%(where)s)",
    events.Conflict: "%(database)s: a conflict at %(statement)s",
    events.Retry: "%(database)s: attempt %(attempt)d failed; the next one in %(pause).3f s",
    events.Synced: "%(database)s: an fsync took %(seconds).3f s",
}


def log_events(
    logger: logging.Logger | None = None,
    *,
    waits: float = 1.0,
    holds: float = 1.0,
    fsyncs: float = 1.0,
    levels: Mapping[type[events.Event], int] | None = None,
) -> Callable[[], None]:
    """Log the events of all engines of this process. Returns a function that ends it.

    A wait, a hold or an fsync is logged from so many seconds on, and whenever it fails; all other
    events always are. The logger is ``qsession.events`` by default. ``levels`` changes `LEVELS`; a
    failed fsync, and a commit that waited for it, is an error at any rate. Each record has the
    fields of its event as attributes, and the name of the event as ``kind``.
    """
    log = logger or logging.getLogger("qsession.events")
    chosen = {**LEVELS, **(levels or {})}
    least: dict[type[events.Event], float] = {
        events.TicketWait: waits,
        events.ConnectionWait: waits,
        events.DiskWait: waits,
        events.TicketHeld: holds,
        events.Synced: fsyncs,
    }

    def note(event: events.Event) -> None:
        kind, fields = type(event), vars(event)
        failed = fields.get("outcome") in FAILED or fields.get("failed", False)
        if not failed and fields.get("seconds", 0.0) < least.get(kind, 0.0):
            return
        broken = failed and kind in (events.DiskWait, events.Synced)
        level = logging.ERROR if broken else chosen[kind]
        if log.isEnabledFor(level):
            log.log(level, TEXTS[kind], fields, extra={"kind": kind.__name__, **fields})

    return events.subscribe(note)
