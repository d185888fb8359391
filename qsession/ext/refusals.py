"""Refusals: which errors of the queue a web framework answers as 409 or 503, and in which words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from qsession.errors import EngineDraining, QueueFull, QueueTimeout
from qsession.session.retry import group_class, is_conflict


class Refusal(NamedTuple):
    """An answer that says to try again."""

    status: int
    detail: str


CONFLICT = Refusal(409, "Somebody else has changed the same data: try again.")
BUSY = Refusal(503, "Too busy just now: try again later.")


def refusal_for(error: BaseException) -> Refusal | None:
    """The answer to an error: `CONFLICT`, also inside the errors of libraries, or `BUSY`. None for
    an error that is no matter of the queue. Of a group, as of several tasks, all have to be one.
    """
    if is_conflict(error):
        return CONFLICT
    busy = QueueFull, QueueTimeout, EngineDraining
    return BUSY if all(isinstance(each, busy) for each in _members(error)) else None


def _members(error: BaseException) -> Iterator[BaseException]:
    """The errors of a group, and of the groups in it; else the error itself."""
    if not isinstance(error, group_class()):
        yield error
        return
    for each in error.exceptions:
        yield from _members(each)
