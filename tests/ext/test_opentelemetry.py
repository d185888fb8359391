"""qsession.ext.opentelemetry: spans of waits, metrics, and instrumentation in either order."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy.ext.asyncio
from cancelling import assert_free, eventually
from folders import ROOT
from opentelemetry import context
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from qsession import (
    DurabilityError,
    QSession,
    QueuedAsyncEngine,
    QueueFull,
    QueueTimeout,
    create_async_engine,
    create_engine,
    create_pool,
    events,
)
from qsession.ext.opentelemetry import QSessionInstrumentor
from qsession.session.maker import SessionMaker
from qsession.testing import held_disk

ADD = text("INSERT INTO t (v) VALUES (1)")


class Telemetry:
    """What OpenTelemetry was told."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.tracers.get_tracer("application")
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader])

    def instrument(self, **kw: object) -> None:
        """Begin to tell this object."""
        QSessionInstrumentor().instrument(
            tracer_provider=self.tracers,
            meter_provider=self.meters,
            **kw,  # type: ignore[arg-type]
        )

    def spans(self, name: str) -> list[ReadableSpan]:
        """The spans that have ended and have this name."""
        return [each for each in self.exporter.get_finished_spans() if each.name == name]

    def points(self, name: str) -> list[object]:
        """The points of a metric, each with its attributes; none if there is none."""
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data is not None else [])
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    """Tells of all engines, until the end of the test."""
    telemetry = Telemetry()
    telemetry.instrument()
    yield telemetry
    QSessionInstrumentor().uninstrument()
    assert not events.observers
    telemetry.meters.shutdown()


async def table(engine: AsyncEngine) -> None:
    """Make the table of these tests."""
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE t (v INTEGER)"))


async def add(engine: AsyncEngine) -> None:
    """A transaction that writes."""
    async with engine.begin() as connection:
        await connection.execute(ADD)


async def new(path: Path, **kw: object) -> QueuedAsyncEngine:
    """An engine on a file with the table."""
    engine = create_async_engine(f"sqlite:///{path / 'app.db'}", **kw)
    await table(engine)
    return engine


async def test_a_wait_is_a_span_of_its_own(telemetry: Telemetry, tmp_path: Path) -> None:
    """It is a child of the span of the task that waited, and as long as the wait."""
    engine = await new(tmp_path)
    telemetry.exporter.clear()

    async def waits() -> None:
        with telemetry.tracer.start_as_current_span("request"):
            await add(engine)

    began = time.time_ns()
    async with engine.begin() as connection:
        await connection.execute(ADD)
        task = asyncio.create_task(waits())
        await eventually(lambda: engine.stats().waiting == 1)
        held = time.time_ns()
    await task
    (request,) = telemetry.spans("request")
    (wait,) = telemetry.spans("qsession.ticket.wait")
    assert wait.parent == request.context
    assert began < wait.start_time < held < wait.end_time
    assert wait.status.status_code is StatusCode.UNSET
    assert wait.attributes == {
        "db.namespace": str(tmp_path / "app.db"),
        "db.query.text": ADD.text,
        "qsession.outcome": "granted",
    }
    disk = telemetry.spans("qsession.disk.wait")
    assert [each.parent for each in disk] == [None, request.context]
    assert disk[1].start_time >= wait.end_time - 1_000_000  # two clocks
    (point,) = telemetry.points("qsession.ticket.wait.duration")
    assert point.count == 1  # type: ignore[attr-defined]
    took = (wait.end_time - wait.start_time) / 1e9
    assert point.sum == pytest.approx(took, abs=1e-6)  # type: ignore[attr-defined]
    await engine.dispose()


async def test_failed_waits_are_errors_and_cancelled_ones_are_not(
    telemetry: Telemetry, tmp_path: Path
) -> None:
    """As everywhere in OpenTelemetry for Python, a cancellation leaves the status unset."""
    engine = await new(tmp_path, max_waiting=1)
    impatient = create_async_engine(f"sqlite:///{tmp_path / 'app.db'}", queue_timeout=0.01)
    async with engine.begin() as connection:
        await connection.execute(ADD)
        with pytest.raises(QueueTimeout):
            await asyncio.create_task(add(impatient))
        task = asyncio.create_task(add(engine))
        await eventually(lambda: engine.stats().waiting == 1)
        with pytest.raises(QueueFull):
            await asyncio.create_task(add(engine))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    spans = {
        each.attributes["qsession.outcome"]: (each.status.status_code, each.status.description)
        for each in telemetry.spans("qsession.ticket.wait")
        if each.attributes
    }
    assert spans == {
        "timeout": (StatusCode.ERROR, "QueueTimeout"),
        "full": (StatusCode.ERROR, "QueueFull"),
        "cancelled": (StatusCode.UNSET, None),
    }
    await impatient.dispose()
    await engine.dispose()
    assert_free(tmp_path / "app.db")


