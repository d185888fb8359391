"""qsession.ext.logs: which events become records, at which level, and with which fields."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from cancelling import eventually
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from qsession import DurabilityError, QueueTimeout, create_async_engine, create_engine, events
from qsession.ext.logs import LEVELS, TEXTS, log_events
from qsession.testing import held_disk

ADD = text("INSERT INTO t (v) VALUES (1)")
PLAIN = vars(logging.makeLogRecord({}))


class Lines(logging.Handler):
    """Keeps each record as a line of JSON, like the formatters that services use."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        extra = {name: value for name, value in vars(record).items() if name not in PLAIN}
        extra.pop("message", None)
        self.lines.append(
            json.dumps({"level": record.levelname, "said": record.getMessage(), **extra})
        )

    @property
    def records(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.lines]


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger that takes everything."""
    logger = logging.getLogger("qsession.test_logs")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield logger
    logger.handlers.clear()
    assert not events.observers


@pytest.fixture
def lines(logger: logging.Logger) -> Lines:
    """What is logged."""
    lines = Lines()
    logger.addHandler(lines)
    return lines


async def add(engine: AsyncEngine) -> None:
    """A transaction that writes."""
    async with engine.begin() as connection:
        await connection.execute(ADD)


async def table(engine: AsyncEngine) -> None:
    """Make the table of these tests."""
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE t (v INTEGER)"))


async def test_long_waits_and_holds_are_logged_with_their_fields(
    logger: logging.Logger, lines: Lines, tmp_path: Path
) -> None:
    """At threshold 0 everything is long."""
    engine = create_async_engine(f"sqlite:///{tmp_path / 'app.db'}")
    await table(engine)
    stop = log_events(logger, waits=0, holds=0, fsyncs=0)
    async with engine.begin() as connection:
        await connection.execute(ADD)
        task = asyncio.create_task(add(engine), name="second")
        await eventually(lambda: engine.stats().waiting == 1)
    await task
    stop()
    await add(engine)
    kinds = [each["kind"] for each in lines.records]
    assert kinds.count("TicketHeld") == kinds.count("DiskWait") == 2
    assert set(kinds) == {"TicketWait", "TicketHeld", "DiskWait", "Synced"}
    (wait,) = [each for each in lines.records if each["kind"] == "TicketWait"]
    assert wait["level"] == "WARNING"
    assert wait["outcome"] == "granted"
    assert wait["statement"] == ADD.text
    assert wait["database"] == str(tmp_path / "app.db")
    assert isinstance(wait["seconds"], float)
    assert "for the ticket: granted" in str(wait["said"])
    held = [each for each in lines.records if each["kind"] == "TicketHeld"]
    assert "second" in str(held[1]["task"])
    await engine.dispose()


async def test_short_ones_are_not_logged_and_failed_ones_are(
    logger: logging.Logger, lines: Lines, tmp_path: Path
) -> None:
    """A timeout is a warning, and a failed disk an error, however short they were."""
    engine = create_async_engine(f"sqlite:///{tmp_path / 'app.db'}")
    impatient = create_async_engine(f"sqlite:///{tmp_path / 'app.db'}", queue_timeout=0.01)
    stop = log_events(logger, waits=60, holds=60, fsyncs=60)
    try:
        await table(engine)
        async with engine.begin() as connection:
            await connection.execute(ADD)
            with pytest.raises(QueueTimeout):
                await asyncio.create_task(add(impatient))
        assert [(e["kind"], e["level"]) for e in lines.records] == [("TicketWait", "WARNING")]
        lines.lines.clear()
        with held_disk() as disk:
            task = asyncio.create_task(add(engine))
            (await disk.begun()).fail()
            with pytest.raises(DurabilityError):
                await task
        found = sorted((str(each["kind"]), each["level"]) for each in lines.records)
        assert found == [("DiskWait", "ERROR"), ("Synced", "ERROR")]
    finally:
        stop()
    await impatient.dispose()
    await engine.dispose()


def test_levels_can_be_chosen(logger: logging.Logger, lines: Lines, tmp_path: Path) -> None:
    """What the logger does not want is not formatted; a synchronous engine is heard as well."""
    logger.setLevel(logging.INFO)
    levels = {events.TicketHeld: logging.INFO, events.DiskWait: logging.DEBUG}
    stop = log_events(logger, waits=0, holds=0, levels=levels)
    engine = create_engine(f"sqlite:///{tmp_path / 'app.db'}")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (v INTEGER)"))
    engine.dispose()
    stop()
    assert [(each["kind"], each["level"]) for each in lines.records] == [("TicketHeld", "INFO")]


def test_each_kind_of_event_has_a_level_and_a_text(logger: logging.Logger, lines: Lines) -> None:
    """A kind that is added to the events is added here; its fields are no names of a record."""
    kinds = set(events.Event.__subclasses__())
    assert set(LEVELS) == set(TEXTS) == kinds
    samples = {"str": "x", "float": 1.0, "int": 1, "bool": False}
    stop = log_events(logger, waits=0, holds=0, fsyncs=0)
    for kind in kinds:
        wanted = {name: each.type for name, each in kind.__dataclass_fields__.items()}
        events.emit(kind(**{name: samples[str(type_)] for name, type_ in wanted.items()}))
    stop()
    assert {each["kind"] for each in lines.records} == {kind.__name__ for kind in kinds}


def test_a_handler_that_fails_does_no_harm(logger: logging.Logger, tmp_path: Path) -> None:
    """logging itself tells of it; the transaction succeeds."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("no room on the device")

    logger.addHandler(Broken())
    stop = log_events(logger, waits=0, holds=0, fsyncs=0)
    engine = create_engine(f"sqlite:///{tmp_path / 'app.db'}")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (v INTEGER)"))
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM t")) == 0
    engine.dispose()
    stop()
