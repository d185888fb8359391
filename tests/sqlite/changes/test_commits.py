"""What observers are told of our own commits and of those of others, at each moment."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cancelling import eventually
from sqlalchemy import text
from sqlalchemy.util import greenlet_spawn

from qsession import create_async_engine
from qsession.sqlite.changes import commits as module
from qsession.sqlite.changes.commits import Commits, Witness
from qsession.sqlite.transaction.decide import State
from qsession.sqlite.transaction.work import MOST_SENT, Work
from qsession.waiting.subscription import Subscription

NEVER = 1_000.0
"""Seconds between two looks: the test itself lets them happen."""


class Bench:
    """Two connections to one file: ours, and one of another program; and what was told."""

    def __init__(self, path: Path, engine: Any) -> None:
        self.path = path
        self.engine = engine
        self.told: list[set[str] | None] = []
        self.theirs = sqlite3.connect(path, isolation_level=None, timeout=0)
        self.subscription = Subscription(engine.pool, NEVER)
        self.subscription.begin()
        self.subscription.tell = self._note  # type: ignore[method-assign]

    def _note(self, tables: frozenset[str] | None) -> None:
        self.told.append(None if tables is None else set(tables))

    @property
    def commits(self) -> Commits:
        commits: Commits = self.engine.pool.write_queue.commits
        return commits

    def they_commit(self) -> None:
        self.theirs.execute("INSERT INTO b VALUES (1)")

    def look(self) -> None:
        assert self.commits._look()

    async def ours(self, during: Any = None, rollback: bool = False) -> None:
        """A commit of ours to the table a; ``during`` is called in the midst of it."""

        def commit() -> None:
            lease = self.engine.pool.lease(holder=False)
            try:
                sent: dict[str, Any] = {"INSERT INTO a VALUES (1)": ()}
                Witness(self.commits, lease.driver, sent).around(
                    self._step, lease.driver.raw, during
                )
            finally:
                lease.end()

        await greenlet_spawn(commit)

    def _step(self, raw: sqlite3.Connection, during: Any) -> None:
        if during is not None:
            during("before")
        raw.execute("INSERT INTO a VALUES (1)")
        if during is not None:
            during("after")


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """A file that is observed."""
    engine = create_async_engine(f"sqlite:///{tmp_path / 'a.db'}")
    async with engine.begin() as connection:
        for table in "abc":
            await connection.execute(text(f"CREATE TABLE {table} (x)"))
    made = Bench(tmp_path / "a.db", engine)
    driver = await greenlet_spawn(engine.pool.spare)
    assert made.commits.join(made.subscription, driver)
    yield made
    made.theirs.close()
    await engine.dispose()
    assert not made.commits.observed or made.commits._live() == []
    await eventually(lambda: not driver.is_open)


async def test_our_commit(bench: Bench) -> None:
    """Its tables are told once, and a look behind it finds nothing."""
    await bench.ours()
    assert bench.told == [{"a"}]
    bench.look()
    assert bench.told == [{"a"}]


async def test_their_commit(bench: Bench) -> None:
    """A look tells of it once, and of all tables."""
    bench.they_commit()
    assert bench.told == []
    bench.look()
    bench.look()
    assert bench.told == [None]


async def test_their_commit_before_ours(bench: Bench) -> None:
    """Both are told, each as what it is."""
    bench.they_commit()
    await bench.ours()
    assert bench.told == [None, {"a"}]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_their_commit_beside_ours(bench: Bench, when: str) -> None:
    """In the moment around our commit it is not mistaken for ours."""
    await bench.ours(lambda now: bench.they_commit() if now == when else None)
    assert bench.told == [None]


async def test_their_commit_between_our_looks(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind our last look it is told by the next one."""
    end = Commits.end

    def they_come(self: Commits, tables: Any) -> None:
        end(self, lambda: (bench.they_commit(), tables())[1])  # type: ignore[func-returns-value]

    monkeypatch.setattr(Commits, "end", they_come)
    await bench.ours()
    assert bench.told == [None]
    bench.look()
    assert bench.told == [None, None]


async def test_they_change_the_schema_beside_ours(bench: Bench) -> None:
    """A trigger that they add after our statement was looked at makes all tables count."""

    def add_trigger(now: str) -> None:
        if now == "before":
            bench.theirs.execute(
                "CREATE TRIGGER t AFTER INSERT ON a BEGIN INSERT INTO c VALUES (1); END"
            )

    await bench.ours(add_trigger)
    assert bench.told == [None]
    await bench.ours()
    assert bench.told == [None, {"a", "c"}]


async def test_our_commit_fails(bench: Bench) -> None:
    """Nothing is told, and their next commit is."""

    def fail(now: str) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await bench.ours(fail)
    assert bench.told == []
    bench.they_commit()
    bench.look()
    assert bench.told == [None]


