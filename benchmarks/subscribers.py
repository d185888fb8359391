"""What subscribers of events cost: ``python -m benchmarks.subscribers``.

CPU time for an insert, the least of many blocks. The blocks of all subscribers alternate, so that
the machine is the same for each of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from opentelemetry.metrics import MeterProvider, NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider as Meters
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace import TracerProvider as Tracers
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import NoOpTracerProvider, TracerProvider
from prometheus_client import CollectorRegistry
from sqlalchemy import text

from qsession import QueuedAsyncEngine, create_pool
from qsession.ext.logs import log_events
from qsession.ext.opentelemetry import QSessionInstrumentor
from qsession.ext.prometheus import QueueCollector

BLOCKS, INSERTS = 40, 100
ADD = text("INSERT INTO t (v) VALUES (1)")


class Nowhere(SpanExporter):
    """Takes spans, and leaves them."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


TRACERS, METERS = Tracers(), Meters([InMemoryMetricReader()])
TRACERS.add_span_processor(BatchSpanProcessor(Nowhere()))


def opentelemetry(tracers: TracerProvider, meters: MeterProvider) -> Callable[[], None]:
    """Instrument; returns what ends it."""
    QSessionInstrumentor().instrument(tracer_provider=tracers, meter_provider=meters)
    return QSessionInstrumentor().uninstrument


SUBSCRIBERS: dict[str, Callable[[QueuedAsyncEngine], Callable[[], None]]] = {
    "none": lambda engine: lambda: None,
    "log_events": lambda engine: log_events(),
    "QueueCollector": lambda engine: QueueCollector(engine, registry=CollectorRegistry()).close,
    "OpenTelemetry, metrics": lambda engine: opentelemetry(NoOpTracerProvider(), METERS),
    "OpenTelemetry, spans": lambda engine: opentelemetry(TRACERS, NoOpMeterProvider()),
    "OpenTelemetry, both": lambda engine: opentelemetry(TRACERS, METERS),
}


async def measure(path: Path, tasks: int, plain: bool) -> dict[str, float]:
    """Microseconds of CPU for an insert, by subscriber; ``plain``: by the pool alone."""
    least: dict[str, float] = {}
    async with create_pool(f"sqlite:///{path}") as pool:
        await pool.execute("CREATE TABLE t (v INTEGER)")

        async def write(times: int) -> None:
            for _ in range(times):
                if plain:
                    await pool.execute(ADD.text)
                else:
                    async with pool.engine.begin() as connection:
                        await connection.execute(ADD)

        for _ in range(BLOCKS):
            for name, subscribe in SUBSCRIBERS.items():
                end = subscribe(pool.engine)
                began = time.process_time()
                await asyncio.gather(*(write(INSERTS // tasks) for _ in range(tasks)))
                took = (time.process_time() - began) / INSERTS * 1e6
                end()
                least[name] = min(took, least.get(name, took))
    return least


def main() -> None:
    """Print a table."""
    with TemporaryDirectory() as folder:
        for number, (tasks, plain) in enumerate(((1, False), (50, False), (50, True))):
            found = asyncio.run(measure(Path(folder) / f"{number}.db", tasks, plain))
            print("the pool alone" if plain else "engine.begin()", "by", tasks, "tasks")
            for name, took in found.items():
                print(f"  {name:24} {took:6.0f} µs  {took / found['none']:.2f}")


if __name__ == "__main__":
    main()
