"""The power goes at any moment: what was acknowledged is in the file, and nothing is by half.

The file is a prefix of the order of commits: with a commit, all that were committed before it are
there. POWER_CUTS=10000, as in `make storm`, makes more cuts than a run in CI. POWER_SEED repeats a
run's choices. The cuts are made of a log of all writes and syncs, so they show what SQLite and
qsession make of a disk that keeps its promises, and nothing about a disk that does not.
"""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

import pytest
from folders import TESTS
from power import Log
from shims import build, needs_shim

CUTS = int(os.environ.get("POWER_CUTS", "300"))
SEED = os.environ.get("POWER_SEED") or str(random.randrange(10**6))
SLOW_MACHINE = 60.0
PROCESSES = 2


def watch(folder: Path, child: str, kind: str) -> Log:
    """Two processes at work on one file, and the log of what they did to it."""
    path, log = folder / "app.db", folder / "log"
    env = {"LD_PRELOAD": build("write_log", folder), "WRITE_LOG": log, "WRITE_LOG_BASE": path}
    command = [sys.executable, TESTS / f"{child}.py", path, log, kind]
    running = [
        subprocess.Popen(command, env={**os.environ, **{k: str(v) for k, v in env.items()}})
        for _ in range(PROCESSES)
    ]
    assert [each.wait(SLOW_MACHINE) for each in running] == [0] * PROCESSES
    return Log(log.read_bytes())


def recover(path: Path) -> dict[int, int]:
    """Open the file: it is whole, and a prefix of some order; the runs that are there, by place."""
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        tables = {name for (name,) in raw.execute("SELECT name FROM sqlite_schema")}
        if not tables:
            return {}
        assert tables == {"marks", "total"}
        marks = raw.execute("SELECT position, run, count(*) FROM marks GROUP BY position, run")
        found = [(position, run, parts) for position, run, parts in marks]
        (counted,) = raw.execute("SELECT runs FROM total").fetchone()
    assert [position for position, _, _ in found] == [*range(1, counted + 1)]
    assert {parts for _, _, parts in found} <= {3}
    return {position: run for position, run, _ in found}


@dataclass
class Verdict:
    """What many cuts have shown."""

    acknowledged: int = 0
    """Commits that were lost although they had been acknowledged."""
    unconfirmed: int = 0
    """Commits that were lost between their COMMIT and its sync, as they may be."""


def judge(log: Log, folder: Path, cuts: int) -> Verdict:
    """Cut the power that often, half of the times while something is not synced."""
    said = [(at, *line.split()) for at, line in log.said]
    order = {int(position): int(run) for _, _, position, run in said}
    assert len(order) > 100
    assert log.files["."][0].writes  # checkpoints
    chance, verdict = random.Random(SEED), Verdict()
    cut = folder / "cut"
    for number in range(cuts):
        cut.mkdir()
        moment = chance.choice(log.exposed if number % 2 else log.moments)
        log.cut(moment, chance, cut, "app.db")
        found = recover(cut / "app.db")
        for position, run in found.items():
            assert order.get(position, run) == run, (moment, position)
        for at, what, position, _ in said:
            if at <= moment and int(position) not in found:
                verdict.acknowledged += what == "acknowledged"
                verdict.unconfirmed += what == "committed"
        rmtree(cut)
    return verdict


def test_a_cut_leaves_what_was_synced_and_any_part_of_the_rest(tmp_path):
    """A file of two sectors, written, synced, and written again: either sector may be old."""

    def line(kind, offset, data=b""):
        return f"{kind} {offset} {len(data)} .\n".encode() + data

    content = line("W", 0, b"a" * 1024)
    content += line("S", len(content))
    content += line("D", len(content))
    content += line("W", 0, b"b" * 1024) + b"acknowledged 7\n" + line("T", 0)
    log = Log(content)
    assert [said for _, said in log.said] == ["acknowledged 7"]
    seen = set()
    chance = random.Random(0)
    for _ in range(200):
        log.cut(log.moments[-2], chance, tmp_path, "a.db")
        whole = (tmp_path / "a.db").read_bytes()
        assert len(whole) == 1024
        seen.add((whole[:512], whole[512:]))
    a, b = b"a" * 512, b"b" * 512
    assert seen == {(a, a), (a, b), (b, a), (b, b)}


def test_what_is_not_synced_yet():
    """From a write to the end of a sync that began after it."""

    def line(kind, offset, data=b"", name="."):
        return f"{kind} {offset} {len(data)} {name}\n".encode() + data

    content, starts = b"", []

    def say(*args):
        nonlocal content
        starts.append(len(content))
        content += line(*args)

    say("S", 0)
    say("W", 0, b"a")
    say("S", len(content))
    say("W", 0, b"b")
    before = len(content)
    say("W", 0, b"c")
    say("S", before)
    say("W", 0, b"d", "-wal")
    say("S", len(content))
    say("U", 0, b"", "-wal")
    assert Log(content).exposed == [starts[each] for each in (1, 3, 4, 5, 6, 7)]


@needs_shim
@pytest.mark.storm
@pytest.mark.parametrize("durability", ["full", "normal"])
def test_power_cuts(tmp_path, durability):
    """After each cut the file is whole. With "full" it has every commit acknowledged before it.

    With "normal" some cuts do lose such commits: so a cut can show it when a sync is missing.
    """
    print(f"POWER_SEED={SEED}")
    verdict = judge(watch(tmp_path, "power_child", durability), tmp_path, CUTS)
    assert (verdict.acknowledged > 0) == (durability == "normal")


@needs_shim
@pytest.mark.storm
@pytest.mark.parametrize("kind", ["sound", "at-once", "during"])
def test_power_cuts_between_a_commit_and_its_sync(tmp_path, kind):
    """The same of the syncer by itself; one that acknowledges too early is found out.

    Some commits are lost that nobody had been told of: so the cuts do come in between. When a wrong
    syncer does harm depends on what commits while it syncs, so it gets five runs to show it.
    """
    print(f"POWER_SEED={SEED}")
    for run in range(1 if kind == "sound" else 5):
        folder = tmp_path / str(run)
        folder.mkdir()
        verdict = judge(watch(folder, "power_syncer_child", kind), folder, CUTS)
        assert verdict.unconfirmed > 0
        if verdict.acknowledged:
            break
    assert (verdict.acknowledged > 0) == (kind != "sound")