async def test_a_failing_disk_is_an_error(telemetry: Telemetry, tmp_path: Path) -> None:
    """The span of the commit has it; one that is cancelled while the disk works has not."""
    engine = await new(tmp_path)
    telemetry.exporter.clear()
    with held_disk() as disk:
        cancelled = asyncio.create_task(add(engine))
        sync = await disk.begun()
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        sync.end()
        fails = asyncio.create_task(add(engine))
        (await disk.begun()).fail()
        with pytest.raises(DurabilityError):
            await fails
    spans = telemetry.spans("qsession.disk.wait")
    assert [each.status.status_code for each in spans] == [StatusCode.UNSET, StatusCode.ERROR]
    assert spans[1].attributes is not None
    assert spans[1].attributes["error.type"] == "DurabilityError"
    assert [
        point.attributes["qsession.outcome"]  # type: ignore[attr-defined]
        for point in telemetry.points("qsession.fsync.duration")
    ] == ["confirmed", "failed"]
    await engine.dispose()


async def test_lone_writes_tell_when_each_wait_was(telemetry: Telemetry, tmp_path: Path) -> None:
    """Their task wakes once, for ticket and disk; the spans follow each other all the same."""
    async with create_pool(f"sqlite:///{tmp_path / 'app.db'}") as pool:
        await pool.execute("CREATE TABLE t (v INTEGER)")
        async with pool.transaction() as connection:
            await connection.execute(ADD.text)
            with telemetry.tracer.start_as_current_span("request"):
                task = asyncio.create_task(pool.execute(ADD.text))
            await eventually(lambda: pool.engine.stats().waiting == 1)
        await task
    (request,) = telemetry.spans("request")
    (ticket,) = [e for e in telemetry.spans("qsession.ticket.wait") if e.parent == request.context]
    (disk,) = [e for e in telemetry.spans("qsession.disk.wait") if e.parent == request.context]
    assert ticket.start_time < ticket.end_time <= disk.start_time + 1_000_000 < disk.end_time + 1e6


def test_a_synchronous_engine_continues_the_trace_of_its_thread(
    telemetry: Telemetry, tmp_path: Path
) -> None:
    """The waiting is done on the loop in the background, and the span belongs to the thread."""
    engine = create_engine(f"sqlite:///{tmp_path / 'app.db'}")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (v INTEGER)"))
    telemetry.exporter.clear()

    def waits() -> None:
        with telemetry.tracer.start_as_current_span("job"), engine.begin() as connection:
            connection.execute(ADD)

    thread = threading.Thread(target=waits)
    with engine.begin() as connection:
        connection.execute(ADD)
        thread.start()
        asyncio.run(eventually(lambda: engine.pool.stats().waiting == 1))  # type: ignore[attr-defined]
    thread.join()
    (job,) = telemetry.spans("job")
    (wait,) = telemetry.spans("qsession.ticket.wait")
    assert wait.parent == job.context
    assert [each.parent for each in telemetry.spans("qsession.disk.wait")] == [None, job.context]
    engine.dispose()


def test_engines_in_two_loops(telemetry: Telemetry, tmp_path: Path) -> None:
    """Each loop has spans of its own engine, one after the other."""

    async def use(path: Path) -> None:
        with telemetry.tracer.start_as_current_span(path.name):
            engine = await new(path)
            await engine.dispose()

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        asyncio.run(use(tmp_path / name))
        (span,) = telemetry.spans(name)
        assert telemetry.spans("qsession.disk.wait")[-1].parent == span.context
    assert len(telemetry.points("qsession.disk.wait.duration")) == 2


