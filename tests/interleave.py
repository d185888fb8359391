"""Transactions taken apart into steps, run in an order that a test lays down, and checked.

A step that has to wait is left waiting, and the steps of the others go on. Afterwards
:func:`serial_order` looks for an order in which the acknowledged transactions, one after the
other on a plain SQLite database, would have seen and left the same.

Where each SELECT sees the latest commit, :func:`as_promised` says what has to have such an order:
a transaction that has written, with what it had seen last, and each other SELECT by itself.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Executable, Select, text
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

STUCK = 60.0
"""Seconds after which a stage that does not settle is taken for stuck."""
SAVEPOINTS = ("savepoint", "rollback to", "release")
OPEN, COMMITTED, ROLLED_BACK = "open", "committed", "rolled back"


@dataclass
class Transaction:
    """What one transaction did and saw, and when on the stage's clock."""

    name: str
    began: int
    steps: list[tuple[str, Any]] = field(default_factory=list)
    times: list[tuple[int, int]] = field(default_factory=list)
    """When each step was sent, and when it was answered."""
    first_write: int | None = None
    """Which of the steps took the write lock, if one did."""
    latest: bool = False
    """Whether its SELECTs see the latest commit, each by itself, until it writes."""
    outcome: str = OPEN
    error: BaseException | None = None
    ended: int = 0

    def __repr__(self) -> str:
        end = repr(self.error) if self.error else self.outcome
        lines = "".join(f"\n    {sql} -> {seen}" for sql, seen in self.steps)
        return f"{self.name} [{self.began}, {self.ended}] {end}{lines}"


@dataclass(frozen=True)
class Stream:
    """A step that reads a query little by little, to its end."""

    query: Executable


def literal(statement: Executable | str) -> str:
    """The SQL of a statement with its values in it."""
    if isinstance(statement, str):
        return statement
    options = {"literal_binds": True}
    return str(statement.compile(dialect=sqlite.dialect(), compile_kwargs=options))  # type: ignore[attr-defined]


def reads(step: Any) -> bool:
    """Whether a step only reads."""
    if isinstance(step, str):
        return step.startswith("SELECT")
    locks = getattr(step, "_for_update_arg", None) is not None
    return isinstance(step, Stream) or (isinstance(step, Select) and not locks)


class Actor:
    """One task, which plays the steps it is sent in sessions of its own, one a transaction."""

    def __init__(
        self, stage: Stage, name: str, make_session: Callable[[], AsyncSession], latest: bool
    ) -> None:
        self._stage = stage
        self._name = name
        self._latest = latest
        self._make_session = make_session
        self._steps: asyncio.Queue[Any] = asyncio.Queue()
        self._now: Transaction | None = None
        self._savepoints: list[Any] = []
        self.unfinished = 0
        self.task = asyncio.create_task(self._play())

    def send(self, step: Any) -> None:
        self.unfinished += 1
        self._steps.put_nowait(step)

    async def _play(self) -> None:
        while True:
            step = await self._steps.get()
            session = self._make_session()
            self._now = self._stage.begin(self._name)
            self._now.latest = self._latest
            while step not in ("commit", "rollback"):
                await self._attempt(session, step)
                self.unfinished -= 1
                step = await self._steps.get()
            await self._end(session, step)
            self.unfinished -= 1

    async def _attempt(self, session: AsyncSession, step: Any) -> None:
        now = self._now
        assert now is not None
        if now.error is not None:
            return
        sent = self._stage.tick()
        try:
            now.steps.append(await self._execute(session, step))
        except Exception as error:  # the test decides which errors may be
            now.error = error
            return
        now.times.append((sent, self._stage.tick()))
        if now.first_write is None and not reads(step) and step not in SAVEPOINTS:
            now.first_write = len(now.steps) - 1

    async def _execute(self, session: AsyncSession, step: Any) -> tuple[str, Any]:
        depth = len(self._savepoints)
        if step == "savepoint":
            self._savepoints.append(await session.begin_nested())
            return f"SAVEPOINT s{depth}", None
        if step in ("rollback to", "release"):
            if not depth:
                return "SELECT 1 WHERE 0", []
            savepoint = self._savepoints.pop()
            await (savepoint.commit() if step == "release" else savepoint.rollback())
            sql = "RELEASE" if step == "release" else "ROLLBACK TO"
            return f"{sql} s{depth - 1}", None
        if isinstance(step, Stream):
            result = await session.stream(step.query)
            return literal(step.query), [tuple(row) async for row in result]
        try:
            result = await session.execute(text(step) if isinstance(step, str) else step)
        except IntegrityError:
            return literal(step), "IntegrityError"
        if result.returns_rows:
            return literal(step), [tuple(row) for row in result]
        return literal(step), result.rowcount  # type: ignore[attr-defined]

    async def _end(self, session: AsyncSession, step: str) -> None:
        now = self._now
        assert now is not None
        try:
            if step == "commit" and now.error is None:
                await session.commit()
                now.outcome = COMMITTED
            else:
                await session.rollback()
                now.outcome = ROLLED_BACK
        except Exception as error:  # as above
            now.error = error
        finally:
            self._savepoints.clear()
            await session.close()
            now.ended = self._stage.tick()


