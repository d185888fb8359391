"""Prometheus: the figures of engines, as metrics in a registry of prometheus_client."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from threading import RLock
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from qsession import events
from qsession.engine import database_of, is_queued, stats
from qsession.statistics import HistogramRecorder, Stats

COUNTER, GAUGE, HISTOGRAM = CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily


@dataclass
class Published:
    """An engine, and what its events have told."""

    engine: weakref.ref[Engine]
    name: str
    refused: int = 0
    retries: int = 0
    failed_fsyncs: int = 0
    disk_waits: HistogramRecorder = field(default_factory=HistogramRecorder)
    fsyncs: HistogramRecorder = field(default_factory=HistogramRecorder)

    def note(self, event: events.Event) -> None:
        """Count an event of this engine."""
        if isinstance(event, events.DiskWait):
            self.disk_waits.observe(event.seconds)
        elif isinstance(event, events.Synced):
            self.fsyncs.observe(event.seconds)
            self.failed_fsyncs += event.failed
        elif isinstance(event, events.Retry):
            self.retries += 1
        elif isinstance(event, events.TicketWait | events.ConnectionWait):
            self.refused += event.outcome == "full"


Table = list[tuple[Callable[..., Metric], str, str, Callable[[Stats, Published], Any]]]
BOTH: Table = [
    (COUNTER, "commits", "Committed transactions.", lambda s, p: s.commits),
    (COUNTER, "conflicts", "Transactions that ended in a conflict.", lambda s, p: s.conflicts),
    (COUNTER, "retries", "Attempts that run() repeats after a conflict.", lambda s, p: p.retries),
    (GAUGE, "connections", "Open connections.", lambda s, p: s.size),
    (GAUGE, "connections_in_use", "Open connections that are in use.", lambda s, p: s.in_use),
]
WAITING: Table = [
    (GAUGE, "{}_waiting", "How many wait for a {} now.", lambda s, p: s.waiting),
    (HISTOGRAM, "{}_wait_seconds", "Waits for a {} that was granted.", lambda s, p: s.waits),
    (HISTOGRAM, "{}_held_seconds", "How long a {} was held.", lambda s, p: s.holds),
    (COUNTER, "{}_timeouts", "Waits for a {} that ended in QueueTimeout.", lambda s, p: s.timeouts),
    (COUNTER, "{}_refused", "Waits for a {} refused with QueueFull.", lambda s, p: p.refused),
]
"""Of a ticket on SQLite, of a connection on a server."""
SQLITE: Table = [
    (
        GAUGE,
        "ticket_holder_seconds",
        "How long it has been held now.",
        lambda s, p: s.holder.held if s.holder else 0.0,
    ),
    (COUNTER, "tickets_taken", "Tickets taken away from idle readers.", lambda s, p: s.taken_away),
    (COUNTER, "validations", "Repeated reads before a first write.", lambda s, p: s.validations),
    (
        GAUGE,
        "longest_inline_seconds",
        "Longest statement on a loop.",
        lambda s, p: s.longest_inline,
    ),
    (HISTOGRAM, "disk_wait_seconds", "From commit to disk.", lambda s, p: p.disk_waits.freeze()),
    (HISTOGRAM, "fsync_seconds", "fsyncs of the WAL.", lambda s, p: p.fsyncs.freeze()),
    (COUNTER, "fsync_failures", "Failed fsyncs of the WAL.", lambda s, p: p.failed_fsyncs),
]


class QueueCollector(Collector):
    """Publishes engines as metrics ``qsession_...``, with the label ``database``.

    It registers itself. Most metrics are those of ``stats()``, read at each scrape. Those of the
    disk, of retries and of `QueueFull` come from `qsession.events`: they begin with this object.
    An engine is not kept alive by it. The metrics of an engine end with the engine.
    """

    def __init__(
        self, *engines: AsyncEngine | Engine, registry: CollectorRegistry = REGISTRY
    ) -> None:
        self._registry = registry
        self._lock = RLock()
        """The garbage collector, too, may give a ticket back, wherever this thread is."""
        self._published: tuple[Published, ...] = ()
        """Replaced as a whole, so that a reader needs no lock."""
        for engine in engines:
            self.add(engine)
        registry.register(self)
        self._unsubscribe = events.subscribe(self._note)

    def add(self, engine: AsyncEngine | Engine, name: str | None = None) -> None:
        """Publish one more engine. ``name`` is its label; by default the database of its URL.

        Raises ``ValueError`` if another engine has this name, and
        `sqlalchemy.exc.InvalidRequestError` for an engine without ``stats()``.
        """
        engine = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
        stats(engine)  # raises if there are none
        name = name or engine.url.database or ":memory:"
        with self._lock:
            present = [each for each in self._published if each.engine() is not None]
            if any(each.name == name for each in present):
                raise ValueError(
                    f"an engine is published as {name!r} already: give this one another name, as "
                    "in add(engine, 'reports')"
                )
            self._published = (*present, Published(weakref.ref(engine), name))

    def close(self) -> None:
        """Take the metrics out of the registry. A second call has no effect."""
        self._unsubscribe()
        with suppress(KeyError):
            self._registry.unregister(self)

    def describe(self) -> Iterable[Metric]:
        """The metrics without values: the registry asks which names there will be."""
        return _metrics([])

    def collect(self) -> Iterable[Metric]:
        """The metrics of the engines that are still there."""
        return _metrics(self._published)

    def _note(self, event: events.Event) -> None:
        """An event names the database: of two engines on one, the first counts it."""
        for each in self._published:
            engine = each.engine()
            if engine is not None and database_of(engine) == event.database:
                with self._lock:
                    each.note(event)
                return


def _metrics(published: Iterable[Published]) -> Iterator[Metric]:
    found = [(engine, each) for each in published if (engine := each.engine()) is not None]
    on_sqlite = [(stats(engine), each) for engine, each in found if is_queued(engine)]
    on_server = [(stats(engine), each) for engine, each in found if not is_queued(engine)]
    yield from _families(BOTH, "", [*on_sqlite, *on_server])
    yield from _families(WAITING, "ticket", on_sqlite)
    yield from _families(WAITING, "connection", on_server)
    yield from _families(SQLITE, "", on_sqlite)


def _families(table: Table, what: str, rows: Iterable[tuple[Stats, Published]]) -> Iterator[Metric]:
    for kind, name, text, read in table:
        family: Any = kind(f"qsession_{name.format(what)}", text.format(what), labels=["database"])
        for figures, each in rows:
            value = read(figures, each)
            if kind is HISTOGRAM:
                bounds = [*map(str, value.bounds), "+Inf"]
                buckets = list(zip(bounds, accumulate(value.counts), strict=True))
                family.add_metric([each.name], buckets, value.total)
            else:
                family.add_metric([each.name], value)
        yield family