async def test_conflicts_retries_and_tickets_taken_are_counted(
    telemetry: Telemetry, tmp_path: Path
) -> None:
    """A conflict that `run` overcomes; a session that idles and loses its ticket."""
    maker = SessionMaker(f"sqlite:///{tmp_path / 'app.db'}", reads="snapshot")
    await table(maker.engine)
    attempts: list[int] = []

    @maker.transactional(access="auto")
    async def read_and_write(session: QSession) -> None:
        attempts.append(await session.scalar(text("SELECT count(*) FROM t")))
        if len(attempts) == 1:
            await asyncio.create_task(add(maker.engine))
        await session.execute(ADD)

    await read_and_write()
    async with maker() as idle:
        await idle.scalar(text("SELECT count(*) FROM t"))
        await asyncio.create_task(add(maker.engine))
    taken = maker.engine.stats().taken_away  # by chance the first transaction lost one as well
    assert taken > 0
    for name, wanted in (("conflicts", 1), ("retries", 1), ("tickets.taken", taken)):
        (point,) = telemetry.points(f"qsession.{name}")
        assert point.value == wanted, name  # type: ignore[attr-defined]
        assert point.attributes == {"db.namespace": str(tmp_path / "app.db")}  # type: ignore[attr-defined]
    holds = telemetry.points("qsession.ticket.hold.duration")
    assert {point.attributes["qsession.wrote"] for point in holds} == {True, False}  # type: ignore[attr-defined]
    await maker.dispose()


async def test_engines_that_are_given_publish_their_state(
    telemetry: Telemetry, tmp_path: Path
) -> None:
    """A second call adds them; two on one file are one; uninstrument() and instrument() work."""

    def values(name: str) -> list[int]:
        return [point.value for point in telemetry.points(name)]  # type: ignore[attr-defined]

    engine = await new(tmp_path)
    second = create_async_engine(f"sqlite:///{tmp_path / 'app.db'}")
    await add(second)
    telemetry.instrument(engine=engine)
    telemetry.instrument(engines=[engine, second.sync_engine])
    assert len(events.observers) == 1
    async with engine.begin() as connection:
        await connection.execute(ADD)
        task = asyncio.create_task(add(engine))
        await eventually(lambda: engine.stats().waiting == 1)
        assert values("qsession.waiting") == [1]
        assert values("qsession.connections.in_use") == [1]
    await task
    assert values("qsession.commits") == [4]
    QSessionInstrumentor().uninstrument()
    telemetry.exporter.clear()
    await add(engine)
    assert not telemetry.exporter.get_finished_spans()
    telemetry.instrument(engine=engine)
    assert values("qsession.commits")[-1:] == [4]  # of the first engine alone
    await engine.dispose()
    await second.dispose()


