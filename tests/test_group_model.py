"""Random members of commit groups: the file holds what was acknowledged, in a serial order."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
from cancelling import PATIENCE
from grouping import AGES, check_foreign_keys
from hypothesis import given, settings
from hypothesis import strategies as st
from interleave import COMMITTED, OPEN, ROLLED_BACK, Transaction, serial_order
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from qsession import ConflictError, GroupAborted, QSessionError, create_async_engine
from qsession.sqlite import commits, group

SCHEMA = """
    CREATE TABLE parents (id INTEGER PRIMARY KEY);
    CREATE TABLE children (parent REFERENCES parents DEFERRABLE INITIALLY DEFERRED);
    CREATE TABLE rows (id INTEGER PRIMARY KEY, value INTEGER CHECK (value < 100));
    INSERT INTO rows VALUES (1, 1), (2, 2);
"""
READS = ["SELECT id, value FROM rows ORDER BY id", "SELECT sum(value) FROM rows"]
WRITES = [
    "INSERT INTO rows (value) SELECT 1 + sum(value) % 50 FROM rows",
    "UPDATE rows SET value = (value + 1) % 90 WHERE id = 1",
    "DELETE FROM rows WHERE id = (SELECT max(id) FROM rows WHERE id > 2)",
]
FAILS = [
    "INSERT INTO rows (value) VALUES (1000)",
    "INSERT OR FAIL INTO rows (value) VALUES (7), (1000)",
]
DROPS = "INSERT OR ROLLBACK INTO rows (value) VALUES (1000)"
ORPHAN = "INSERT INTO children (parent) VALUES (1)"
PAUSE, SAVE, RELEASE, UNDO = "pause", "SAVEPOINT", "RELEASE", "ROLLBACK TO"
FINAL = dict.fromkeys((READS[0], "SELECT * FROM children"))
UNSURE = "cancelled while it committed"


@dataclass
class Member:
    """What one transaction is to do."""

    steps: list[str]
    end: str
    cancelled_in: int | None


usual = [READS, WRITES, WRITES]
kinds = [*usual, *usual, FAILS, [PAUSE], [SAVE, RELEASE, UNDO], [DROPS, ORPHAN, *WRITES]]


def steps_of(kinds: list[list[str]]) -> st.SearchStrategy[str]:
    return st.sampled_from(kinds).flatmap(st.sampled_from)


members = st.builds(
    Member,
    st.builds(
        lambda first, rest: [first, *rest], steps_of(usual), st.lists(steps_of(kinds), max_size=5)
    ),
    st.sampled_from(["commit", "commit", "commit", "rollback", "close"]),
    st.none() | st.none() | st.integers(0, 12),
)


class Party:
    """All members at once, and a clock that ends one pause at a time."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.turns: asyncio.Queue[None] = asyncio.Queue()
        self.history: list[Transaction] = []
        self.clock = 0

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    async def play(self, cast: list[Member]) -> None:
        for number in range(len(cast)):
            self.history.append(Transaction(f"T{number}", 0))
        tasks = [
            asyncio.create_task(self.run(member, now))
            for member, now in zip(cast, self.history, strict=True)
        ]
        for turn in itertools.count():
            for task, member in zip(tasks, cast, strict=True):
                if member.cancelled_in == turn:
                    task.cancel()
            for _ in range(10):
                await asyncio.to_thread(int)
            if self.turns.empty():
                self.turns.put_nowait(None)
            if all(task.done() for task in tasks):
                break
            assert turn < 10_000, self.history
        for task in tasks:
            if not task.cancelled():  # before its first step
                task.result()

    async def run(self, member: Member, now: Transaction) -> None:
        connection = await self.engine.connect()
        now.began = self.tick()
        try:
            for step in named(member.steps):
                await self.step(connection, step, now)
            if member.end == "commit":
                now.outcome = UNSURE
                await connection.commit()
                now.outcome = COMMITTED
            elif member.end == "rollback":
                await connection.rollback()
        except (DBAPIError, QSessionError) as error:
            now.error, now.outcome = error, ROLLED_BACK
        except asyncio.CancelledError:
            now.outcome = UNSURE if now.outcome == UNSURE else ROLLED_BACK
        finally:
            now.ended = self.tick()
            try:
                await connection.close()
            except GroupAborted as error:  # what it had read was undone
                now.error, now.outcome = error, ROLLED_BACK

    async def step(self, connection: Any, step: str, now: Transaction) -> None:
        if step == PAUSE:
            await self.turns.get()
            return
        try:
            result = await connection.execute(text(step))
        except IntegrityError:
            if step == DROPS:
                raise
            now.steps.append((step, "IntegrityError"))
            return
        rows = result.all() if result.returns_rows else None
        count = result.rowcount if result.rowcount >= 0 else None
        now.steps.append((step, count if rows is None else [tuple(row) for row in rows]))


