"""qsession.ext.prometheus: what a scrape shows, and that a collector keeps nothing alive."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy.ext.asyncio
from cancelling import PATIENCE, assert_free, eventually
from folders import ROOT
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from sqlalchemy import text
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncEngine

from qsession import (
    DurabilityError,
    QSession,
    QueueFull,
    QueueTimeout,
    create_async_engine,
    create_engine,
    events,
)
from qsession.ext.prometheus import QueueCollector
from qsession.session.maker import SessionMaker
from qsession.statistics import HistogramRecorder
from qsession.testing import held_disk

ADD = text("INSERT INTO t (v) VALUES (1)")
Value = Callable[..., float | None]


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry without anything else in it, which asks for names as the default one does."""
    return CollectorRegistry(auto_describe=True)


@pytest.fixture
def value(registry: CollectorRegistry) -> Value:
    """One figure of a scrape; None if it is not there."""

    def value(name: str, database: str = "app", **labels: str) -> float | None:
        return registry.get_sample_value(f"qsession_{name}", {"database": database, **labels})

    return value


@pytest.fixture
def collector(registry: CollectorRegistry) -> Iterator[QueueCollector]:
    """A collector without engines."""
    collector = QueueCollector(registry=registry)
    yield collector
    collector.close()
    assert not events.observers
    assert generate_latest(registry) == b""


async def table(engine: AsyncEngine) -> None:
    """Make the table of these tests."""
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE t (v INTEGER)"))


async def add(engine: AsyncEngine) -> None:
    """A transaction that writes."""
    async with engine.begin() as connection:
        await connection.execute(ADD)


async def test_waits_holds_and_commits_are_published(
    collector: QueueCollector, value: Value, tmp_path: Path
) -> None:
    """Gauges while it lasts, histograms afterwards; the buckets add up to the count."""
    engine = create_async_engine(f"sqlite:///{tmp_path / 'app.db'}", max_waiting=1)
    collector.add(engine, "app")
    await table(engine)
    async with engine.begin() as connection:
        await connection.execute(ADD)
        task = asyncio.create_task(add(engine))
        await eventually(lambda: value("ticket_waiting") == 1)
        with pytest.raises(QueueFull):
            await asyncio.create_task(add(engine))
        assert (value("ticket_holder_seconds") or 0) > 0
        assert value("connections_in_use") == 1
    await task
    assert value("ticket_waiting") == value("ticket_holder_seconds") == 0
    assert value("commits_total") == 3
    assert value("ticket_wait_seconds_count") == 3
    assert value("ticket_wait_seconds_bucket", le="+Inf") == 3
    assert (value("ticket_wait_seconds_sum") or 0) > 0
    assert value("ticket_held_seconds_count") == 3
    assert value("disk_wait_seconds_count") == 3
    assert value("fsync_seconds_count") in (2, 3)  # the two last may share one
    assert value("ticket_refused_total") == 1
    assert value("connection_waiting") is None
    await engine.dispose()


async def test_timeouts_conflicts_and_retries_are_counted(
    collector: QueueCollector, value: Value, tmp_path: Path
) -> None:
    """A conflict that `run` overcomes is a conflict and a retry."""
    maker = SessionMaker(f"sqlite:///{tmp_path / 'app.db'}", reads="snapshot")
    impatient = create_async_engine(f"sqlite:///{tmp_path / 'app.db'}", queue_timeout=0.01)
    collector.add(maker.engine, "app")
    collector.add(impatient, "impatient")
    await table(maker.engine)
    attempts: list[int] = []

    @maker.transactional(access="auto")
    async def read_and_write(session: QSession) -> None:
        attempts.append(await session.scalar(text("SELECT count(*) FROM t")))
        if len(attempts) == 1:
            await asyncio.create_task(add(maker.engine))
        await session.execute(ADD)

    async with maker.engine.begin() as connection:
        await connection.execute(ADD)
        with pytest.raises(QueueTimeout):
            await asyncio.create_task(add(impatient))
    await read_and_write()
    assert attempts == [1, 2]
    assert value("conflicts_total") == value("retries_total") == 1
    assert value("ticket_timeouts_total", "impatient") == 1
    assert value("ticket_timeouts_total") == 0
    await impatient.dispose()
    await maker.dispose()


async def test_a_failing_disk_is_seen(
    collector: QueueCollector,
    value: Value,
    tmp_path: Path,
) -> None:
    """The fsync that failed is counted, once for all commits that waited for it."""
    engine = create_async_engine(f"sqlite:///{tmp_path / 'app.db'}")
    await table(engine)
    collector.add(engine, "app")
    with held_disk() as disk:
        task = asyncio.create_task(add(engine))
        sync = await disk.begun()
        assert value("disk_wait_seconds_count") == value("fsync_failures_total") == 0
        sync.fail()
        with pytest.raises(DurabilityError):
            await task
        await eventually(lambda: value("fsync_failures_total") == 1)
        assert value("disk_wait_seconds_count") == 1
    await engine.dispose()
    assert_free(tmp_path / "app.db")


