"""The Hermitage catalogue: which anomalies two or three transactions can produce together.

None of them may happen here, in no access mode: a step waits, or ends in ConflictError, or sees
and leaves what some serial order of the transactions would. The names are those of Adya's
"Weak Consistency" and of Kleppmann's Hermitage, where each interleaving is discussed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from interleave import COMMITTED, Stage, Stream, Transaction, serial_order
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from qsession import ConflictError, create_async_engine

SCHEMA = """
    CREATE TABLE test (id INTEGER PRIMARY KEY, value INTEGER NOT NULL);
    INSERT INTO test VALUES (1, 10), (2, 20);
"""
NEVER = 3600.0

ALL = "SELECT * FROM test ORDER BY id"
ONE = "SELECT * FROM test WHERE id = 1"
TWO = "SELECT * FROM test WHERE id = 2"

# The steps of each catalogue entry, in the order in which they are sent.
CATALOGUE = {
    "G0: write cycles": [
        ("T1", "UPDATE test SET value = 11 WHERE id = 1"),
        ("T2", "UPDATE test SET value = 12 WHERE id = 1"),
        ("T1", "UPDATE test SET value = 21 WHERE id = 2"),
        ("T1", "commit"),
        ("T2", "UPDATE test SET value = 22 WHERE id = 2"),
        ("T2", "commit"),
    ],
    "G1a: aborted reads": [
        ("T1", "UPDATE test SET value = 101 WHERE id = 1"),
        ("T2", ALL),
        ("T1", "rollback"),
        ("T2", ALL),
        ("T2", "commit"),
    ],
    "G1b: intermediate reads": [
        ("T1", "UPDATE test SET value = 101 WHERE id = 1"),
        ("T2", ALL),
        ("T1", "UPDATE test SET value = 11 WHERE id = 1"),
        ("T1", "commit"),
        ("T2", ALL),
        ("T2", "commit"),
    ],
    "G1c: circular information flow": [
        ("T1", "UPDATE test SET value = 11 WHERE id = 1"),
        ("T2", "UPDATE test SET value = 22 WHERE id = 2"),
        ("T1", TWO),
        ("T2", ONE),
        ("T1", "commit"),
        ("T2", "commit"),
    ],
    "OTV: observed transaction vanishes": [
        ("T1", "UPDATE test SET value = 11 WHERE id = 1"),
        ("T1", "UPDATE test SET value = 19 WHERE id = 2"),
        ("T2", "UPDATE test SET value = 12 WHERE id = 1"),
        ("T1", "commit"),
        ("T3", ONE),
        ("T2", "UPDATE test SET value = 18 WHERE id = 2"),
        ("T3", TWO),
        ("T2", "commit"),
        ("T3", TWO),
        ("T3", ONE),
        ("T3", "commit"),
    ],
    "PMP: predicate many preceders": [
        ("T1", "SELECT * FROM test WHERE value = 30"),
        ("T2", "INSERT INTO test VALUES (3, 30)"),
        ("T2", "commit"),
        ("T1", "SELECT * FROM test WHERE value % 3 = 0"),
        ("T1", "commit"),
    ],
    "PMP: predicate many preceders, written": [
        ("T1", "UPDATE test SET value = value + 10"),
        ("T2", ALL),
        ("T2", "DELETE FROM test WHERE value = 20"),
        ("T1", "commit"),
        ("T2", ALL),
        ("T2", "commit"),
    ],
    "P4: lost update": [
        ("T1", ONE),
        ("T2", ONE),
        ("T1", "UPDATE test SET value = 11 WHERE id = 1"),
        ("T2", "UPDATE test SET value = 12 WHERE id = 1"),
        ("T1", "commit"),
        ("T2", "commit"),
    ],
    "G-single: read skew": [
        ("T1", ONE),
        ("T2", ONE),
        ("T2", TWO),
        ("T2", "UPDATE test SET value = 12 WHERE id = 1"),
        ("T2", "UPDATE test SET value = 18 WHERE id = 2"),
        ("T2", "commit"),
        ("T1", TWO),
        ("T1", "commit"),
    ],
    "G-single: read skew through a predicate": [
        ("T1", "SELECT * FROM test WHERE value % 5 = 0"),
        ("T2", "UPDATE test SET value = 12 WHERE value = 10"),
        ("T2", "commit"),
        ("T1", "SELECT * FROM test WHERE value % 3 = 0"),
        ("T1", "commit"),
    ],
    "G-single: read skew, then a write by predicate": [
        ("T1", ONE),
        ("T2", ALL),
        ("T2", "UPDATE test SET value = 12 WHERE id = 1"),
        ("T2", "UPDATE test SET value = 18 WHERE id = 2"),
        ("T2", "commit"),
        ("T1", "DELETE FROM test WHERE value = 20"),
        ("T1", "commit"),
    ],
    "G-single: read skew, the other rolled back": [
        ("T1", ONE),
        ("T2", "UPDATE test SET value = 12 WHERE id = 1"),
        ("T2", "UPDATE test SET value = 18 WHERE id = 2"),
        ("T1", "UPDATE test SET value = value + 1 WHERE value = 20"),
        ("T2", "rollback"),
        ("T1", "commit"),
    ],
    "G2-item: write skew": [
        ("T1", ALL),
        ("T2", ALL),
        ("T1", "UPDATE test SET value = 11 WHERE id = 1"),
        ("T2", "UPDATE test SET value = 21 WHERE id = 2"),
        ("T1", "commit"),
        ("T2", "commit"),
    ],
    "G2: anti-dependency cycles through a predicate": [
        ("T1", "SELECT * FROM test WHERE value % 3 = 0"),
        ("T2", "SELECT * FROM test WHERE value % 3 = 0"),
        ("T1", "INSERT INTO test VALUES (3, 30)"),
        ("T2", "INSERT INTO test VALUES (4, 42)"),
        ("T1", "commit"),
        ("T2", "commit"),
        ("T1", "SELECT * FROM test WHERE value % 3 = 0 ORDER BY id"),
        ("T1", "commit"),
    ],
    "G2: two anti-dependency edges (Fekete)": [
        ("T1", ALL),
        ("T2", "UPDATE test SET value = value + 5 WHERE id = 2"),
        ("T2", "commit"),
        ("T3", ALL),
        ("T3", "commit"),
        ("T1", "UPDATE test SET value = 0 WHERE id = 1"),
        ("T1", "commit"),
    ],
}
Script = Sequence[tuple[str, Any]]


def read_only(script: Script) -> set[str]:
    """The transactions of a script that only read."""
    ends = ("SELECT", "commit", "rollback")
    return {name for name, _ in script} - {
        name for name, step in script if not str(step).startswith(ends)
    }


def first_reads(script: Script) -> Iterator[str]:
    """The SELECTs that a transaction of the script begins with."""
    began = set()
    for name, step in script:
        if step in ("commit", "rollback"):
            began.discard(name)
        elif name not in began:
            began.add(name)
            if step.startswith("SELECT"):
                yield step


async def play(
    path: Path, script: Script, access: str, stall_after: float
) -> tuple[list[Transaction], dict[str, list[tuple[int, int]]]]:
    """What the transactions of a script did, and what they left in the file."""
    with sqlite3.connect(path) as setup:
        setup.executescript(SCHEMA)
    setup.close()
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", stall_after=stall_after)
    stage = Stage(lambda: engine.stats().waiting, patience=0.0 if stall_after else 0.03)
    mode = "auto" if access == "predicted" else access
    for name in sorted({name for name, _ in script}):
        reads = access == "read" and name in read_only(script)
        options = {"qsession_access": "read" if reads else "auto" if access == "read" else mode}
        bind = engine.execution_options(**options)
        stage.actor(name, lambda bind=bind: AsyncSession(bind))  # type: ignore[misc]
    if access == "predicted":
        for step in first_reads(script):
            for _ in range(16):
                async with AsyncSession(engine) as session:
                    await session.execute(text(step))
                    await session.commit()
    history = await stage.play(script)
    outside = sqlite3.connect(path, timeout=0.2, isolation_level=None)
    outside.execute("BEGIN IMMEDIATE")
    final = {ALL: outside.execute(ALL).fetchall()}
    outside.close()
    await engine.dispose()
    return history, final


@pytest.mark.parametrize("stall_after", [NEVER, 0.0], ids=["waits", "suspends"])
@pytest.mark.parametrize("access", ["write", "auto", "predicted", "read"])
@pytest.mark.parametrize("anomaly", CATALOGUE)
async def test_no_anomaly(tmp_path: Path, anomaly: str, access: str, stall_after: float) -> None:
    """The transactions of the interleaving did, saw and left what they do in some serial order."""
    history, final = await play(tmp_path / "app.db", CATALOGUE[anomaly], access, stall_after)
    errors = [each.error for each in history if each.error is not None]
    assert all(isinstance(error, ConflictError) for error in errors), history
    assert serial_order(SCHEMA, history, final) is not None, (history, final)
    if access == "write" and stall_after == NEVER:
        assert not errors  # whoever asks first waits for nobody, so nothing can go stale


@pytest.mark.parametrize("anomaly", ["G-single: read skew", "PMP: predicate many preceders"])
async def test_a_reader_keeps_its_snapshot(tmp_path: Path, anomaly: str) -> None:
    """A transaction known as a reader sees one moment, and the writer beside it does not wait."""
    history, _ = await play(tmp_path / "app.db", CATALOGUE[anomaly], "read", NEVER)
    reader, writer = history
    assert (reader.name, writer.name) == ("T1", "T2")
    assert writer.outcome == reader.outcome == COMMITTED
    assert writer.ended < reader.ended
    assert reader.steps[-1][1] in ([(2, 20)], [])


async def test_a_lost_update_is_a_conflict(tmp_path: Path) -> None:
    """Two predicted readers that both write: the second has read what the first one changed."""
    script = CATALOGUE["P4: lost update"]
    (first, second), final = await play(tmp_path / "app.db", script, "predicted", NEVER)
    assert first.outcome == COMMITTED
    assert isinstance(second.error, ConflictError)
    assert final[ALL] == [(1, 11), (2, 20)]


@pytest.mark.parametrize("found", [0, 1])
async def test_the_end_of_a_stream_was_read_too(tmp_path: Path, found: int) -> None:
    """Two predicted readers stream to the end, then insert: the second has missed a row."""
    path = tmp_path / "app.db"
    query = text(f"SELECT * FROM test WHERE value % 3 = 0 OR id = {found}")
    script = [
        *[("T1", step) for _ in range(16) for step in (Stream(query), "commit")],
        ("T1", Stream(query)),
        ("T2", Stream(query)),
        ("T1", "INSERT INTO test VALUES (3, 30)"),
        ("T1", "commit"),
        ("T2", "INSERT INTO test VALUES (4, 42)"),
        ("T2", "commit"),
    ]
    history, final = await play(path, script, "auto", NEVER)
    assert serial_order(SCHEMA, history, final) is not None, (history, final)
    assert isinstance(history[-1].error, ConflictError)


def test_the_check_finds_anomalies() -> None:
    """Histories with a lost update, a write skew or a stale read are explained by no order."""
    lost = [
        Transaction("T1", 1, [(ONE, [(1, 10)])], COMMITTED, ended=8),
        Transaction("T2", 2, [(ONE, [(1, 10)])], COMMITTED, ended=9),
    ]
    lost[0].steps.append(("UPDATE test SET value = 11 WHERE id = 1", 1))
    lost[1].steps.append(("UPDATE test SET value = 12 WHERE id = 1", 1))
    assert serial_order(SCHEMA, lost, {ALL: [(1, 12), (2, 20)]}) is None
    skew = [
        Transaction("T1", 1, [(ALL, [(1, 10), (2, 20)])], COMMITTED, ended=8),
        Transaction("T2", 2, [(ALL, [(1, 10), (2, 20)])], COMMITTED, ended=9),
    ]
    skew[0].steps.append(("UPDATE test SET value = 11 WHERE id = 1", 1))
    skew[1].steps.append(("UPDATE test SET value = 21 WHERE id = 2", 1))
    assert serial_order(SCHEMA, skew, {ALL: [(1, 11), (2, 21)]}) is None
    stale = [
        Transaction("T1", 1, [("UPDATE test SET value = 11 WHERE id = 1", 1)], COMMITTED, ended=2),
        Transaction("T2", 3, [(ONE, [(1, 10)])], COMMITTED, ended=4),
    ]
    assert serial_order(SCHEMA, stale, {ALL: [(1, 11), (2, 20)]}) is None
    stale[0].ended = 4  # still running when the reader began: either may be first
    assert serial_order(SCHEMA, stale, {ALL: [(1, 11), (2, 20)]}) == ["T2", "T1"]
