"""The benchmarks run and their reports are whole. Nothing here depends on a time."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import shutil
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("rich")
pytest.importorskip("psutil")

from benchmarks import (
    comparisons,
    fairness,
    lone_writer,
    report,
    scaling,
    slow_fsync,
    subscribers,
    throughput,
    versions,
)
from benchmarks.disks import HERE, SLOW, SLOWER
from benchmarks.load import Kind, lateness, load
from benchmarks.measure import run
from benchmarks.peers.all import OURS, installed
from benchmarks.peers.drivers import Sqlite3
from benchmarks.peers.peer import WORKS, Peer, Work
from benchmarks.peers.sqlalchemy_async import OursOrm
from benchmarks.processes import jain
from benchmarks.setup import Setup
from benchmarks.summary import Report, at_least, at_most, quantile, ratio
from qsession import events
from qsession.cli import app


@pytest.fixture
def small(tmp_path: Path) -> Setup:
    """A run of the least size."""
    return Setup(tmp_path, rounds=1, tasks=3, scale=0.005)


def whole(result: Report) -> None:
    """Every line of every table has its cells, and every bar its value."""
    assert result.tables
    for table in result.tables:
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.head)}
    assert all(value >= 0 for chart in result.bars for _, value in chart.bars)


OF_THEIR_OWN = {"slow_fsync", "versions"}


@pytest.mark.parametrize("name", [each for each in comparisons.NAMES if each not in OF_THEIR_OWN])
def test_comparison(small: Setup, name: str) -> None:
    """A comparison yields rows that survive JSON, and a report about them."""
    comparison = comparisons.load(name)
    rows = json.loads(json.dumps(list(comparison.measure(small))))
    whole(comparison.report(rows))


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("cc") is None,
    reason="the slower fsync needs Linux and a C compiler",
)
def test_slow_fsync(small: Setup) -> None:
    """The delay is in force: the child measures it and refuses to go on without it."""
    comparison = comparisons.load("slow_fsync")
    rows = list(comparison.measure(replace(small, tasks=1)))
    assert {row["disk"] for row in rows} == {SLOW, SLOWER}
    whole(comparison.report(rows))


def test_versions(small: Setup, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Environments of other versions are measured as well, and each event loop that one has."""
    python = tmp_path / ".venvs" / "other" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (tmp_path / ".venvs" / "broken" / "bin").mkdir(parents=True)
    (tmp_path / ".venvs" / "broken" / "bin" / "python").write_text("")
    monkeypatch.setattr(versions, "TOP", tmp_path)
    told = versions._versions
    monkeypatch.setattr(versions, "_versions", lambda each: told(each) and str(each == str(python)))
    rows = json.loads(json.dumps(list(versions.measure(small))))
    assert {row["versions"] for row in rows} == {versions.versions()}
    loops = {"asyncio", *(["uvloop"] if find_spec("uvloop") else [])}
    assert {row["loop"] for row in rows} == loops
    assert len(rows) == 2 * len(loops) * len(versions.PEERS) * len(WORKS)
    assert not sum(row["errors"] + row["lost"] for row in rows)
    whole(versions.report(rows))


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("peer", OURS)
def test_ours_loses_nothing(tmp_path: Path, peer: type[Peer], work: Work) -> None:
    """Each way into qsession does the whole work without an error."""
    sample = run(peer, work, tmp_path / "one.db", operations=40, tasks=8, seconds=60)
    assert (sample.operations, sample.errors, sample.lost) == (40, 0, 0), sample.fault


class Forgetful(Sqlite3):
    """Acknowledges each second change without having made it."""

    def change(self, i: int) -> None:
        if i % 2:
            super().change(i)


def test_lost_updates_are_counted(tmp_path: Path) -> None:
    """What was acknowledged and is not in the file shows."""
    sample = run(Forgetful, "change", tmp_path / "one.db", operations=40, tasks=8, seconds=60)
    assert (sample.operations, sample.errors) == (40, 0)
    assert sample.lost == 20 + 4  # those of the warm-up count too


