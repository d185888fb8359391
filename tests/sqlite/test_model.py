"""Random transactions in random interleavings: what they saw and left has a serial order.

Hypothesis draws the steps, the modes, what is predicted and the order in which steps are sent; see
``interleave.py`` for how they are played, and what is promised where SELECTs see the latest commit.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st
from interleave import COMMITTED, STUCK, Stage, Stream, Transaction, serial_order
from sqlalchemy import Column, Integer, MetaData, Table, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from qsession import ConflictError, QueuedAsyncEngine, create_async_engine
from qsession.sqlite.queue.prediction import Guess

SCHEMA = """
    CREATE TABLE rows (id INTEGER PRIMARY KEY, value INTEGER NOT NULL);
    INSERT INTO rows VALUES (1, 0), (2, 0);
"""
FINAL = "SELECT id, value FROM rows ORDER BY id"
NEVER = 3600.0

rows = Table("rows", MetaData(), Column("id", Integer, primary_key=True), Column("value", Integer))
ids = st.integers(1, 3)
values = st.integers(1, 9)

read_all = select(rows).order_by(rows.c.id)


def read(id_: int) -> Any:
    return select(rows.c.value).where(rows.c.id == id_)


def add(id_: int, amount: int) -> Any:
    return update(rows).where(rows.c.id == id_).values(value=rows.c.value + amount)


def put(id_: int, value: int) -> Any:
    return insert(rows).values(id=id_, value=value)


READS = st.one_of(ids.map(read), st.sampled_from([read_all, FINAL, Stream(read_all)]))
WRITES = st.one_of(
    st.builds(add, ids, values),
    st.builds(lambda id_, value: f"UPDATE rows SET value = {value} WHERE id = {id_}", ids, values),
    st.builds(put, ids, values),
    ids.map(lambda id_: delete(rows).where(rows.c.id == id_)),
    ids.map(lambda id_: f"DELETE FROM rows WHERE id = {id_} RETURNING value"),
    ids.map(lambda id_: read(id_).with_for_update()),
)
SAVEPOINTS = st.sampled_from(["savepoint", "rollback to", "release"])
ENDS = st.sampled_from(["commit", "commit", "commit", "rollback"])


MODES: dict[str, dict[str, str]] = {
    "auto": {},
    "snapshot": {"qsession_reads": "snapshot"},
    "write": {"qsession_access": "write"},
    "read": {"qsession_access": "read"},
}


@st.composite
def actors(draw: st.DrawFn) -> tuple[str, list[Any]]:
    """A mode, and the steps of one or two transactions in it."""
    mode = draw(st.sampled_from(["auto", "auto", "snapshot", "snapshot", "write", "read"]))
    steps: list[Any] = []
    for _ in range(draw(st.integers(1, 2))):
        kind = READS | SAVEPOINTS if mode == "read" else READS | WRITES | WRITES | SAVEPOINTS
        first = [draw(READS)] if draw(st.integers(0, 3)) else []
        steps += [*first, *draw(st.lists(kind, min_size=1, max_size=4)), draw(ENDS)]
    return mode, steps


async def nobody_holds(engine: QueuedAsyncEngine) -> None:
    """Return when what was broken off is rolled back: that goes on in the background."""
    while engine.stats().holder is not None:
        await asyncio.sleep(0.001)


async def play(
    path: Path, cast: list[tuple[str, list[Any]]], order: list[int], stalls: bool, guess: Any
) -> list[Transaction]:
    """Play the steps of all, one at a time: ``order`` says whose is next."""
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{path}", stall_after=0.0 if stalls else NEVER, pool_size=8
    )
    if guess is not None:
        pool: Any = engine.pool
        pool.write_queue.prediction.guess = lambda site: guess
    stage = Stage(lambda: engine.stats().waiting, patience=0.01 if stalls else 0.0)
    left = []
    for number, (mode, steps) in enumerate(cast):
        bind = engine.execution_options(**MODES[mode])
        make = lambda bind=bind: AsyncSession(bind)  # noqa: E731
        stage.actor(f"T{number}", make, latest=mode == "auto")
        left.append((f"T{number}", list(steps)))
    script = []
    for turn in order:
        name, steps = left[turn % len(left)]
        if steps:
            script.append((name, steps.pop(0)))
    for name, steps in left:
        script += [(name, step) for step in steps]
    history = await stage.play(script)
    await asyncio.wait_for(nobody_holds(engine), STUCK)
    assert engine.stats().waiting == 0
    await engine.dispose()
    return history


@settings(max_examples=120, deadline=None)
@given(
    cast=st.lists(actors(), min_size=2, max_size=3),
    order=st.lists(st.integers(0, 5), max_size=30),
    stalls=st.booleans(),
    guess=st.sampled_from([None, Guess.READS, Guess.VALIDATES]),
)
def test_every_history_is_serial(
    cast: list[tuple[str, list[Any]]], order: list[int], stalls: bool, guess: Any
) -> None:
    """Nothing fails but with ConflictError, and all that was acknowledged has a serial order."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "app.db")
        outside = sqlite3.connect(path, timeout=0.2, isolation_level=None)
        outside.executescript(SCHEMA)
        history = asyncio.run(play(path, cast, order, stalls, guess))
        outside.execute("BEGIN IMMEDIATE")
        final = {FINAL: outside.execute(FINAL).fetchall()}
        outside.close()
    errors = [each.error for each in history if each.error is not None]
    assert all(isinstance(error, ConflictError) for error in errors), history
    assert serial_order(SCHEMA, history, final) is not None, "\n".join(map(repr, history))
    event(f"conflicts: {len(errors)}")
    event(f"committed: {sum(each.outcome == COMMITTED for each in history)}")
