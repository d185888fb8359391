"""APScheduler 4 on an engine of ours: it needs no integration."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from cancelling import assert_free, eventually, rows

JOBS = 100
CHILD = Path(__file__).parent / "schedule_child.py"


def scheduler(path: Path, *jobs: int) -> subprocess.Popen[Any]:
    """One in its own process, which adds jobs, or runs what is there."""
    url = f"sqlite+aiosqlite:///{path}"
    return subprocess.Popen([sys.executable, str(CHILD), url, *map(str, jobs)], env={**os.environ})


async def test_two_schedulers_do_each_job_once(tmp_path):
    """Two processes on one file take the jobs of a third: each job is done by one of them."""
    path = tmp_path / "jobs.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE effects (id INTEGER PRIMARY KEY, job INTEGER, pid INTEGER)")
    connection.close()
    assert scheduler(path, *range(JOBS)).wait(60) == 0
    assert rows(path, "SELECT count(*) FROM jobs") == [(JOBS,)]
    running = [scheduler(path), scheduler(path)]
    try:
        await eventually(lambda: rows(path, "SELECT count(*) FROM jobs") == [(0,)])
    finally:
        for each in running:
            each.terminate()
            each.wait(30)
    assert Counter(job for (job,) in rows(path, "SELECT job FROM effects")) == Counter(range(JOBS))
    assert_free(path)
