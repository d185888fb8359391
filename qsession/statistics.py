"""The statistics of an engine: frozen snapshots, and the histograms in them."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate

_BOUNDS = tuple(round(0.0001 * 2**n, 4) for n in range(20))
"""Upper bounds of the histogram's buckets in seconds: 0.1 ms, doubling, to about 52 s."""


@dataclass(frozen=True)
class Histogram:
    """Counts of times by bucket. ``bounds`` are the upper bounds of the buckets in seconds."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float
    maximum: float

    @property
    def count(self) -> int:
        """The number of observations."""
        return sum(self.counts)

    def since(self, before: Histogram) -> Histogram:
        """The observations after ``before``; ``maximum`` remains that of all observations."""
        counts = tuple(now - then for now, then in zip(self.counts, before.counts, strict=True))
        return Histogram(self.bounds, counts, self.total - before.total, self.maximum)

    def quantile(self, q: float) -> float:
        """An upper bound in seconds for the ``q``-quantile (0 to 1); 0.0 without observations."""
        wanted = q * self.count
        for bound, reached in zip(self.bounds, accumulate(self.counts), strict=False):
            if reached and reached >= wanted:
                return min(bound, self.maximum)
        return self.maximum


class HistogramRecorder:
    """Collects times; ``freeze`` returns them as a `Histogram`."""

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
    """The transaction that holds the write ticket now."""

    task: str
    held: float
    """Seconds since the ticket was taken."""
    wrote: bool
    statement: str
    """The last statement that it sent."""
    where: str
    """The line of the application at which the task waits."""
    stack: tuple[str, ...] = ()
    """The same with its callers, outermost first."""

    def __str__(self) -> str:
        did = "has written" if self.wrote else "has only read"
        return (
            f"{self.task} has held the ticket for {self.held:.2f} s and {did}; its last statement "
            f"was {self.statement!r}; it is now at {self.where}"
        )

    @property
    def traceback(self) -> str:
        """The stack, one line for each call."""
        return "".join(f"\n  {each}" for each in self.stack)


@dataclass(frozen=True)
class ReplicaStats:
    """One replica of a server at one moment, and how often it was read."""

    server: str
    """Its product, host, port and database."""
    down: bool
    """Whether it could not be reached at the last attempt."""
    lag: float | None
    """For how many seconds it may have been behind when it was last asked; None: not known."""
    reads: int
    """How often a connection to it was taken."""
    waiting: int
    size: int
    in_use: int


@dataclass(frozen=True)
class Waiting:
    """A transaction that waits for the write ticket now."""

    task: str
    waited: float
    """Seconds since it asked."""
    statement: str
    """The statement that has to wait."""


@dataclass(frozen=True)
class Stats:
    """The write queue of an engine at one moment, and its counters since the engine was made.

    On a server there is no write queue: ``waiting``, ``acquired`` and ``waits`` are about
    connections of the pool, and ``holds`` is how long connections were in use.
    """

    waiting: int
    holder: Holder | None
    acquired: int
    timeouts: int
    """Waits that ended in `QueueTimeout`. A `QueueFull` is not counted here."""
    conflicts: int
    validations: int
    """How often a transaction repeated its reads before its first write, to compare them."""
    taken_away: int
    """How often the ticket was taken away from a transaction that had only read."""
    commits: int
    """Committed transactions that wrote; on a server, COMMITs that were sent."""
    syncs: int
    """fsyncs of the WAL. Each made all earlier commits durable."""
    longest_inline: float
    """The time in seconds of the longest statement that ran on an event loop."""
    predicted: int
    """The number of call sites in the prediction table."""
    waits: Histogram
    holds: Histogram
    size: int = 0
    """Open connections of the pool."""
    in_use: int = 0
    """Open connections that are in use."""
    replicas: tuple[ReplicaStats, ...] = ()
    """The servers of ``read_urls``. All other numbers are about the primary."""


@dataclass
class Counters:
    """The counters behind `Stats`."""

    timeouts: int = 0
    conflicts: int = 0
    validations: int = 0
    commits: int = 0
    longest_inline: float = 0.0
    holds: HistogramRecorder = field(default_factory=HistogramRecorder)
