"""The Hermitage catalogue: which anomalies two or three transactions can produce together.

With snapshots (access ``read``, ``write``, and ``auto`` with ``reads="snapshot"``) none of them may
happen: a step waits, or ends in ConflictError, or sees and leaves what some serial order of the
transactions would. In plain ``auto``, where each SELECT sees the latest commit, that holds for each
transaction that has written, with what it had seen last: no write is lost, or on top of what has
changed. The names are those of Adya's "Weak Consistency" and of Kleppmann's Hermitage, where each
interleaving is discussed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from interleave import COMMITTED, Stage, Stream, Transaction, serial_order
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from qsession import ConflictError, create_async_engine
from qsession.sqlite.queue.prediction import Guess

SCHEMA = """
    CREATE TABLE test (id INTEGER PRIMARY KEY, value INTEGER NOT NULL);
    INSERT INTO test VALUES (1, 10), (2, 20);
"""
NEVER = 3600.0

ALL = "SELECT * FROM test ORDER BY id"
ONE = "SELECT * FROM test WHERE id = 1"
TWO = "SELECT * FROM test WHERE id = 2"
CHANGE = "UPDATE test SET value = value + 1"

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


MODES: dict[str, dict[str, str]] = {
    "write": {"qsession_access": "write"},
    "snapshot": {"qsession_reads": "snapshot"},
    "auto": {},
    "read": {"qsession_access": "read"},
}
"""The modes; in that of ``read`` only those read in it that only read."""
GUESSES = [None, Guess.READS, Guess.VALIDATES]
"""What the prediction says of every call site; by itself it says to take the ticket first."""


async def play(
    path: Path, script: Script, mode: str, stall_after: float, guess: Guess | None = None
) -> tuple[list[Transaction], dict[str, list[tuple[int, int]]]]:
    """What the transactions of a script did, and what they left in the file."""
    with sqlite3.connect(path) as setup:
        setup.executescript(SCHEMA)
    setup.close()
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", stall_after=stall_after)
    pool: Any = engine.pool
    if guess is not None:
        pool.write_queue.prediction.guess = lambda site: guess
    stage = Stage(lambda: engine.stats().waiting, patience=0.0 if stall_after else 0.03)
    for name in sorted({name for name, _ in script}):
        in_mode = mode if mode != "read" or name in read_only(script) else "auto"
        bind = engine.execution_options(**MODES[in_mode])
        stage.actor(name, lambda bind=bind: AsyncSession(bind), in_mode == "auto")  # type: ignore[misc]
    history = await stage.play(script)
    outside = sqlite3.connect(path, timeout=0.2, isolation_level=None)
    outside.execute("BEGIN IMMEDIATE")
    final = {ALL: outside.execute(ALL).fetchall()}
    outside.close()
    await engine.dispose()
    return history, final


@pytest.mark.parametrize("stall_after", [NEVER, 0.0], ids=["waits", "gives way"])
@pytest.mark.parametrize("guess", GUESSES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("anomaly", CATALOGUE)
async def test_no_anomaly(
    tmp_path: Path, anomaly: str, mode: str, guess: Guess | None, stall_after: float
) -> None:
    """The transactions of the interleaving did, saw and left what they do in some serial order."""
    history, final = await play(tmp_path / "app.db", CATALOGUE[anomaly], mode, stall_after, guess)
    errors = [each.error for each in history if each.error is not None]
    assert all(isinstance(error, ConflictError) for error in errors), history
    assert serial_order(SCHEMA, history, final) is not None, (history, final)
    if mode == "write" and stall_after == NEVER:
        assert not errors  # whoever asks first waits for nobody, so nothing can go stale
    if mode in ("read", "auto"):
        readers = [each for each in history if each.name in read_only(CATALOGUE[anomaly])]
        assert all(each.error is None for each in readers)


@pytest.mark.parametrize("mode", ["read", "snapshot"])
@pytest.mark.parametrize("anomaly", ["G-single: read skew", "PMP: predicate many preceders"])
async def test_a_reader_keeps_its_snapshot(tmp_path: Path, anomaly: str, mode: str) -> None:
    """It sees one moment, and the writer beside it does not wait."""
    script = CATALOGUE[anomaly]
    history, _ = await play(tmp_path / "app.db", script, mode, NEVER, Guess.READS)
    reader, writer = history
    assert (reader.name, writer.name) == ("T1", "T2")
    assert writer.outcome == reader.outcome == COMMITTED
    assert writer.ended < reader.ended
    assert reader.steps[-1][1] in ([(2, 20)], [])


@pytest.mark.parametrize("guess", GUESSES)
async def test_plain_auto_reads_the_latest_commit(tmp_path: Path, guess: Guess | None) -> None:
    """As on PostgreSQL's default: read skew is what existing code expects, and polls for."""
    script = CATALOGUE["G-single: read skew"]
    stall_after = NEVER if guess else 0.0
    (reader, writer), _ = await play(tmp_path / "app.db", script, "auto", stall_after, guess)
    assert writer.outcome == reader.outcome == COMMITTED
    assert [seen for _, seen in reader.steps] == [[(1, 10)], [(2, 18)]]


