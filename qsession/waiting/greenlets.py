"""Reusable greenlets.

For each new greenlet the system maps and unmaps memory, which takes longer than many statements.
SQLAlchemy's :func:`~sqlalchemy.util.greenlet_spawn` creates one for each call.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from greenlet import GreenletExit, getcurrent, greenlet

T = TypeVar("T")

KEPT = 100
"""The largest number of idle greenlets in a thread."""


class KeptGreenlet(greenlet):
    """Runs one function after another; between them it is suspended in :meth:`run`.

    Invariant: an idle greenlet has no reference to the last function or its result.
    """

    __sqlalchemy_greenlet_provider__ = True  # SQLAlchemy's await_only() requires it
    parent: greenlet
    busy = False
    call: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]] | None = None
    value: Any = None
    failure: BaseException | None = None
    qsession_mark: object | None = None
    """A mark that the present function has set on it."""

    def run(self) -> None:
        while True:
            assert self.call is not None
            (function, args, kw), self.call = self.call, None
            try:
                self.value = function(*args, **kw)
            except GreenletExit:  # no task waits for it any more
                raise
            except BaseException as error:
                self.failure = error
            del function, args, kw
            self.busy = False
            self.parent.switch()


class _Idle(threading.local):
    """The idle greenlets of a thread. A greenlet cannot move to another thread."""

    def __init__(self) -> None:
        self.greenlets: list[KeptGreenlet] = []


_idle = _Idle()


async def spawn(function: Callable[..., T], *args: Any, **kw: Any) -> T:
    """Run a function that may call ``await_only()``, as SQLAlchemy's ``greenlet_spawn`` does.

    Raises the function's errors. A cancellation is raised in the function, where it waits.
    """
    driver, idle = getcurrent(), _idle.greenlets
    kept = idle.pop() if idle else KeptGreenlet()
    kept.parent, kept.gr_context = driver, driver.gr_context
    kept.call, kept.busy = (function, args, kw), True
    awaited = kept.switch()
    while kept.busy and not kept.dead:
        try:
            found = await awaited
        except BaseException:
            kept.parent = getcurrent()  # an eager task goes on elsewhere than it has begun
            awaited = kept.throw(*sys.exc_info())
        else:
            kept.parent = getcurrent()
            awaited = kept.switch(found)
    if kept.dead:
        return awaited  # type: ignore[no-any-return]
    value, failure = kept.value, kept.failure
    kept.value = kept.failure = kept.gr_context = kept.qsession_mark = None
    if len(idle) < KEPT and kept.parent.parent is None:  # an idle greenlet keeps its parent alive
        idle.append(kept)
    if failure is not None:
        try:
            raise failure
        finally:
            del failure  # its traceback refers to this frame
    return value  # type: ignore[no-any-return]