def named(steps: list[str]) -> Iterator[str]:
    """The steps with names for their savepoints; without those that have no savepoint."""
    depth = 0
    for step in steps:
        if step == SAVE:
            depth += 1
        elif step in (RELEASE, UNDO) and not depth:
            continue
        yield f"{step} s{depth}" if step in (SAVE, RELEASE, UNDO) else step
        depth -= step == RELEASE


async def play(path: Path, cast: list[Member], options: dict[str, Any]) -> Party:
    """Play it on an engine that knows all texts for short ones."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", pool_size=8, **options)
    event.listen(engine.sync_engine, "connect", check_foreign_keys)
    for sql in [*READS, *WRITES, *FAILS, DROPS, ORPHAN]:
        engine.pool.pace.note(sql, 0.0)
    party = Party(engine)
    first = Member([WRITES[1], PAUSE], "commit", None)  # the others wait for it, and then join
    await asyncio.wait_for(party.play([first, *cast]), PATIENCE)
    hypothesis.event(f"groups: {engine.stats().groups}")
    await engine.dispose()
    return party


def explained(history: list[Transaction], final: dict[str, Any]) -> bool:
    """Whether some serial order explains it, with or without those that were cut off."""
    unsure = [each for each in history if each.outcome == UNSURE]
    for outcomes in itertools.product([COMMITTED, ROLLED_BACK], repeat=len(unsure)):
        for each, outcome in zip(unsure, outcomes, strict=True):
            each.outcome = outcome
        if serial_order(SCHEMA, history, final) is not None:
            return True
    return False


@settings(max_examples=150, deadline=None)
@given(
    cast=st.lists(members, min_size=2, max_size=5),
    durability=st.sampled_from(["full", "normal"]),
    size=st.sampled_from([2, 64]),
    slow=st.sampled_from([0.0, AGES]),
)
def test_every_group_is_serial(cast: list[Member], durability: str, size: int, slow: float) -> None:
    """Members read, write, fail, stop, roll back and are cancelled; what was acknowledged holds."""
    options = {"durability": durability, "group_size": size, "stall_after": AGES}
    with (
        tempfile.TemporaryDirectory() as directory,
        mock.patch.object(commits, "SLOW", slow),
        mock.patch.object(group, "MAX_AGE", AGES),
    ):
        path = Path(directory, "app.db")
        outside = sqlite3.connect(path, timeout=0.2, isolation_level=None)
        outside.executescript(SCHEMA)
        party = asyncio.run(play(path, cast, options))
        outside.execute("BEGIN IMMEDIATE")
        final = {sql: outside.execute(sql).fetchall() for sql in FINAL}
        outside.close()
    history = party.history
    assert final["SELECT * FROM children"] == []
    orphans = any(ORPHAN in member.steps for member in cast)
    for each in history:
        assert each.outcome != OPEN or each.error is None
        if isinstance(each.error, (GroupAborted, ConflictError)):
            assert orphans, history  # only then can somebody have read what was undone
        hypothesis.event(f"{each.outcome}: {type(each.error).__name__}")
    assert explained(history, final), "\n".join(map(repr, history))
