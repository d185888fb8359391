"""Calls that are interrupted: by Ctrl-C, or by what another signal handler raises."""

from __future__ import annotations

import asyncio
import gc
import threading
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only
from threads import Interrupted, interruptible, result, start, until

import qsession
from qsession import QSessionError
from qsession.sqlite.cursor import RoutedCursor
from qsession.sqlite.synchronous.connection import SynchronousConnection
from qsession.sqlite.transaction import sending

COUNT = text("SELECT count(*) FROM notes")
NOTE = text("INSERT INTO notes VALUES ('x')")
ENDLESS = text(
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
)


def notes(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(COUNT) or 0)


def write(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(NOTE)


def test_interrupted_while_a_connection_is_made() -> None:
    """There is nothing to give back, and nothing is complained of."""
    connection = SynchronousConnection.__new__(SynchronousConnection)
    del connection
    gc.collect()


def test_interrupted_in_the_line(engine: Engine) -> None:
    """Its place is given up, and those behind it are served."""
    held, ends = threading.Event(), threading.Event()

    def hold() -> None:
        with engine.begin() as connection:
            connection.execute(NOTE)
            held.set()
            ends.wait()

    holder = start(hold)
    held.wait()
    with interruptible() as interrupt_when:
        interrupt_when(lambda: qsession.stats(engine).waiting == 1)
        with pytest.raises(Interrupted):
            write(engine)
    assert qsession.stats(engine).waiting == 0
    behind = start(write, engine)
    until(lambda: qsession.stats(engine).waiting == 1)
    ends.set()
    result(holder)
    result(behind)
    assert notes(engine) == 2


@pytest.mark.parametrize("wrote", [False, True])
def test_interrupted_in_a_statement(engine: Engine, wrote: bool) -> None:
    """It is broken off, and its transaction is rolled back, whatever the application does next."""
    with Session(engine) as s:
        if wrote:
            s.execute(NOTE)
        with interruptible() as interrupt_when:
            interrupt_when(lambda: any_runs(engine))
            with pytest.raises(Interrupted):
                s.execute(ENDLESS)
        s.rollback()
        assert s.scalar(COUNT) == 0
    write(engine)
    assert notes(engine) == 1
    assert qsession.stats(engine).holder is None


def any_runs(engine: Any) -> bool:
    """Whether a statement runs in the thread of a connection."""
    return any(lease.driver._job is not None for lease in list(engine.pool._leases))


def test_an_exception_that_the_application_catches(engine: Engine) -> None:
    """As the time limit of a job: the transaction is gone, and each statement says so."""

    class TimeLimit(Exception):
        pass

    with engine.connect() as connection:
        connection.execute(NOTE)
        with interruptible(TimeLimit) as interrupt_when:
            interrupt_when(lambda: any_runs(engine))
            with pytest.raises(TimeLimit):
                connection.execute(ENDLESS)
        with pytest.raises(QSessionError, match="was cancelled"):
            connection.execute(NOTE)
        connection.rollback()
        connection.execute(NOTE)
        connection.commit()
    assert notes(engine) == 1


def test_interrupted_in_a_commit(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A COMMIT that has begun runs to its end; then the exception goes on."""
    begun, commits = threading.Event(), threading.Event()
    commit = sending.commit

    def slow(*args: Any) -> Any:
        begun.set()
        commits.wait()
        return commit(*args)

    monkeypatch.setattr(engine.pool.pace, "inline", lambda _: False)  # type: ignore[attr-defined]
    monkeypatch.setattr(sending, "commit", slow)
    with engine.connect() as connection:
        connection.execute(NOTE)
        with interruptible() as interrupt_when:
            interrupt_when(begun.is_set)
            letting = start(lambda: (until(begun.is_set), commits.set()))
            with pytest.raises(Interrupted):
                connection.commit()
        result(letting)
    monkeypatch.undo()
    assert notes(engine) == 1
    write(engine)


def test_a_statement_that_has_ended_when_its_thread_is_interrupted(engine: Engine) -> None:
    """The thread never gets to know what it did, so it is undone."""
    connection = engine.connect()
    routed: Any = connection.connection
    ran = threading.Event()

    def run_through_the_cancellation() -> None:
        RoutedCursor(routed).run("INSERT INTO notes VALUES ('y')", ())
        ran.set()
        with suppress(asyncio.CancelledError):
            await_only(asyncio.Event().wait())

    with interruptible() as interrupt_when:
        interrupt_when(ran.is_set)
        with pytest.raises(Interrupted):
            routed.wait_for(run_through_the_cancellation)
    with pytest.raises(QSessionError, match="its thread was interrupted"):
        connection.execute(COUNT)
    connection.rollback()
    assert connection.scalar(COUNT) == 0
    connection.close()
    write(engine)
