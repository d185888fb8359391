"""Several processes count one row up: no error, no disorder, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cancelling import assert_free, rows
from tables import Base, Counter

from qsession import create_async_engine

WORKER = Path(__file__).with_name("process_worker.py")


@pytest.mark.storm
@pytest.mark.parametrize("system", ["Flock", "Portable"])
def test_processes(tmp_path: Path, system: str) -> None:
    """Read-modify-writes of one row and inserts by 4 processes: no error, and nothing lost."""
    path, processes, tasks, times = tmp_path / "app.db", 4, 10, 5

    async def make() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
            await connection.execute(Counter.__table__.insert(), [{"id": 1, "value": 0}])
        await engine.dispose()

    asyncio.run(make())
    maker = {"Flock": "qsession", "Portable": "portable"}[system]
    command = [str(tasks), str(times), f"{maker}:create_async_engine"]
    running = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(path), str(each), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for each in range(processes)
    ]
    assert [each.stdout.readline() for each in running] == ["ready\n"] * processes
    for each in running:
        each.stdin.write("go\n")
        each.stdin.flush()
    outcomes = [json.loads(each.communicate(timeout=120)[0]) for each in running]
    assert [each["error"] for each in outcomes] == [[]] * processes
    assert [each["disorder"] for each in outcomes] == [0] * processes
    assert all(each["served"] >= tasks * times for each in outcomes)
    total = processes * tasks * times
    assert rows(path, "SELECT value FROM counters") == [(total,)]
    assert rows(path, "SELECT count(DISTINCT name) FROM events") == [(total,)]
    assert_free(path)
