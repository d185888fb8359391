"""Processes that are killed at any moment, while others work on the same file.

Ten rounds; CRASH_ROUNDS=100, as in `make storm`, makes it a hundred. CRASH_SEED repeats a run's
choices.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("crash_worker.py")
ROUNDS = int(os.environ.get("CRASH_ROUNDS", "10"))
SEED = os.environ.get("CRASH_SEED") or str(random.randrange(10**6))
STUCK = 60.0
PROCESSES = 3


class Worker:
    """A process of the storm, and what it has acknowledged."""

    def __init__(self, path: Path, seed: str, acknowledged: set[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, WORKER, path, "8", seed],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self.count = 0
        self._acknowledged = acknowledged
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            if line.endswith("\n"):  # the kill may have come in the middle of one
                self._acknowledged.add(line.strip())
                self.count += 1

    def kill(self) -> None:
        """All that it has said by then has been read when this returns."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stdout.close()


def wait_for(workers: list[Worker], commits: int) -> None:
    """Until each worker has acknowledged so many commits since it was started."""
    deadline = time.monotonic() + STUCK
    while any(each.count < commits for each in workers):
        assert time.monotonic() < deadline, [each.count for each in workers]
        for each in workers:
            assert each.process.poll() is None
        time.sleep(0.001)


def check(path: Path, acknowledged: set[str], whole: bool) -> None:
    """From outside: the file is whole, every acknowledged transfer is there, and none is half."""
    with closing(sqlite3.connect(path, timeout=STUCK if not whole else 0.2)) as outside:
        outside.isolation_level = None
        outside.execute("BEGIN IMMEDIATE" if whole else "BEGIN")
        seen = set(acknowledged)
        names = [name for (name,) in outside.execute("SELECT name FROM transfers")]
        moved: Counter[int] = Counter()
        for giver, taker, amount in outside.execute("SELECT giver, taker, amount FROM transfers"):
            moved.update({giver: -amount})
            moved.update({taker: amount})
        balances = dict(outside.execute("SELECT id, balance FROM accounts"))
        problems = outside.execute("PRAGMA integrity_check").fetchall()
        outside.execute("ROLLBACK")
    assert problems == [("ok",)]
    assert len(names) == len(set(names))
    assert balances == {each: 1000 + moved[each] for each in range(1, 6)}
    if whole:
        assert seen <= set(names)


@pytest.mark.storm
def test_killed_at_any_moment(tmp_path):
    """Some of three processes are killed, or all of them; the rest and the next ones go on."""
    print(f"CRASH_SEED={SEED}")
    chance = random.Random(SEED)
    path = tmp_path / "app.db"
    acknowledged: set[str] = set()
    workers: list[Worker] = []
    try:
        for turn in range(ROUNDS):
            while len(workers) < PROCESSES:
                workers.append(Worker(path, f"{SEED}.{turn}.{len(workers)}", acknowledged))
            for each in workers:
                each.count = 0
            wait_for(workers, chance.randrange(1, 40))
            time.sleep(chance.random() * 0.02)  # at any point of a transaction, not behind one
            victims = chance.sample(workers, chance.randrange(1, PROCESSES + 1))
            for each in victims:
                each.process.send_signal(signal.SIGKILL)
            for each in victims:
                each.kill()
                workers.remove(each)
            for each in workers:
                each.count = 0
            wait_for(workers, 5)  # nobody waits for the dead
            check(path, acknowledged, whole=not workers)
    finally:
        for each in workers:
            each.kill()
    check(path, acknowledged, whole=True)
    assert len(acknowledged) > ROUNDS
