"""How much time counts as a statement's own."""

from __future__ import annotations

import sys
import threading

import pytest

from qsession.sqlite.driver import processor
from qsession.sqlite.driver.processor import mark, spent

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
    assert spent(started) > 0


def test_a_wait_for_the_interpreter_does_not_count(switch_interval):
    """As long as another thread may keep the interpreter lock, a wait is taken for that."""
    switch_interval(1000 * WAIT)
    started = mark()
    wait()
    assert spent(started) < WAIT


def test_a_long_wait_counts(switch_interval):
    """What waits for longer does so by itself: a function of the application, for instance."""
    switch_interval(WAIT / 1000)
    started = mark()
    wait()
    assert spent(started) >= WAIT


def test_a_wait_for_the_disk_counts(switch_interval, monkeypatch):
    """A statement that read from the disk would keep the loop from running meanwhile."""
    switch_interval(1000 * WAIT)
    started = mark()
    monkeypatch.setattr(processor, "_blocks", lambda: started[1] + 8)
    wait()
    assert spent(started) >= WAIT


def test_coarse_processor_time(monkeypatch):
    """Where it moves in steps, a step can be more than the clock has moved: then that counts."""
    started = mark()
    monkeypatch.setattr(processor.time, "thread_time", lambda: started[0] + 3600.0)
    assert 0 < spent(started) < 3600.0
