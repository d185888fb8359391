"""OpenTelemetry: waits as spans, and the figures of the queue as metrics. Needs its API only."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from opentelemetry import context
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter
from opentelemetry.trace import Status, StatusCode, TracerProvider, get_tracer
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from qsession import __version__, events
from qsession.engine import database_of, stats
from qsession.statistics import HistogramRecorder, Stats

BOUNDS = HistogramRecorder().freeze().bounds
ERRORS = {"timeout": "QueueTimeout", "full": "QueueFull", "failed": "DurabilityError"}
"""The errors that waits end with. A wait that is cancelled is no error, as everywhere there."""
WAITS: dict[type[events.Event], str] = {
    events.TicketWait: "qsession.ticket.wait",
    events.ConnectionWait: "qsession.connection.wait",
    events.DiskWait: "qsession.disk.wait",
}
COUNTED: dict[type[events.Event], str] = {
    events.Conflict: "qsession.conflicts",
    events.Retry: "qsession.retries",
    events.TicketTaken: "qsession.tickets.taken",
}

_engines: tuple[weakref.ref[Engine], ...] = ()
"""The engines whose ``stats()`` are read. Callbacks cannot be taken back, so they look here."""
_unsubscribe: Callable[[], None] | None = None


class QSessionInstrumentor:
    """Traces and measures the queue, like the instrumentors of OpenTelemetry's own libraries.

    The launcher ``opentelemetry-instrument`` finds it by itself.
    """

    def instrument(
        self,
        *,
        engine: AsyncEngine | Engine | None = None,
        engines: Sequence[AsyncEngine | Engine] = (),
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        **_kw: Any,
    ) -> None:
        """Trace the waits of all engines of this process, and measure them.

        The state of ``engine`` and ``engines``, which are not kept alive, is published as well. A
        second call only adds its engines. Raises `sqlalchemy.exc.InvalidRequestError` for an engine
        without ``stats()``.
        """
        global _engines, _unsubscribe  # noqa: PLW0603 - there is one subscription in a process
        for each in (*([engine] if engine is not None else []), *engines):
            stats(each)  # raises if there are none
            added = each.sync_engine if isinstance(each, AsyncEngine) else each
            _engines = (
                *(ref for ref in _engines if ref() not in (None, added)),
                weakref.ref(added),
            )
        if _unsubscribe is None:
            _unsubscribe = events.subscribe(_Telemetry(tracer_provider, meter_provider))

    def uninstrument(self, **_kw: Any) -> None:
        """End it, for all engines."""
        global _engines, _unsubscribe
        if _unsubscribe is not None:
            _unsubscribe()
        _engines, _unsubscribe = (), None


class _Telemetry:
    """Takes events, and makes spans and measurements of them."""

    def __init__(
        self, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None
    ) -> None:
        self._tracer = get_tracer("qsession", __version__, tracer_provider)
        meter = get_meter("qsession", __version__, meter_provider)

        def histogram(name: str, text: str) -> Any:
            return meter.create_histogram(
                f"{name}.duration", "s", text, explicit_bucket_boundaries_advisory=BOUNDS
            )

        self._waits = {kind: histogram(name, "Time of a wait") for kind, name in WAITS.items()}
        self._holds = histogram("qsession.ticket.hold", "Time until a ticket was given back")
        self._fsyncs = histogram("qsession.fsync", "Time of an fsync of the WAL")
        self._counted = {kind: meter.create_counter(name) for kind, name in COUNTED.items()}
        for name, read in (
            ("qsession.waiting", lambda s: s.waiting),
            ("qsession.connections", lambda s: s.size),
            ("qsession.connections.in_use", lambda s: s.in_use),
        ):
            meter.create_observable_up_down_counter(name, [_reader(read)])
        meter.create_observable_counter("qsession.commits", [_reader(lambda s: s.commits)])

    def __call__(self, event: events.Event) -> None:
        if context.get_value(_SUPPRESS_INSTRUMENTATION_KEY):
            return
        database = {"db.namespace": event.database}
        if isinstance(event, events.TicketWait | events.ConnectionWait | events.DiskWait):
            self._wait(event, {**database, "qsession.outcome": event.outcome})
        elif isinstance(event, events.TicketHeld):
            self._holds.record(event.seconds, {**database, "qsession.wrote": event.wrote})
        elif isinstance(event, events.Synced):
            outcome = "failed" if event.failed else "confirmed"
            self._fsyncs.record(event.seconds, {**database, "qsession.outcome": outcome})
        elif type(event) in self._counted:
            self._counted[type(event)].add(1, database)

    def _wait(
        self,
        event: events.TicketWait | events.ConnectionWait | events.DiskWait,
        known: dict[str, Any],
    ) -> None:
        """A span that has ended already: a child of the one that is current in the task."""
        self._waits[type(event)].record(event.seconds, known)
        end = int(event.at * 1e9)
        span = self._tracer.start_span(
            WAITS[type(event)], start_time=end - int(event.seconds * 1e9), attributes=known
        )
        if span.is_recording():
            if isinstance(event, events.TicketWait):
                span.set_attribute("db.query.text", event.statement)
            if error := ERRORS.get(event.outcome):
                span.set_attribute("error.type", error)
                span.set_status(Status(StatusCode.ERROR, error))
        span.end(end)


def _reader(read: Callable[[Stats], int]) -> Callable[[CallbackOptions], Iterable[Observation]]:
    """A callback that reads one figure of all engines; of two on one database, the sum."""

    def observe(_options: CallbackOptions) -> Iterator[Observation]:
        found: dict[str, int] = {}
        for engine in filter(None, (ref() for ref in _engines)):
            database = database_of(engine)
            found[database] = found.get(database, 0) + read(stats(engine))
        for database, value in found.items():
            yield Observation(value, {"db.namespace": database})

    return observe
