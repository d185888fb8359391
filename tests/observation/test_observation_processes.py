"""Commits of other processes, and forks."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import foreign
import pytest
from cancelling import PATIENCE
from observing import NEVER, Ground, Other, Parent, nothing, soon
from sqlalchemy import func, select, table

COUNT = select(func.count()).select_from(Parent)

WITH_QSESSION = """
import asyncio, sys
from sqlalchemy import text
from qsession import create_async_engine

async def main():
    engine = create_async_engine(f"sqlite+aiosqlite:///{sys.argv[1]}")
    for line in sys.stdin:
        async with engine.begin() as connection:
            await connection.execute(text("INSERT INTO parents (name) VALUES ('x')"))
        print("committed", flush=True)
    await engine.dispose()

asyncio.run(main())
"""
PLAIN = """
import sqlite3, sys
raw = sqlite3.connect(sys.argv[1], isolation_level=None)
for line in sys.stdin:
    raw.execute("INSERT INTO parents (name) VALUES ('x')")
    print("committed", flush=True)
"""


@pytest.fixture
async def ground(tmp_path: Path) -> AsyncIterator[Ground]:
    """A file with tables."""
    made = await Ground.ready(tmp_path / "a.db")
    yield made
    await made.close()


@pytest.mark.parametrize("code", [WITH_QSESSION, PLAIN], ids=["qsession", "sqlite3"])
async def test_each_commit_of_another_process(ground: Ground, code: str) -> None:
    """The observer gets each state, though nothing happens in this process."""
    rows = ground.maker.observe(COUNT)
    assert await soon(anext(rows)) == [(0,)]
    process = subprocess.Popen(  # noqa: ASYNC220 - it is told what to do line by line
        [sys.executable, "-c", code, str(ground.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for number in range(1, 6):
            waiting = await nothing(rows)
            process.stdin.write("\n")
            process.stdin.flush()
            assert await soon(waiting) == [(number,)]  # type: ignore[arg-type]
            assert process.stdout.readline() == "committed\n"
    finally:
        process.stdin.close()
        process.wait(PATIENCE)
        process.stdout.close()
    await rows.aclose()


async def test_the_commit_of_a_program_that_held_the_lock(ground: Ground) -> None:
    """What is not committed yet is not seen; what is rolled back by a crash never is."""
    ground.outside("CREATE TABLE t (x)")
    rows = ground.maker.observe(select(func.count()).select_from(table("t")))
    assert await soon(anext(rows)) == [(0,)]
    waiting = await nothing(rows)
    with foreign.program(ground.path, foreign.PROGRAMS["BEGIN IMMEDIATE"]) as process:
        assert ground.commits._look()
        assert not waiting.done()
        process.kill()
    with foreign.program(ground.path, foreign.PROGRAMS["BEGIN IMMEDIATE"]) as process:
        assert ground.commits._look()
        assert not waiting.done()
        process.let_go()
        assert await soon(waiting) == [(1,)]  # type: ignore[arg-type]
    await rows.aclose()


async def test_changed_by_another_process(ground: Ground) -> None:
    """`changed` returns, because the other process may have changed any table."""
    change = asyncio.ensure_future(ground.maker.changed(Other))
    while not [each for each in ground.commits._live() if each._tables]:
        await asyncio.sleep(0)
    await asyncio.to_thread(
        foreign.run, ground.path, 'raw.execute("INSERT INTO parents (name) VALUES (1)")'
    )
    await soon(change)  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
async def test_a_fork(ground: Ground) -> None:
    """The observer goes on afterwards, and the child can use the file."""
    rows = ground.maker.observe(COUNT, look_every=NEVER)
    await soon(anext(rows))
    code = f"""
import asyncio, os, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from observing import NEVER, Ground, Parent, soon
from sqlalchemy import func, select

COUNT = select(func.count()).select_from(Parent)

async def child():
    assert not ground.commits.observed
    await ground.add(Parent())
    rows = ground.maker.observe(COUNT, look_every=NEVER)
    assert await soon(anext(rows)) == [(1,)]
    await ground.add(Parent())
    assert await soon(anext(rows)) == [(2,)]
    await ground.engine.dispose()

run = asyncio.new_event_loop().run_until_complete
ground = Ground(Path({str(ground.path)!r}))
rows = ground.maker.observe(COUNT, look_every=NEVER)
print(run(anext(rows)), flush=True)
if os.fork() == 0:
    asyncio.run(child())
    os._exit(0)
assert os.wait()[1] == 0
print(run(soon(anext(rows))), flush=True)
run(ground.add(Parent()))
print(run(soon(anext(rows))), flush=True)
run(ground.engine.dispose())
"""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        check=False,
    )
    assert done.stdout.split("\n")[:3] == ["[(0,)]", "[(2,)]", "[(3,)]"], done.stderr
    ground.commits._look()
    assert await soon(anext(rows)) == [(3,)]
    await rows.aclose()
