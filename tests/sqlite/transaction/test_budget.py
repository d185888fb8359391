"""The time that a statement has on the loop."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import pytest

from qsession.sqlite.driver.pace import Pace
from qsession.sqlite.driver.physical import DriverConnection
from qsession.sqlite.transaction.plan import Plan
from qsession.sqlite.transaction.runner import Runner
from qsession.sqlite.transaction.statement import Kind, Statement
from qsession.statistics import Counters

COUNT = (
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 100000) "
    "SELECT count(*) FROM n"
)


class Interrupted(sqlite3.Connection):
    """Ctrl-C comes as soon as the handler is set."""

    def set_progress_handler(self, handler: Any, /, n: int) -> None:
        super().set_progress_handler(handler, n)
        if handler is not None:
            raise KeyboardInterrupt


async def test_an_interruption_leaves_no_budget_behind() -> None:
    """The next statement on the connection is not broken off by the time of the one before."""
    with closing(sqlite3.connect(":memory:", factory=Interrupted)) as raw:
        driver = DriverConnection.__new__(DriverConnection)
        driver.raw = raw
        runner = Runner(Pace(True), Counters())
        runner.use_here()
        plan = Plan(Statement(COUNT, kind=Kind.READ), reads=True, budget=0.0)
        with pytest.raises(KeyboardInterrupt):
            runner.run_here(driver, plan)
        assert raw.execute(COUNT).fetchone() == (100_000,)