class Failing(Sqlite3):
    """Refuses each second insert."""

    def insert(self, i: int) -> None:
        if i % 2:
            raise OSError("no")
        super().insert(i)


def test_errors_are_counted(tmp_path: Path) -> None:
    """What raises is no operation, and the first error is kept."""
    sample = run(Failing, "insert", tmp_path / "one.db", operations=40, tasks=8, seconds=60)
    assert (sample.operations, sample.errors, sample.lost) == (20, 20, 0)
    assert sample.fault == "OSError: no"


class Lazy(Sqlite3):
    """Reads less than it should."""

    def list(self, i: int) -> int:
        return 19


def test_less_work_is_refused(tmp_path: Path) -> None:
    """A peer that does not do the work is not measured."""
    with pytest.raises(AssertionError):
        run(Lazy, "list", tmp_path / "one.db", operations=4, tasks=2, seconds=60)


def test_missing_peers_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that is not installed is named, and the others run."""
    for module in ("peewee", "playhouse", "playhouse.sqliteq"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "benchmarks.peers.peewee_queue", raising=False)
    peers, missing = installed()
    assert "peewee" in missing
    assert set(OURS) <= set(peers)


def test_ratios_are_paired() -> None:
    """A round is compared with the same round of the other, and a round without one is left out."""

    def value(row: dict[str, Any]) -> float:
        return float(row["value"])

    ours = [{"round": n, "value": v} for n, v in ((1, 2), (2, 40), (3, 9))]
    theirs = [{"round": n, "value": v} for n, v in ((1, 1), (2, 10))]
    assert ratio(ours, theirs, value) == 3
    assert math.isnan(ratio(ours, [], value))
    assert quantile(range(100), 0.99) == 99
    assert at_least("x", 2, 2.0).reached
    assert not at_most("x", 2, 2.1).reached
    assert not at_least("x", 2, float("nan")).reached


def test_fairness() -> None:
    """Jain's index is 1 where all have the same, and 1/n where one has everything."""
    assert jain([7, 7, 7]) == 1
    assert jain([8, 0, 0, 0]) == 0.25
    assert jain([0, 0]) == 0


def test_page_is_renewed(small: Setup, tmp_path: Path) -> None:
    """Only what stands between the markers changes, and only where there are results."""
    rows = list(throughput.rounds(small, OURS[:1], {"get": 10}, seconds=1))
    machine = {"date": "2026-11-30", "disk": "a disk", "load": "0.1 processes wanted to run"}
    saved = {"machine": machine, "setup": {"rounds": 1}, "rows": rows}
    (tmp_path / "throughput.json").write_text(json.dumps(saved))
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- figures: throughput -->\nold\n<!-- end -->\nbetween\n"
        "<!-- figures: scaling -->\nkept\n<!-- end -->\n<!-- figures: machine --><!-- end -->"
        "\n<!-- figures: throughput_table -->\n<!-- end -->"
    )
    report.write(page, tmp_path)
    text = page.read_text()
    assert text.startswith("before\n<!-- figures: throughput -->\n")
    assert "| qsession() |" in text
    assert "Run of 2026-11-30, rounds: 1. a disk; 0.1 processes wanted to run." in text
    assert "old" not in text
    with_goals, _, without = text.partition("<!-- figures: throughput_table -->")
    assert "| Goal |" in with_goals
    assert "| Goal |" not in without
    assert "| qsession() |" in without
    assert "between\n<!-- figures: scaling -->\nkept\n<!-- end -->" in text


@pytest.mark.parametrize("page", report.OTHERS, ids=lambda page: page.name)
def test_short_tables_are_those_of_the_results(page: Path, tmp_path: Path) -> None:
    """Those of the README, in each language, and of the pages: nobody has to copy figures."""
    copy = tmp_path / page.name
    shutil.copy(page, copy)
    report.write(copy)
    assert copy.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")
    assert "| ---: |" in copy.read_text(encoding="utf-8")


