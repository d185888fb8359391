"""Prediction: will a transaction that begins with this SELECT write?

As a processor predicts branches: by what the same text did before. A wrong guess costs time or a
ConflictError, never correctness.
"""

from __future__ import annotations

from collections import OrderedDict

READ_ONLY_RUNS = 16
"""So many transactions in a row that began with a text and wrote nothing make it a reader."""
TEXTS = 1_000
"""Texts that are remembered; the one not used for longest is forgotten first."""


class Prediction:
    """How often in a row each text has begun a transaction that wrote nothing."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, int] = OrderedDict()
        self._refused: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._runs)

    def writes(self, text: str) -> bool:
        """Whether a transaction that begins with ``text`` is taken for a writer."""
        return self._runs.get(text, 0) < READ_ONLY_RUNS

    def note(self, text: str, wrote: bool) -> None:
        """Remember what a transaction that began with ``text`` has done."""
        runs = self._runs
        count = runs.pop(text, 0)  # another thread may be here too: each step stands by itself
        if wrote:
            return
        runs[text] = min(count + 1, READ_ONLY_RUNS)
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