async def test_a_look_while_we_commit(bench: Bench) -> None:
    """It leaves our commit to the one that commits."""
    await bench.ours(lambda now: bench.look())
    assert bench.told == [{"a"}]


async def test_two_engines_commit_at_once(bench: Bench) -> None:
    """Each commit is told, though the look behind one of them has seen both."""
    other = create_async_engine(f"sqlite:///{bench.path}")
    async with other.connect() as connection:
        await connection.execute(text("SELECT 1"))
    assert other.pool.write_queue.commits is bench.commits

    def commit(during: Any) -> None:
        lease = other.pool.lease(holder=False)
        sent: dict[str, Any] = {"INSERT INTO c VALUES (1)": ()}
        try:
            Witness(bench.commits, lease.driver, sent).around(
                lambda raw: (raw.execute("INSERT INTO c VALUES (1)"), during()), lease.driver.raw
            )
        finally:
            lease.end()

    lease = await greenlet_spawn(bench.engine.pool.lease, False)
    try:
        ours = Witness(bench.commits, lease.driver, {"INSERT INTO a VALUES (1)": ()})
        await greenlet_spawn(
            commit,
            lambda: ours.around(
                lambda raw: raw.execute("INSERT INTO a VALUES (1)"), lease.driver.raw
            ),
        )
    finally:
        lease.end()
        await other.dispose()
    assert bench.told
    assert None in bench.told  # all tables, c among them, after both were committed


@pytest.mark.parametrize(
    ("question", "at_once", "later"),
    [
        (1, [None, None], []),  # of our connection, before our commit
        (2, [None], []),  # of the one that looks, before our commit
        (3, [None, {"a"}], [None]),  # of the one that looks, after our commit
        (4, [None, None], []),  # of our connection, after our commit
    ],
)
async def test_another_program_has_locked_the_whole_file(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, question: int, at_once: Any, later: Any
) -> None:
    """Where SQLite cannot answer one of our questions, their commit before ours is told as well."""
    version, asked = module.data_version, []

    def answer(raw: sqlite3.Connection) -> int:
        asked.append(raw)
        if len(asked) == question:
            raise sqlite3.OperationalError("database is locked")
        return version(raw)

    bench.they_commit()
    with monkeypatch.context() as patch:
        patch.setattr(module, "data_version", answer)
        await bench.ours()
    assert len(asked) >= question
    assert bench.told == at_once
    bench.look()
    assert bench.told == at_once + later


async def test_a_look_at_a_locked_file(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds nothing, and the next one does."""
    bench.they_commit()
    with monkeypatch.context() as patch:
        patch.setattr(module, "data_version", lambda raw: raw.execute("raise busy"))
        patch.setattr(module, "sqlite_code", lambda error: 5)
        bench.look()
    assert bench.told == []
    bench.look()
    assert bench.told == [None]


async def test_the_connection_is_of_no_use_any_more(bench: Bench) -> None:
    """The observers learn that they have to subscribe again."""
    driver = bench.commits._driver
    assert driver is not None
    with bench.commits._lock:  # its thread may be looking
        driver.raw.close()
    assert not bench.commits._look()


def test_one_file_has_one_by_any_name(tmp_path: Path) -> None:
    """A symbolic link leads to the same commits, another file to others."""
    (tmp_path / "a.db").touch()
    (tmp_path / "b.db").symlink_to(tmp_path / "a.db")
    one = module.commits_of(str(tmp_path / "a.db"), (1, 2))
    assert module.commits_of(str(tmp_path / "b.db"), (1, 2)) is one
    assert module.commits_of(str(tmp_path / "a.db"), (1, 3)) is not one


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_fork_while_another_thread_opens_a_file(tmp_path: Path) -> None:
    """The child can look up a file: it does not inherit the lock of a thread that it lacks."""
    code = """
import os, signal, threading
from qsession.sqlite.changes.commits import commits_of

class Slow(int):
    def __hash__(self):
        inside.set()
        threading.Timer(0.5, forked.set).start()
        forked.wait()
        return 1

inside, forked = threading.Event(), threading.Event()
thread = threading.Thread(target=commits_of, args=("a", (Slow(1),)))
thread.start()
inside.wait()
child = os.fork()
forked.set()
if child == 0:
    signal.alarm(10)
    commits_of("b", (1,))
    os._exit(0)
thread.join()
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False, timeout=60)
    assert done.returncode == 0


def test_a_transaction_of_very_many_statements_counts_as_a_change_of_all_tables() -> None:
    """What is kept of it is bounded."""
    work = Work()
    work.note("first", ())
    work.state = State.LOCKED
    for number in range(MOST_SENT - 1):
        work.note(f"INSERT {number}", ())
    assert work.sent is not None
    assert len(work.sent) == MOST_SENT
    for number in range(3):
        work.note(f"one more {number}", ())
        assert work.sent is None
