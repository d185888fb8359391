"""The power goes at any moment: what was acknowledged is in the file, and nothing is by half.

POWER_CUTS=10000, as in `make storm`, makes more of them than a run in CI. POWER_SEED repeats a
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
from pathlib import Path

import pytest
from power import Log
from shims import build, needs_shim

HERE = Path(__file__).parent
CUTS = int(os.environ.get("POWER_CUTS", "300"))
SEED = os.environ.get("POWER_SEED") or str(random.randrange(10**6))
SLOW_MACHINE = 60.0
PROCESSES = 2


def watch(folder: Path, durability: str) -> Log:
    """Two processes at work on one file, and the log of what they did to it."""
    path, log = folder / "app.db", folder / "log"
    env = {"LD_PRELOAD": build("write_log", folder), "WRITE_LOG": log, "WRITE_LOG_BASE": path}
    command = [sys.executable, HERE / "power_child.py", path, log, durability]
    running = [
        subprocess.Popen(command, env={**os.environ, **{k: str(v) for k, v in env.items()}})
        for _ in range(PROCESSES)
    ]
    assert [each.wait(SLOW_MACHINE) for each in running] == [0] * PROCESSES
    return Log(log.read_bytes())


def recover(path: Path) -> tuple[set[int], set[int]]:
    """Open the file: it is whole; the runs that are there, and how many were counted."""
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        tables = {name for (name,) in raw.execute("SELECT name FROM sqlite_schema")}
        if not tables:
            return set(), set()
        assert tables == {"marks", "total"}
        found = dict(raw.execute("SELECT run, count(*) FROM marks GROUP BY run"))
        counted = {runs for (runs,) in raw.execute("SELECT runs FROM total")}
    assert set(found.values()) <= {3}
    return set(found), counted


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


@needs_shim
@pytest.mark.storm
@pytest.mark.parametrize("durability", ["full", "normal"])
def test_power_cuts(tmp_path, durability):
    """After each cut the file is whole. With "full" it has every commit acknowledged before it.

    With "normal" some cuts do lose such commits: so a cut can show it when a sync is missing.
    """
    print(f"POWER_SEED={SEED}")
    log = watch(tmp_path, durability)
    acknowledged = [(at, int(line.split()[1])) for at, line in log.said]
    assert len(acknowledged) > 100
    assert log.files["."][0].writes  # checkpoints
    chance = random.Random(SEED)
    cuts_with_losses = 0
    for number in range(CUTS):
        folder = tmp_path / str(number)
        folder.mkdir()
        moment = chance.choice(log.moments)
        log.cut(moment, chance, folder, "app.db")
        found, counted = recover(folder / "app.db")
        assert counted <= {len(found)}, (moment, counted)
        lost = {run for at, run in acknowledged if at <= moment} - found
        cuts_with_losses += bool(lost)
        assert not lost or durability == "normal", (moment, lost)
        for each in folder.iterdir():
            each.unlink()
        folder.rmdir()
    assert (cuts_with_losses > 0) == (durability == "normal")
