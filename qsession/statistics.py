"""What an engine tells about itself: frozen snapshots and the histograms they are made from."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate

_BOUNDS = tuple(round(0.0001 * 2**n, 4) for n in range(20))
"""Upper bounds of the histogram's buckets in seconds: 0.1 ms, doubling, to about 52 s."""


@dataclass(frozen=True)
class Histogram:
    """How often a time fell into each bucket. ``bounds`` are the buckets' upper ends in seconds."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float
    maximum: float

    @property
    def count(self) -> int:
        """How many times were observed."""
        return sum(self.counts)

    def since(self, before: Histogram) -> Histogram:
        """What was observed after ``before``; ``maximum`` stays that of all."""
        counts = tuple(now - then for now, then in zip(self.counts, before.counts, strict=True))
        return Histogram(self.bounds, counts, self.total - before.total, self.maximum)

    def quantile(self, q: float) -> float:
        """An upper bound in seconds of the ``q``-quantile (0 to 1); 0.0 without observations."""
        wanted = q * self.count
        for bound, reached in zip(self.bounds, accumulate(self.counts), strict=False):
            if reached and reached >= wanted:
                return min(bound, self.maximum)
        return self.maximum


class HistogramRecorder:
    """Collects times; ``freeze`` gives the picture."""

    __slots__ = ("_counts", "_maximum", "_total")

    def __init__(self) -> None:
        self._counts = [0] * (len(_BOUNDS) + 1)
        self._total = 0.0
        self._maximum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(_BOUNDS, seconds)] += 1
        self._total += seconds
        if seconds > self._maximum:
            self._maximum = seconds

    def freeze(self) -> Histogram:
        return Histogram(_BOUNDS, tuple(self._counts), self._total, self._maximum)


@dataclass(frozen=True)
class Holder:
    """Who holds the write ticket now."""

    task: str
    held: float
    """Seconds since the ticket was taken."""
    wrote: bool
    statement: str
    """The last statement it sent."""
    where: str
    """Where the holding task stands in its own code."""
    stack: tuple[str, ...] = ()
    """The same with the lines it was called from, from the outside in."""

    def __str__(self) -> str:
        did = "has written" if self.wrote else "has only read"
        return (
            f"{self.task} has held the ticket for {self.held:.2f} s and {did}; its last statement "
            f"was {self.statement!r}; it stands at {self.where}"
        )

    @property
    def traceback(self) -> str:
        """The stack, a line for each call."""
        return "".join(f"\n  {each}" for each in self.stack)


@dataclass(frozen=True)
class Stats:
    """One engine's write queue at one moment, with its counters since the engine was made.

    On a server there is no write queue: those who wait, wait for a connection, ``acquired`` and
    ``waits`` are about that, and ``holds`` is how long connections were kept.
    """

    waiting: int
    holder: Holder | None
    acquired: int
    timeouts: int
    conflicts: int
    validations: int
    """How often a transaction read again, before its first write, what it had read."""
    taken_away: int
    """How often a ticket was taken away from a transaction that had only read."""
    commits: int
    """Transactions that wrote and were committed; on a server, COMMITs that were sent."""
    syncs: int
    """fsyncs of the WAL; each made all transactions durable that had been committed before."""
    longest_inline: float
    """Seconds of the longest statement that ran on an event loop."""
    predicted: int
    """How many call sites the table of the prediction knows."""
    waits: Histogram
    holds: Histogram
    size: int = 0
    """Open connections of the pool."""
    in_use: int = 0
    """Those of them that somebody has."""


@dataclass
class Counters:
    """The running numbers behind `Stats`."""

    timeouts: int = 0
    conflicts: int = 0
    validations: int = 0
    commits: int = 0
    longest_inline: float = 0.0
    holds: HistogramRecorder = field(default_factory=HistogramRecorder)