async def test_what_an_exporter_writes_is_not_traced(telemetry: Telemetry, tmp_path: Path) -> None:
    """OpenTelemetry suppresses instrumentation in exporters, or they would tell of themselves."""
    token = context.attach(context.set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
    try:
        engine = await new(tmp_path)
    finally:
        context.detach(token)
    assert not telemetry.exporter.get_finished_spans()
    await engine.dispose()


@pytest.mark.servers
async def test_a_wait_for_a_connection_to_a_server(telemetry: Telemetry, postgresql: str) -> None:
    """It names the server and the database, and belongs to the task that waited."""
    engine = create_async_engine(postgresql, pool_size=1, max_overflow=0, max_waiting=1)
    telemetry.instrument(engine=engine)

    async def waits() -> None:
        with telemetry.tracer.start_as_current_span("request"):
            async with engine.connect():
                pass

    async with engine.connect():
        task = asyncio.create_task(waits())
        await eventually(lambda: engine.stats().waiting == 1)
        with pytest.raises(QueueFull):
            await waits()
        (point,) = telemetry.points("qsession.waiting")
        assert point.value == 1  # type: ignore[attr-defined]
    await task
    refused, granted = telemetry.spans("qsession.connection.wait")
    assert refused.status.status_code is StatusCode.ERROR
    assert granted.status.status_code is StatusCode.UNSET
    assert granted.parent in [each.context for each in telemetry.spans("request")]
    assert granted.attributes is not None
    assert str(granted.attributes["db.namespace"]).endswith(f"/{engine.url.database}")
    assert point.attributes == {"db.namespace": granted.attributes["db.namespace"]}  # type: ignore[attr-defined]
    await engine.dispose()


PROGRAM = """
import asyncio, sys
from opentelemetry import trace

order, kind, url = sys.argv[1:]
if order != "launcher":
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
    trace.set_tracer_provider(provider)

def instrumentors():
    from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
    yield SQLAlchemyInstrumentor()
    from qsession.ext.opentelemetry import QSessionInstrumentor
    yield QSessionInstrumentor()

def instrument():
    for each in instrumentors():
        each.instrument(skip_dep_check=True)

if order == "ended":
    import sqlalchemy.ext.asyncio  # else this keeps what the instrumentation has put elsewhere
if order in ("before", "ended"):
    instrument()
import qsession
if order == "after":
    instrument()
elif order == "ended":
    for each in instrumentors():
        each.uninstrument()
import sqlalchemy.ext.asyncio
from sqlalchemy import text

CREATE = text("CREATE TABLE t (v INTEGER)")

async def main(create):
    engine = create(url)
    async with engine.begin() as connection:
        await connection.execute(CREATE)
    await engine.dispose()

if kind == "asyncio":
    asyncio.run(main(qsession.create_async_engine))
elif kind == "framework":
    asyncio.run(main(sqlalchemy.ext.asyncio.create_async_engine))
else:
    engine = qsession.create_engine(url)
    with engine.begin() as connection:
        connection.execute(CREATE)
    engine.dispose()
"""
KINDS = [
    ("asyncio", "sqlite:///app.db"),
    ("synchronous", "sqlite:///app.db"),
    ("framework", "sqlite+qsession:///app.db"),
]


def names(printed: str) -> list[str]:
    """The names of the spans that the exporter for the console has printed."""
    found, rest = [], printed.strip()
    while rest:
        span, end = json.JSONDecoder().raw_decode(rest)
        found.append(span["name"])
        rest = rest[end:].strip()
    return found


def run(folder: Path, *command: str, **variables: str) -> list[str]:
    """The spans of the program, which is run in an empty folder by this command."""
    (folder / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return names(done.stdout)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize(("kind", "url"), KINDS)
def test_statements_are_traced_in_either_order(
    order: str, kind: str, url: str, tmp_path: Path
) -> None:
    """SQLAlchemy's instrumentation may begin before qsession is imported, or after."""
    found = run(tmp_path, "program.py", order, kind, url)
    assert found.count("CREATE app.db") == 1
    assert found.count("qsession.disk.wait") == 1


@pytest.mark.parametrize(("kind", "url"), KINDS)
def test_instrumentation_that_has_ended_traces_nothing(kind: str, url: str, tmp_path: Path) -> None:
    """Also if qsession was imported while it lasted."""
    assert run(tmp_path, "program.py", "ended", kind, url) == []


@pytest.mark.servers
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("kind", ["asyncio", "synchronous"])
def test_statements_on_a_server_are_traced_in_either_order(
    order: str, kind: str, postgresql: str, tmp_path: Path
) -> None:
    """The engines for servers are made elsewhere."""
    url = postgresql.replace("postgresql://", "postgresql+psycopg://")
    found = run(tmp_path, "program.py", order, kind, url)
    assert [each for each in found if each.startswith("CREATE")]


@pytest.mark.parametrize(("kind", "url"), KINDS)
def test_the_launcher_traces_statements_and_waits(kind: str, url: str, tmp_path: Path) -> None:
    """``opentelemetry-instrument`` finds the instrumentors by their entry points.

    The one of SQLAlchemy is found by a name of the test, as it does not admit each release of
    SQLAlchemy by its own; ours as well, as it may not be installed here.
    """
    metadata = tmp_path / "found-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: found\nVersion: 1\n")
    declared = (ROOT / "pyproject.toml").read_text().split("[project.entry-points.")
    (ours,) = [e for e in declared if e.startswith("opentelemetry_instrumentor]\n")]
    name, _, place = ours.split("\n")[1].partition(" = ")
    (metadata / "entry_points.txt").write_text(
        "[opentelemetry_instrumentor]\n"
        "any_sqlalchemy = opentelemetry.instrumentation.sqlalchemy:SQLAlchemyInstrumentor\n"
        f"{name} = {json.loads(place)}\n"
        "[opentelemetry_configurator]\n"  # what opentelemetry-distro would bring
        "sdk = opentelemetry.sdk._configuration:_OTelSDKConfigurator\n"
    )
    launch = "from opentelemetry.instrumentation.auto_instrumentation import run; run()"
    found = run(
        tmp_path,
        *("-c", launch, sys.executable, "program.py", "launcher", kind, url),
        PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]),
        OTEL_TRACES_EXPORTER="console",
        OTEL_METRICS_EXPORTER="none",
        OTEL_LOGS_EXPORTER="none",
    )
    assert found.count("CREATE app.db") == 1
    assert found.count("qsession.disk.wait") == 1


def test_a_drop_in_by_patching_does_not_call_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our function in the place of SQLAlchemy's is no instrumentation to be called."""
    monkeypatch.setattr(sqlalchemy.ext.asyncio, "create_async_engine", create_async_engine)
    monkeypatch.setattr(sqlalchemy, "create_engine", create_engine)
    engine = sqlalchemy.ext.asyncio.create_async_engine(f"sqlite:///{tmp_path / 'app.db'}")
    assert isinstance(engine, QueuedAsyncEngine)
    assert sqlalchemy.create_engine("sqlite://").dialect.driver == "qsession"
