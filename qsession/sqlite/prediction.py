"""Prediction: will a transaction that begins with this SELECT write?

As a processor predicts branches: by what the same text did before, and, where it begins writers as
well as readers, by what it did at the same place of the application. A wrong guess costs time or a
ConflictError, never correctness.
"""

from __future__ import annotations

from collections import OrderedDict

from greenlet import getcurrent

READ_ONLY_RUNS = 16
"""So many transactions in a row that began in one way and wrote nothing make it a reader's."""
TEXTS = 1_000
"""Texts and call sites that are remembered; the one not used for longest is forgotten first."""
FRAMES = 16
"""Callers that tell one call site from another, from the innermost on."""


class Prediction:
    """How often in a row each text, and each call site, has begun one that wrote nothing."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str | int, int] = OrderedDict()
        self._refused: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._runs)

    def is_mixed(self, text: str) -> bool:
        """Whether ``text`` has begun readers, and may as well begin a writer."""
        return self._runs.get(text, READ_ONLY_RUNS) < READ_ONLY_RUNS

    def writes(self, text: str, site: int | None = None) -> bool:
        """Whether a transaction that begins with ``text``, at ``site``, is taken for a writer."""
        runs = self._runs
        return runs.get(text, 0) < READ_ONLY_RUNS and (
            site is None or runs.get(site, 0) < READ_ONLY_RUNS
        )

    def note(self, text: str, wrote: bool, site: int | None = None) -> None:
        """Remember what a transaction that began with ``text``, at ``site``, has done."""
        self._note(text, wrote)
        if site is not None:
            self._note(site, wrote)

    def _note(self, beginning: str | int, wrote: bool) -> None:
        runs = self._runs
        count = runs.pop(beginning, None)  # other threads may be here: each step stands by itself
        if wrote and count is None:
            return
        runs[beginning] = 0 if wrote else min((count or 0) + 1, READ_ONLY_RUNS)
        if len(runs) > TEXTS:
            runs.popitem(last=False)

    def note_refused(self, text: str) -> None:
        """Remember a text that a reader refused, because it writes."""
        self._refused.pop(text, None)  # as in note
        self._refused[text] = None
        if len(self._refused) > TEXTS:
            self._refused.popitem(last=False)

    def is_refused(self, text: str) -> bool:
        """Whether a reader would only refuse this text once more."""
        return text in self._refused


def call_site(text: str) -> int:
    """A key for ``text`` and the coroutines that wait for it, line by line. In a greenlet."""
    parent = getcurrent().parent
    frame = None if parent is None else parent.gr_frame
    seen: list[str | int] = [text]
    while frame is not None and len(seen) <= 2 * FRAMES:
        seen += id(frame.f_code), frame.f_lasti
        frame = frame.f_back
    return hash(tuple(seen))
