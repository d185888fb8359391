"""Want: how a statement asks for the ticket."""

from __future__ import annotations

from enum import Enum


class Want(Enum):
    """How a statement asks for the ticket."""

    NO = "not at all"
    WHILE_IT_MOVES = "waits; continues without it if the queue does not move for stall_after"
    WAIT = "waits for up to queue_timeout"
    AT_ONCE = "takes it if it is free, else fails"
