"""Prediction: will a transaction that begins with this SELECT write?

As a processor predicts branches: by what the same text did before, and, where it begins writers as
well as readers, by what it did at the same place of the application. A wrong guess costs time or a
ConflictError, never correctness.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from greenlet import getcurrent

from qsession.sqlite.transaction.recent import keep

READ_ONLY_RUNS = 16
"""So many transactions in a row that began with a text and wrote nothing make it a reader."""
FRAMES = 16
"""Callers that tell one call site from another, from the innermost on."""


class Prediction:
    """How often in a row each text, and each call site, has begun one that wrote nothing.

    A call site that has written counts up from below zero, and stays at zero.
    """

    def __init__(self) -> None:
        self._runs: OrderedDict[int, int] = OrderedDict()
        self._sites: OrderedDict[int, int] = OrderedDict()
        self._refused: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._runs)

    def knows(self, text: str) -> bool:
        """Whether ``text`` has begun a reader, so that its call sites are of interest."""
        return hash(text) in self._runs

    def writes(self, text: str, site: int | None = None) -> bool:
        """Whether a transaction that begins with ``text``, at ``site``, is taken for a writer.

        It is not where the site has never written, and read 16 times; nor by the text, unless the
        site has written and not read 16 times since.
        """
        here = 0 if site is None else self._sites.get(site, 0)
        by_text = self._runs.get(hash(text), 0) >= READ_ONLY_RUNS
        return not (here >= READ_ONLY_RUNS or (by_text and here >= 0))

    def note(self, text: str, wrote: bool, site: int | None = None) -> None:
        """Remember what a transaction that began with ``text``, at ``site``, has done."""
        key = hash(text)
        runs = self._runs.get(key)
        if not wrote:
            keep(self._runs, key, min((runs or 0) + 1, READ_ONLY_RUNS))
        elif runs is not None:
            keep(self._runs, key, 0)
        if site is None:
            return
        here = self._sites.get(site)
        if wrote:
            keep(self._sites, site, -READ_ONLY_RUNS)
        elif here != 0:
            keep(self._sites, site, min((here or 0) + 1, READ_ONLY_RUNS))
        else:
            keep(self._sites, site, 0)

    def note_refused(self, text: str) -> None:
        """Remember a text that a reader refused, because it writes."""
        keep(self._refused, hash(text), None)

    def is_refused(self, text: str) -> bool:
        """Whether a reader would only refuse this text once more."""
        return hash(text) in self._refused


def call_site(text: str) -> int:
    """A key for ``text`` and the lines at which coroutines of this task wait for it. In a greenlet.

    What runs in the greenlet itself, as in ``run_sync``, is not looked at; nor is who runs the
    task, which for an eager one is whoever made it.
    """
    parent = getcurrent().parent
    frame = None if parent is None else parent.gr_frame
    task = asyncio.current_task()
    outermost = None if task is None else getattr(task.get_coro(), "cr_frame", None)
    seen: list[str | int] = [text]
    while frame is not None and len(seen) <= 2 * FRAMES:
        seen += id(frame.f_code), frame.f_lasti
        frame = None if frame is outermost else frame.f_back
    return hash(tuple(seen))
