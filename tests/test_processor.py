"""How much time counts as a statement's own, and which threads let the loop go first."""

from __future__ import annotations

import os
import sys
import threading

import pytest
from cancelling import Bench
from sqlalchemy import event, text

from qsession.sqlite import processor
from qsession.sqlite.processor import NICER, mark, own_time

WAIT = 0.05


@pytest.fixture
def switch_interval():
    """Sets the time after which a thread has to give the interpreter lock back."""
    before = sys.getswitchinterval()
    yield sys.setswitchinterval
    sys.setswitchinterval(before)


def wait():
    threading.Event().wait(WAIT)


def test_processor_time_counts():
    """A statement that computes takes what it computes."""
    started = mark()
    sum(range(100_000))
    assert own_time(started) > 0


def test_a_wait_for_the_interpreter_does_not_count(switch_interval):
    """As long as another thread may keep the interpreter lock, a wait is taken for that."""
    switch_interval(1000 * WAIT)
    started = mark()
    wait()
    assert own_time(started) < WAIT


def test_a_long_wait_counts(switch_interval):
    """What waits for longer does so by itself: a function of the application, for instance."""
    switch_interval(WAIT / 1000)
    started = mark()
    wait()
    assert own_time(started) >= WAIT


def test_a_wait_for_the_disk_counts(switch_interval, monkeypatch):
    """A statement that read from the disk would keep the loop from running meanwhile."""
    switch_interval(1000 * WAIT)
    started = mark()
    monkeypatch.setattr(processor, "_blocks_read", lambda: started[2] + 8)
    wait()
    assert own_time(started) >= WAIT


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority for each thread")
async def test_readers_let_the_loop_go_first(tmp_path):
    """Their threads are nicer than the process; the writer's, for which all wait, is not."""
    bench = Bench(tmp_path / "nice.db", inline=False)

    def nice():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    @event.listens_for(bench.engine.sync_engine, "connect")
    def connect(connection, record):
        connection.create_function("nice", 0, nice)

    seen = {}
    for access in ("read", "write"):
        engine = bench.engine.execution_options(qsession_access=access)
        async with engine.connect() as connection:
            seen[access] = await connection.scalar(text("SELECT nice()")) - nice()
    assert seen == {"read": NICER, "write": 0}
    await bench.engine.dispose()