async def test_each_engine_has_a_name(collector: QueueCollector, tmp_path: Path) -> None:
    """The database of its URL by default; two on one file need names, and one of them the disk."""
    path = tmp_path / "app.db"
    first, second = (create_async_engine(f"sqlite:///{path}") for _ in range(2))
    collector.add(first)
    with pytest.raises(ValueError, match="another name, as in add"):
        collector.add(second)
    collector.add(second, "second")
    await table(first)
    await add(second)
    samples = [sample for metric in collector.collect() for sample in metric.samples]
    found = {(each.name, each.labels["database"]): each.value for each in samples}
    assert found["qsession_commits_total", str(path)] == 1
    assert found["qsession_commits_total", "second"] == 1
    assert found["qsession_fsync_seconds_count", str(path)] == 2
    assert found["qsession_fsync_seconds_count", "second"] == 0
    assert len(samples) == len({(each.name, *each.labels.values()) for each in samples})
    await first.dispose()
    await second.dispose()


async def test_the_garbage_collector_may_tell_an_event_while_one_is_noted(
    collector: QueueCollector, value: Value, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An abandoned transaction gives its ticket back in the middle of any line, in the thread."""
    engine = create_async_engine(f"sqlite:///{tmp_path / 'app.db'}")
    collector.add(engine, "app")
    await table(engine)
    observe, inner = HistogramRecorder.observe, []

    def collects(recorder: HistogramRecorder, seconds: float) -> None:
        if not inner:
            inner.append(events.Synced(str(tmp_path / "app.db"), 1.0, failed=True))
            events.emit(inner[0])
        observe(recorder, seconds)

    with monkeypatch.context() as patched:
        patched.setattr(HistogramRecorder, "observe", collects)
        told = threading.Thread(
            target=events.emit,
            args=[events.DiskWait(str(tmp_path / "app.db"), 1.0, "confirmed")],
            daemon=True,
        )
        told.start()
        await asyncio.to_thread(told.join, PATIENCE)
    assert not told.is_alive()
    assert value("fsync_failures_total") == 1
    assert value("disk_wait_seconds_count") == 2
    await engine.dispose()


async def test_other_engines_are_not_counted(
    collector: QueueCollector, value: Value, tmp_path: Path
) -> None:
    """The events of an engine on another file are nobody's."""
    ours = create_async_engine(f"sqlite:///{tmp_path / 'app.db'}")
    other = create_async_engine(f"sqlite:///{tmp_path / 'other.db'}")
    collector.add(ours, "app")
    await table(ours)
    await table(other)
    assert value("fsync_seconds_count") == 1
    await ours.dispose()
    await other.dispose()


async def test_an_engine_of_a_framework_is_published(
    collector: QueueCollector, value: Value, tmp_path: Path
) -> None:
    """SQLAlchemy made it of the URL; so is the memory database, which has no name of its own."""
    engine = sqlalchemy.ext.asyncio.create_async_engine(f"sqlite+qsession:///{tmp_path / 'app.db'}")
    memory = sqlalchemy.ext.asyncio.create_async_engine("sqlite+qsession://")
    collector.add(engine, "app")
    collector.add(memory)
    await table(engine)
    await table(memory)
    assert value("commits_total") == value("commits_total", ":memory:") == 1
    await engine.dispose()
    await memory.dispose()


def test_a_synchronous_engine_is_published(
    collector: QueueCollector, value: Value, tmp_path: Path
) -> None:
    """Its waits for the disk are counted as well."""
    engine = create_engine(f"sqlite:///{tmp_path / 'app.db'}")
    collector.add(engine, "app")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (v INTEGER)"))
    assert value("commits_total") == value("disk_wait_seconds_count") == 1
    engine.dispose()


def test_an_engine_without_statistics_is_refused(collector: QueueCollector) -> None:
    """SQLAlchemy's own engine has no queue to publish."""
    with pytest.raises(InvalidRequestError, match="has no write queue"):
        collector.add(sqlalchemy.create_engine("sqlite://"))
    assert not any(metric.samples for metric in collector.collect())


def test_engines_in_two_loops(collector: QueueCollector, value: Value, tmp_path: Path) -> None:
    """One after the other, and counts go on where they were."""
    engine = create_async_engine(f"sqlite:///{tmp_path / 'app.db'}")
    collector.add(engine, "app")

    async def use(begin: Callable[[AsyncEngine], object]) -> None:
        await begin(engine)  # type: ignore[misc]
        await engine.dispose()

    asyncio.run(use(table))
    asyncio.run(use(add))
    assert value("commits_total") == value("disk_wait_seconds_count") == 2


async def test_an_engine_is_not_kept_alive(
    collector: QueueCollector, value: Value, tmp_path: Path
) -> None:
    """After dispose() the figures stay; when the engine is gone, they are, and its name is free."""
    engine = create_async_engine(f"sqlite:///{tmp_path / 'app.db'}")
    collector.add(engine, "app")
    await table(engine)
    await engine.dispose()
    assert value("commits_total") == value("fsync_seconds_count") == 1
    assert value("connections") == 0
    del engine

    def is_gone() -> bool:
        gc.collect()
        return value("commits_total") is None

    await eventually(is_gone)
    again = create_async_engine(f"sqlite:///{tmp_path / 'app.db'}")
    collector.add(again, "app")
    assert value("commits_total") == value("fsync_seconds_count") == 0
    await again.dispose()


async def test_close_ends_it_and_a_new_collector_may_come(
    registry: CollectorRegistry, tmp_path: Path
) -> None:
    """Names are taken while it is there, two of them raise; close() may be called twice."""
    engine = create_async_engine(f"sqlite:///{tmp_path / 'app.db'}")
    collector = QueueCollector(engine, registry=registry)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        QueueCollector(registry=registry)
    assert len(events.observers) == 1
    with suppress(KeyError):
        registry.unregister(collector)
    collector.close()
    collector.close()
    assert not events.observers
    QueueCollector(engine, registry=registry).close()
    await engine.dispose()


async def test_a_real_scrape(
    collector: QueueCollector, registry: CollectorRegistry, tmp_path: Path
) -> None:
    """Prometheus's own server, in its thread, while the queue is in use."""
    engine = create_async_engine(f"sqlite:///{tmp_path / 'app.db'}")
    collector.add(engine, "app")
    await table(engine)
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    url = f"http://127.0.0.1:{server.server_port}/metrics"

    def scrape() -> str:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return str(answer.read().decode())

    try:
        async with engine.begin() as connection:
            await connection.execute(ADD)
            task = asyncio.create_task(add(engine))
            await eventually(lambda: engine.stats().waiting == 1)
            told = await asyncio.to_thread(scrape)
        await task
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert 'qsession_ticket_waiting{database="app"} 1.0' in told
    assert re.search(r'^qsession_ticket_holder_seconds\{database="app"\} 0\.\d', told, re.MULTILINE)
    assert "# TYPE qsession_ticket_wait_seconds histogram" in told
    assert "# TYPE qsession_commits_total counter" in told
    for line in told.splitlines():
        assert line.startswith(("# HELP qsession_", "# TYPE qsession_", "qsession_"))
    await engine.dispose()


@pytest.mark.servers
async def test_waits_for_connections_of_a_server(
    collector: QueueCollector, value: Value, postgresql: str
) -> None:
    """A server has no ticket: its metrics are named after connections."""
    engine = create_async_engine(postgresql, pool_size=1, max_overflow=0, max_waiting=1)
    collector.add(engine, "app")
    await table(engine)
    async with engine.connect():
        task = asyncio.create_task(add(engine))
        await eventually(lambda: value("connection_waiting") == 1)
        with pytest.raises(QueueFull):
            await add(engine)
    await task
    assert value("connection_waiting") == 0
    assert value("connection_wait_seconds_count") == 3
    assert value("connection_refused_total") == 1
    assert value("connection_held_seconds_count") == 3
    assert value("commits_total") == 2
    assert value("connections") == 1
    assert value("ticket_waiting") is value("fsync_seconds_count") is None
    await engine.dispose()


@pytest.mark.servers
def test_a_synchronous_engine_on_a_server_has_none(
    collector: QueueCollector, postgresql: str
) -> None:
    """Its pool is SQLAlchemy's own."""
    url = sqlalchemy.make_url(postgresql).set(drivername="postgresql+psycopg")
    engine = create_engine(url)
    with pytest.raises(InvalidRequestError, match="has no write queue"):
        collector.add(engine)
    engine.dispose()


PAGE = (ROOT / "docs" / "howto" / "prometheus.md").read_text()
WORKER = """
import asyncio, multiprocess
from qsession import create_async_engine
from sqlalchemy import text

async def main():
    engine = create_async_engine("sqlite:///app.db")
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE IF NOT EXISTS t (v INTEGER)"))
        await connection.execute(text("INSERT INTO t VALUES (1)"))
    await engine.dispose()

asyncio.run(main())
"""
ADD_UP = """
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

registry = CollectorRegistry()
MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""


def test_the_page_names_metrics_that_are_there(collector: QueueCollector) -> None:
    """The table, the alarms and the queries; and the table has all of them."""
    metrics = {each.name: each.type for each in collector.describe()}
    published = {
        name + suffix
        for name, kind in metrics.items()
        for suffix in {"counter": ["_total"], "histogram": ["", "_bucket", "_sum", "_count"]}.get(
            kind, [""]
        )
    }
    named = set(re.findall(r"qsession_\w+", PAGE))
    assert named <= published
    assert {name for name in published if not name.endswith(("_bucket", "_sum", "_count"))} <= named


def test_metrics_of_several_processes_are_added_up(tmp_path: Path) -> None:
    """What the page proposes for the multiprocess mode, in two processes and a third that asks."""
    (block,) = re.findall(r"```python\n(# multiprocess.py\n.*?)```", PAGE, re.DOTALL)
    (tmp_path / "multiprocess.py").write_text(block)
    shared = tmp_path / "shared"
    shared.mkdir()
    path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    variables = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(shared), "PYTHONPATH": path}
    for program in (WORKER, WORKER, ADD_UP):
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
    assert 'app_disk_wait_seconds_count{outcome="confirmed"} 2.0' in done.stdout
    assert "app_ticket_held_seconds_count 2.0" in done.stdout
