"""Whether a replica can serve, by what it said of itself and when; what a task needs."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from qsession.servers import replicas
from qsession.servers.position import NOTHING, UNKNOWN, Position, RequiredPosition
from qsession.servers.replica import AGAIN, HEARD, Measure, Replica, Verdict, judge

ASK, SKIP, USE = Verdict.ASK, Verdict.SKIP, Verdict.USE
LATER = HEARD + 0.1
SOON = AGAIN + 0.01


def at(lsn: float, timeline: int = 1) -> Position:
    """A place in the log."""
    return Position(timeline, lsn)


@pytest.mark.parametrize(
    ("measure", "required", "max_lag", "verdict"),
    [
        # (bytes replayed, seconds behind, seconds since it was asked)
        (None, NOTHING, None, ASK),
        (None, at(100), None, ASK),
        (None, UNKNOWN, None, SKIP),
        ((100, 0, 0), UNKNOWN, None, SKIP),
        ((100, 0, 0), NOTHING, None, USE),
        ((100, 0, 0), at(100), None, USE),
        ((100, 0, SOON), at(100), None, USE),
        ((100, 0, LATER), at(100), None, ASK),
        ((100, 0, LATER), NOTHING, None, ASK),
        ((100, 0, 0), at(101), None, SKIP),
        ((100, 0, SOON), at(101), None, ASK),
        ((100, 7, 0), NOTHING, None, USE),
        ((100, 7, 0), NOTHING, 5, SKIP),
        ((100, 7, SOON), NOTHING, 5, ASK),
        ((100, 4, 0.5), NOTHING, 5, USE),
        ((100, 4.9, 0.5), NOTHING, 5, ASK),
        ((100, 0, 0.5), NOTHING, 0.4, ASK),
        ((100, float("inf"), 0), NOTHING, 5, SKIP),
        ((100, float("inf"), 0), NOTHING, None, USE),
        ((100, 4, 0.5), at(101), 5, ASK),
        ((100, 0, 0), at(50, timeline=2), None, SKIP),
        ((100, 0, SOON), at(50, timeline=2), None, ASK),
    ],
)
def test_the_verdict(
    measure: tuple[int, float, float] | None,
    required: Position,
    max_lag: float | None,
    verdict: Verdict,
) -> None:
    """It is asked when what is known is too old, and left out for a moment when it did not fit."""
    known = None if measure is None else Measure(at(measure[0]), measure[1], 1000 - measure[2])
    assert judge(known, required, max_lag, 1000, asked=False) is verdict
    if known is not None and verdict is ASK:  # one task is enough to ask
        verdict = SKIP
    assert judge(known, required, max_lag, 1000, asked=True) is verdict


def test_a_standby_that_was_promoted() -> None:
    """It has what it had replayed before, but not what only the old primary has written since."""
    before, after = at(100), at(100, timeline=2)
    assert after.includes(before)
    assert after.includes(at(90))
    assert not at(120).includes(after)
    assert not after.includes(at(101))


def test_a_commit_while_the_primary_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """By another task that shares the context: the answer is about the commit before."""
    position = RequiredPosition()
    position.note_commit()

    def answer(*_: object) -> tuple[int, int]:
        position.note_commit()
        return at(100)

    monkeypatch.setattr(replicas, "fetch_row", answer)
    asking: Any = SimpleNamespace(position=position)
    primary: Any = None
    replicas.Replicas.learn(asking, primary)
    assert position.required == UNKNOWN


async def test_a_connection_is_closed_when_the_driver_has_let_go_of_it() -> None:
    """If it waited for a socket that is closed, the loop would take the next one for that."""
    let_go, closed = asyncio.Event(), asyncio.Event()

    async def ask() -> Measure:
        try:
            await asyncio.Event().wait()
        finally:
            await let_go.wait()
        raise AssertionError

    replica = Replica.__new__(Replica)
    replica._dropping = set()
    asking = asyncio.create_task(ask())
    await asyncio.sleep(0)
    connection: Any = SimpleNamespace(invalidate=closed.set)
    replica._drop(connection, asking)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not closed.is_set()
    let_go.set()
    await asyncio.wait_for(closed.wait(), 30)
