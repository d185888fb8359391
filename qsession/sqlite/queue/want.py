"""Want: how a statement asks for the ticket."""

from __future__ import annotations

from enum import Enum


class Want(Enum):
    """How a statement asks for the ticket."""

    NO = "not at all"
    WHILE_IT_MOVES = "waits; goes on without once the queue has not moved for stall_after"
    WAIT = "waits for queue_timeout"
    AT_ONCE = "takes it if it is free, or fails"
