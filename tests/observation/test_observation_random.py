"""Random commits against random observers: each sees a part of the history, and its end.

Each transaction writes the state that it leaves into a log as well. So the log is the sequence of
all committed states, in the order of the commits.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from cancelling import PATIENCE, eventually
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from qsession import create_async_engine
from qsession.session.maker import SessionMaker
from qsession.testing import assert_free

SCHEMA = [
    "CREATE TABLE a (v INTEGER)",
    "CREATE TABLE b (v INTEGER)",
    "CREATE TABLE log (id INTEGER PRIMARY KEY, a INTEGER, b INTEGER)",
    "INSERT INTO a VALUES (0)",
    "INSERT INTO b VALUES (0)",
    "INSERT INTO log VALUES (NULL, 0, 0)",
    "CREATE TRIGGER t AFTER UPDATE ON a WHEN new.v = 3 BEGIN UPDATE b SET v = 3; END",
]
LOG = "INSERT INTO log SELECT NULL, a.v, b.v FROM a, b"
READS = {
    "SELECT v FROM a": lambda a, b: (a,),
    "SELECT v FROM b": lambda a, b: (b,),
    "SELECT a.v, b.v FROM a, b": lambda a, b: (a, b),
    "SELECT max(v) FROM (SELECT v FROM a UNION ALL SELECT v FROM b)": lambda a, b: (max(a, b),),
}
ENDS = ["commit", "rollback", "savepoint", "cancel", "outside"]

writes = st.tuples(st.sampled_from("ab"), st.integers(0, 3))
transactions = st.tuples(st.sampled_from(ENDS), st.lists(writes, min_size=1, max_size=2))
writers = st.lists(transactions, max_size=5)
observers = st.tuples(st.sampled_from(sorted(READS)), st.booleans(), st.integers(0, 6))
"""A statement, whether equal results are left out, and how slow its consumer is."""


def sql_of(write: tuple[str, int]) -> str:
    table, value = write
    return f"UPDATE {table} SET v = {value}"


async def write(engine: AsyncEngine, path: Path, end: str, changes: Sequence[Any]) -> None:
    """One transaction."""
    if end == "outside":
        await asyncio.to_thread(write_outside, path, changes)
        return
    async with engine.connect() as connection:
        with suppress(asyncio.CancelledError):
            for change in changes:
                await connection.execute(text(sql_of(change)))
            if end == "savepoint":
                inner = await connection.begin_nested()
                await connection.execute(text("UPDATE b SET v = 9"))
                await inner.rollback()
            await connection.execute(text(LOG))
            if end == "rollback":
                await connection.rollback()
                return
            committing = asyncio.ensure_future(connection.commit())
            if end == "cancel":
                await asyncio.sleep(0)
                committing.cancel()
            await asyncio.wait([committing])
            with suppress(asyncio.CancelledError):
                committing.result()


def write_outside(path: Path, changes: Sequence[Any]) -> None:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=PATIENCE)) as raw:
        raw.execute("BEGIN IMMEDIATE")
        for change in changes:
            raw.execute(sql_of(change))
        raw.execute(LOG)
        raw.execute("COMMIT")


def is_part_of(seen: Sequence[Any], history: Sequence[Any]) -> bool:
    """Whether one sequence is a subsequence of the other."""
    rest: Iterator[Any] = iter(history)
    return all(each in rest for each in seen)


async def play(path: Path, cast: Sequence[Any], watching: Sequence[Any]) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", pool_size=2, max_overflow=0)
    maker = SessionMaker(bind=engine)
    async with engine.begin() as connection:
        for sql in SCHEMA:
            await connection.execute(text(sql))
    seen: list[list[Any]] = [[] for _ in watching]

    async def watch(number: int) -> None:
        sql, distinct, slow = watching[number]
        async for rows in maker.observe(text(sql), distinct=distinct, look_every=0.005):
            seen[number].append(tuple(rows[0]))
            for _ in range(slow):
                await asyncio.sleep(0)

    async def act(script: Sequence[Any]) -> None:
        for end, changes in script:
            await write(engine, path, end, changes)

    tasks = [asyncio.create_task(watch(number)) for number in range(len(watching))]
    await asyncio.wait_for(asyncio.gather(*map(act, cast)), PATIENCE)
    with closing(sqlite3.connect(path)) as raw:
        log = raw.execute("SELECT a, b FROM log ORDER BY id").fetchall()
        assert raw.execute("SELECT a.v, b.v FROM a, b").fetchone() == log[-1]
    for number, (sql, distinct, _) in enumerate(watching):
        history = [READS[sql](*state) for state in log]
        last, task = history[-1:], tasks[number]
        await eventually(
            lambda shown=seen[number], last=last, task=task: task.done() or shown[-1:] == last
        )
        assert not task.done()
        shown = [each for each, _ in groupby(seen[number])]
        assert shown == seen[number] or not distinct
        assert is_part_of(shown, history), (shown, history)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await engine.dispose()
    assert_free(path)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    cast=st.lists(writers, min_size=1, max_size=3),
    watching=st.lists(observers, min_size=1, max_size=4),
)
def test_each_observer_sees_a_part_of_the_history_and_its_end(
    cast: list[Any], watching: list[Any]
) -> None:
    """Whatever is committed, rolled back or cancelled, by whomever."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(Path(folder) / "a.db", cast, watching))
