"""The figures: rates, waits of the last seconds, and who holds the ticket."""

from __future__ import annotations

from typing import Any

import pytest

from qsession.ext.dashboard.figures import Sample, figures, holders, rate, total, waits_of
from qsession.statistics import Histogram, HistogramRecorder

COUNTERS = {"commits": 0, "syncs": 0, "conflicts": 0, "timeouts": 0, "taken_away": 0}


def told(*waits: float, **changed: Any) -> dict[str, Any]:
    """What an engine tells."""
    recorder = HistogramRecorder()
    for each in waits:
        recorder.observe(each)
    found = recorder.freeze()
    return {
        **COUNTERS,
        "validations": 0, "waiting": 0, "size": 1, "in_use": 0, "readers": 0, "draining": False,
        "turn": "idle", "holder": None, "line": [],
        "waits": {"bounds": found.bounds, "counts": found.counts, "total": found.total,
                  "maximum": found.maximum},
        **changed,
    }  # fmt: skip


def holder(**changed: Any) -> dict[str, Any]:
    """A holder of the ticket."""
    return {"task": "t", "held": 1.0, "wrote": True, "statement": "s", "where": "w", **changed}


def program(pid: int) -> str:
    """The name of a process."""
    return f"program {pid}"


def test_a_rate_is_since_the_last_sample_and_over_all_engines() -> None:
    """One that is new or began anew adds nothing; the first look has no rate."""
    before = Sample(10.0, {(1, 0): told(commits=100), (2, 0): told(commits=50)})
    now = Sample(
        12.0, {(1, 0): told(commits=140), (2, 0): told(commits=3), (3, 0): told(commits=9)}
    )
    assert rate([before, now], list(now.engines), "commits") == 20.0
    assert rate([now], list(now.engines), "commits") is None


def test_waits_are_those_since_the_oldest_sample() -> None:
    """With one sample they are all; an engine that began anew, or is new, counts whole."""
    samples = [
        Sample(1.0, {(1, 0): told(0.5), (2, 0): told(0.5, 0.5)}),
        Sample(2.0, {(1, 0): told(0.5, 0.001), (2, 0): told(0.1), (3, 0): told(0.2)}),
        Sample(3.0, {(1, 0): told(0.5, 0.001, 0.001), (2, 0): told(0.1, 0.1), (3, 0): told(0.2)}),
    ]
    assert waits_of(samples, (1, 0)).count == 2
    assert waits_of(samples[:1], (1, 0)).count == 1
    assert waits_of(samples, (2, 0)).count == 2
    assert waits_of(samples, (3, 0)).count == 1


def test_histograms_of_another_version_are_left_out_of_a_sum() -> None:
    """Their buckets cannot be added."""
    one = Histogram((0.1, 0.2), (1, 2, 3), 1.0, 0.5)
    other = Histogram((0.3,), (4, 4), 1.0, 9.0)
    assert total([one, one, other]) == Histogram((0.1, 0.2), (2, 4, 6), 2.0, 0.5)
    assert total([]).quantile(0.99) == 0.0


@pytest.mark.parametrize(
    ("turn", "wrote", "locks", "waits_for"),
    [
        ("holds", False, [], None),
        ("holds", False, [9], "lock"),
        ("holds", True, [9], "lock"),
        ("holds", False, [2], None),  # it is about to pass the turn on
        ("waits", False, [], "process"),
        ("waits", False, [9], "process"),
        ("idle", False, [], None),
        ("idle", False, [2], "lock"),  # the turn of process 2 has stalled
        ("idle", True, [2], None),
        ("idle", True, [1], None),
        ("idle", False, [1], None),
    ],
)
def test_what_a_holder_waits_for(
    turn: str, wrote: bool, locks: list[int], waits_for: str | None
) -> None:
    """The turn on the file, or SQLite's lock of another program or of a stalled process."""
    engines = {(1, 0): told(turn=turn, holder=holder(wrote=wrote)), (2, 0): told()}
    foreign = [each for each in locks if each == 9]
    (found,) = holders(Sample(0.0, engines, tuple(locks)), foreign)
    assert found["waits_for"] == waits_for


def test_the_holder_whose_turn_it_is_comes_first() -> None:
    """Those that wait for their process to have its turn come after it, however long they wait."""
    sample = Sample(
        0.0,
        {
            (1, 0): told(turn="waits", holder=holder(held=9.0)),
            (2, 0): told(turn="holds", holder=holder(held=0.1)),
            (3, 0): told(),
        },
    )
    assert [each["pid"] for each in holders(sample, [])] == [2, 1]


def test_all_processes_add_up() -> None:
    """Waiters come from each, the longest first; a program without qsession leads the processes."""
    waiting = [{"task": "t", "waited": 0.2, "statement": "s"}]
    longer = [{"task": "u", "waited": 0.7, "statement": "s"}]
    engines = {
        (1, 0): told(0.01, waiting=1, line=waiting, commits=2, holder=holder(), turn="holds"),
        (2, 0): told(0.02, waiting=3, line=longer, commits=3, in_use=1),
    }
    found = figures([Sample(1.0, engines, locks=(1, 7))], program)
    assert found["waiting"] == 4
    assert [each["pid"] for each in found["line"]] == [2, 1]
    assert found["totals"]["commits"] == 5
    assert found["connections"] == {"open": 2, "in_use": 1}
    assert found["waits"]["count"] == 2
    assert found["waits"]["longest"] == 0.02
    assert [(each["pid"], each["foreign"]) for each in found["processes"]] == [
        (7, True), (1, False), (2, False),
    ]  # fmt: skip
    assert found["holders"][0]["waits_for"] == "lock"
    assert "waits for SQLite's lock, held by pid 7" in found["processes"][1]["does"][0]


def test_a_database_that_nobody_uses_has_figures_as_well() -> None:
    """All of them are zero, or not known."""
    found = figures([Sample(1.0, {}), Sample(2.0, {})], program)
    assert found["waiting"] == 0
    assert found["commits_per_second"] == 0.0
    assert found["processes"] == found["holders"] == found["line"] == []
