"""Drawn transactions in several loops of several processes, which are killed: a serial order.

What the simulation cannot show: real threads, real processes, and the end of a process at any
point. The same judge looks at what all of them saw. MODEL_SECONDS=600 goes on for that long;
MODEL_SEED repeats the draws of a run, though not what the machine makes of them.
"""

from __future__ import annotations

import os
import pickle
import random
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest
from checker import JOURNAL, Judge, Wrong
from playing import make_database
from recorder import Record
from script import FINAL, SCHEMA

WORKER = Path(__file__).with_name("model_storm_worker.py")
SECONDS = float(os.environ.get("MODEL_SECONDS", "0"))
SEED = int(os.environ.get("MODEL_SEED") or random.randrange(10**6))
TASKS, TIMES = 4, 12
STUCK = 30.0
"""Seconds after which a process is taken for stuck."""


def start(path: Path, log: Path, seed: str, loops: int) -> subprocess.Popen[str]:
    folders = os.pathsep.join([str(WORKER.parent), *sys.path])
    return subprocess.Popen(
        [sys.executable, WORKER, path, log, seed, str(loops), str(TASKS), str(TIMES)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": folders},
    )


def wait_for(worker: subprocess.Popen[str]) -> None:
    """Until it has ended; one that is stuck says where it stands."""
    try:
        _, errors = worker.communicate(timeout=STUCK)
    except subprocess.TimeoutExpired:
        worker.terminate()
        with suppress(subprocess.TimeoutExpired):
            worker.communicate(timeout=5)
        worker.kill()
        _, errors = worker.communicate()
        raise AssertionError(f"stuck: {errors}") from None
    assert worker.returncode == 0, errors


def read_log(log: Path) -> list[Record]:
    """The transactions of a process, as told last; what it was writing when killed is left out."""
    data, found, at = log.read_bytes() if log.exists() else b"", {}, 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        if at + 8 + size > len(data):
            break
        record = pickle.loads(data[at + 8 : at + 8 + size])
        found[record.name] = record
        at += 8 + size
    for record in found.values():
        if record.outcome == "open":
            record.outcome = "unknown"
    return list(found.values())


def judge(path: Path, logs: list[Path]) -> tuple[int, int]:
    """How many transactions there were, and how many commits."""
    records = [record for log in logs for record in read_log(log)]
    with closing(sqlite3.connect(path)) as outside:
        outside.execute("BEGIN IMMEDIATE")
        assert outside.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        final = {sql: outside.execute(sql).fetchall() for sql in FINAL}
        journal = outside.execute(JOURNAL).fetchall()
    try:
        with closing(Judge(SCHEMA, records, journal)) as one:
            one.check(final)
    except Wrong as wrong:
        history = "\n".join(map(repr, sorted(records, key=lambda each: each.ended)))
        path.with_suffix(".history").write_text(f"{wrong}\n\n{history}\n{journal}")
        raise
    return len(records), len(journal)


def storm(folder: Path, seed: int) -> tuple[int, int]:
    """Three processes; one or two are killed after a drawn number of commits."""
    chance = random.Random(seed)
    path = folder / "app.db"
    make_database(path)
    logs = [folder / f"{number}.log" for number in range(4)]
    workers = [
        start(path, log, f"{seed}.{number}", chance.choice((1, 2)))
        for number, log in enumerate(logs[:3])
    ]
    try:
        for each in workers[: chance.randrange(3)]:
            for _ in range(chance.randrange(25)):
                each.stdout.readline()  # type: ignore[union-attr]
            each.kill()
            each.communicate()
        workers.append(start(path, logs[3], f"{seed}.3", 1))
        for each in workers:
            if each.returncode is None:
                wait_for(each)
    finally:
        for each in workers:
            each.kill()
            each.communicate()
    return judge(path, logs)


@pytest.mark.storm
def test_processes_have_one_order(tmp_path: Path) -> None:
    """What was acknowledged is there, nothing else is, and all saw what a serial order shows."""
    until = time.monotonic() + SECONDS
    seed = SEED
    while True:
        print(f"MODEL_SEED={seed}")
        folder = tmp_path / str(seed)
        folder.mkdir()
        records, commits = storm(folder, seed)
        print(f"{records} transactions, {commits} commits")
        assert commits
        if time.monotonic() >= until:
            return
        seed += 1