@pytest.mark.parametrize("mode", ["auto", "snapshot"])
async def test_a_lost_update_is_a_conflict(tmp_path: Path, mode: str) -> None:
    """Two readers that both write: the second has read what the first one changed."""
    script = CATALOGUE["P4: lost update"]
    path = tmp_path / "app.db"
    (first, second), final = await play(path, script, mode, NEVER, Guess.READS)
    assert first.outcome == COMMITTED
    assert isinstance(second.error, ConflictError)
    assert final[ALL] == [(1, 11), (2, 20)]


@pytest.mark.parametrize("guess", [Guess.READS, Guess.VALIDATES])
async def test_what_was_read_again_counts_as_last_seen(tmp_path: Path, guess: Guess) -> None:
    """Who polls, and acts on the answer, has no conflict with what was before."""
    script = [
        ("T1", ONE),
        ("T2", "UPDATE test SET value = value + 1"),
        ("T2", "commit"),
        ("T1", ONE),
        ("T1", "UPDATE test SET value = value + 10 WHERE id = 1"),
        ("T1", "commit"),
    ]
    (polls, _), final = await play(tmp_path / "app.db", script, "auto", NEVER, guess)
    assert polls.error is None
    assert [seen for _, seen in polls.steps[:2]] == [[(1, 10)], [(1, 11)]]
    assert final[ALL] == [(1, 21), (2, 21)]


@pytest.mark.parametrize("mode", ["auto", "snapshot"])
@pytest.mark.parametrize("found", [0, 1])
async def test_the_end_of_a_stream_was_read_too(tmp_path: Path, found: int, mode: str) -> None:
    """Two readers stream to the end, then insert: the second has missed a row."""
    query = text(f"SELECT * FROM test WHERE value % 3 = 0 OR id = {found}")
    script = [
        ("T1", Stream(query)),
        ("T2", Stream(query)),
        ("T1", "INSERT INTO test VALUES (3, 30)"),
        ("T1", "commit"),
        ("T2", "INSERT INTO test VALUES (4, 42)"),
        ("T2", "commit"),
    ]
    history, final = await play(tmp_path / "app.db", script, mode, NEVER, Guess.READS)
    assert serial_order(SCHEMA, history, final) is not None, (history, final)
    assert isinstance(history[-1].error, ConflictError)


def test_the_check_finds_anomalies() -> None:
    """Histories with a lost update, a write skew or a stale read are explained by no order."""
    lost = [
        Transaction("T1", 1, [(ONE, [(1, 10)])], outcome=COMMITTED, ended=8),
        Transaction("T2", 2, [(ONE, [(1, 10)])], outcome=COMMITTED, ended=9),
    ]
    lost[0].steps.append(("UPDATE test SET value = 11 WHERE id = 1", 1))
    lost[1].steps.append(("UPDATE test SET value = 12 WHERE id = 1", 1))
    assert serial_order(SCHEMA, lost, {ALL: [(1, 12), (2, 20)]}) is None
    skew = [
        Transaction("T1", 1, [(ALL, [(1, 10), (2, 20)])], outcome=COMMITTED, ended=8),
        Transaction("T2", 2, [(ALL, [(1, 10), (2, 20)])], outcome=COMMITTED, ended=9),
    ]
    skew[0].steps.append(("UPDATE test SET value = 11 WHERE id = 1", 1))
    skew[1].steps.append(("UPDATE test SET value = 21 WHERE id = 2", 1))
    assert serial_order(SCHEMA, skew, {ALL: [(1, 11), (2, 21)]}) is None
    stale = [
        Transaction(
            "T1", 1, [("UPDATE test SET value = 11 WHERE id = 1", 1)], outcome=COMMITTED, ended=2
        ),
        Transaction("T2", 3, [(ONE, [(1, 10)])], outcome=COMMITTED, ended=4),
    ]
    assert serial_order(SCHEMA, stale, {ALL: [(1, 11), (2, 20)]}) is None
    stale[0].ended = 4  # still running when the reader began: either may be first
    assert serial_order(SCHEMA, stale, {ALL: [(1, 11), (2, 20)]}) == ["T2", "T1"]


def test_the_check_of_plain_auto_finds_anomalies() -> None:
    """A mere reader may see a skew; one that writes may not, unless it has looked again."""
    change = Transaction("T2", 3, [(CHANGE, 2)], [(4, 5)], 0, outcome=COMMITTED, ended=6)

    def skewed(*more: tuple[str, Any], first_write: int | None = None) -> Transaction:
        steps = [(ONE, [(1, 10)]), (TWO, [(2, 21)]), *more]
        times = [(1, 2), (7, 8), (9, 10), (11, 12)][: len(steps)]
        return Transaction("T1", 1, steps, times, first_write, True, COMMITTED, ended=13)

    add = ("UPDATE test SET value = value + 10 WHERE id = 1", 1)
    for reader, final, promised in (
        (skewed(), [(1, 11), (2, 21)], True),
        (skewed(add, first_write=2), [(1, 21), (2, 21)], False),
        (skewed((ONE, [(1, 11)]), add, first_write=3), [(1, 21), (2, 21)], True),
    ):
        found = serial_order(SCHEMA, [change, reader], {ALL: final})
        assert (found is not None) is promised