class Stage:
    """Where actors play. ``waiting`` tells how many of them wait in the engine's queue.

    ``patience`` seconds pass before a waiting step is left waiting: none for an engine that lets
    it wait until the holder ends, some for one that is expected to find another way.
    """

    def __init__(self, waiting: Callable[[], int], patience: float = 0.0) -> None:
        self._waiting = waiting
        self._patience = patience
        self._clock = 0
        self._actors: dict[str, Actor] = {}
        self.history: list[Transaction] = []

    def actor(
        self, name: str, make_session: Callable[[], AsyncSession], latest: bool = False
    ) -> None:
        """Let somebody play; ``latest``: each of its SELECTs sees the latest commit."""
        self._actors[name] = Actor(self, name, make_session, latest)

    def tick(self) -> int:
        self._clock += 1
        return self._clock

    def begin(self, name: str) -> Transaction:
        self.history.append(Transaction(name, self.tick()))
        return self.history[-1]

    async def play(self, script: Sequence[tuple[str, Any]]) -> list[Transaction]:
        """Send each step when the ones before are done or wait; return when all have ended."""
        for name, step in script:
            self._actors[name].send(step)
            await asyncio.wait_for(self._settle(), STUCK)
        await asyncio.wait_for(self._finish(), STUCK)
        for actor in self._actors.values():
            actor.task.cancel()
        return self.history

    def _busy(self) -> int:
        for actor in self._actors.values():
            if actor.task.done():
                actor.task.result()
        return sum(1 for actor in self._actors.values() if actor.unfinished)

    async def _settle(self) -> None:
        patience = self._patience
        while (busy := self._busy()) > self._waiting() or (busy and patience > 0):
            patience -= 0.001 if busy == self._waiting() else 0
            await asyncio.sleep(0.001)

    async def _finish(self) -> None:
        while self._busy():
            await asyncio.sleep(0.001)


def as_promised(history: Sequence[Transaction]) -> list[Transaction]:
    """What has to have a serial order.

    Where SELECTs see the latest commit, each is one transaction. One that has written is none the
    less one with what it had seen last: no write is on top of what has changed.
    """
    found = []
    for each in history:
        if not each.latest:
            found.append(each)
            continue
        first = len(each.steps) if each.first_write is None else each.first_write
        before = [sql for sql, _ in each.steps[:first]]
        alone = [
            number
            for number, sql in enumerate(before)
            if sql.startswith("SELECT")
            and (each.first_write is None or sql in before[number + 1 :])
        ]
        for number in alone:
            began, ended = each.times[number]
            name = f"{each.name}.{number}"
            steps = [each.steps[number]]
            found.append(Transaction(name, began, steps, outcome=COMMITTED, ended=ended))
        rest = [step for number, step in enumerate(each.steps) if number not in alone]
        found.append(replace(each, steps=rest))
    return found


def serial_order(
    schema: str, history: Sequence[Transaction], final: dict[str, list[Any]]
) -> list[str] | None:
    """An order of the committed transactions that explains all they saw and what is left.

    One that was acknowledged before another began comes before it. ``final`` maps queries to the
    rows they return now.
    """
    oracle = sqlite3.connect(":memory:", isolation_level=None)
    oracle.executescript(schema)
    try:
        promised = as_promised(history)
        committed = [each for each in promised if each.outcome == COMMITTED and not each.error]
        return next(_orders(oracle, committed, final, 0), None)
    finally:
        oracle.close()


def _orders(
    oracle: sqlite3.Connection, left: list[Transaction], final: dict[str, list[Any]], depth: int
) -> Iterator[list[str]]:
    if not left and all(oracle.execute(sql).fetchall() == rows for sql, rows in final.items()):
        yield []
    first_end = min((each.ended for each in left), default=0)
    for each in left:
        if each.began > first_end:
            continue
        oracle.execute(f"SAVEPOINT order{depth}")
        if all(_observe(oracle, sql) == seen for sql, seen in each.steps):
            rest = [other for other in left if other is not each]
            for order in _orders(oracle, rest, final, depth + 1):
                yield [each.name, *order]
        oracle.execute(f"ROLLBACK TO order{depth}")
        oracle.execute(f"RELEASE order{depth}")


def _observe(oracle: sqlite3.Connection, sql: str) -> Any:
    try:
        cursor = oracle.execute(sql)
    except sqlite3.IntegrityError:
        return "IntegrityError"
    if cursor.description:
        return cursor.fetchall()
    return cursor.rowcount if cursor.rowcount >= 0 else None