def test_command(tmp_path: Path) -> None:
    """`qsession bench` measures in the folder it is given and leaves only what was asked for."""
    arguments = ["bench", "import_time", "--directory", str(tmp_path), "--scale", "0.01"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "kept")])
    assert done.exit_code == 0, done.output
    assert [each.name for each in tmp_path.iterdir()] == ["kept"]
    assert json.loads((tmp_path / "kept" / "import_time.json").read_text())["rows"]


def test_command_names_what_there_is(tmp_path: Path) -> None:
    """A comparison that there is not is an error that lists those there are."""
    done = CliRunner().invoke(app, ["bench", "speed", "--directory", str(tmp_path)])
    assert done.exit_code == 2
    assert "throughput" in done.output


def test_shares() -> None:
    """Of the task that got least and of the one that got most, to the mean; p99 to p50."""
    row = {"counts": [5, 10, 15], "p50": 0.002, "p99": 0.006}
    assert (fairness.slowest(row), fairness.busiest(row)) == (0.5, 1.5)
    assert fairness.latency(row) == pytest.approx(3)
    nothing = {"counts": [0, 0], "p50": 0.0, "p99": 0.0}
    assert (fairness.slowest(nothing), fairness.busiest(nothing), fairness.latency(nothing)) == (
        0,
        0,
        0,
    )


def test_the_wait_for_the_disk_is_counted_in_fsyncs() -> None:
    """Without what the processor needs: 5 ms, of which 1 ms remains without the disk."""

    def row(waits: str, p50: float) -> dict[str, Any]:
        figures = {"p50": p50, "p99": p50, "fsync": 0.002, "syncs": 1.0}
        return {"round": 1, "disk": HERE, "peer": OursOrm.name, "waits": waits, **figures}

    result = lone_writer.report([row(lone_writer.FULL, 0.005), row(lone_writer.NONE, 0.001)])
    whole(result)
    assert result.tables[0].rows[0][4] == "2.00"


def test_the_share_of_the_ceiling() -> None:
    """Each fsync may serve all tasks: 50 tasks and 5 ms are 10,000 in a second at the most."""
    row = {"round": 1, "disk": SLOWER, "tasks": 50, "fsync": 5.0, "operations": 700, "seconds": 0.1}
    (goal,) = slow_fsync.report([row]).goals
    assert (goal.measured, goal.reached) == ("0.70 x", True)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that a load goes by, which stands still until a test moves it on."""
    now = [0.0]
    module = sys.modules[load.__module__]
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


async def test_load(clock: list[float]) -> None:
    """None begins when time is up, what ends later does not count, and errors are no operations."""
    seen: list[int] = []

    async def operation(i: int) -> None:
        seen.append(i)
        clock[0] += 1.0
        if i == 2:
            raise OSError("no")

    found = await load({"some": Kind(1, operation), "late": Kind(1, operation)}, 5.0)
    assert seen == [0, 1, 2, 3, 4]
    assert found["some"].counts == [3]
    assert found["some"].waits == [1.0] * 4
    assert (found["some"].errors, found["late"].errors) == (1, 0)
    assert found["late"].counts == [0]


async def test_lateness_is_seen(clock: list[float]) -> None:
    """A stop of the loop that ends with what is measured counts, and the sampler ends with it."""
    async with lateness() as late:
        clock[0] += 5.0
    assert max(late) == pytest.approx(5.0, abs=0.01)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_subscribers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them has a figure, and is gone afterwards."""
    monkeypatch.setattr(subscribers, "BLOCKS", 1)
    monkeypatch.setattr(subscribers, "INSERTS", 4)
    found = await subscribers.measure(tmp_path / "a.db", tasks=2, plain=True)
    assert list(found) == list(subscribers.SUBSCRIBERS)
    assert min(found.values()) > 0
    assert not events.observers


def test_thresholds_of_the_collector_are_set_back() -> None:
    """Python's own are measured as they are."""
    before = gc.get_threshold()
    with scaling.collects(scaling.RARE):
        assert gc.get_threshold() == scaling.THRESHOLD
    assert gc.get_threshold() == before
    with scaling.collects(scaling.USUAL):
        assert gc.get_threshold() == before
