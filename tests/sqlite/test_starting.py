"""Many processes that start at once on one file, and the ways in which servers start them."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from cancelling import STRICT, assert_free, rows
from project import FAMILY, Project
from serving import STUCK, serving

PROCESSES = 8

ENGINE = """
import asyncio
from sqlalchemy import text
from qsession import create_async_engine
async def one(statement):
    engine = create_async_engine("sqlite+aiosqlite:///app.db")
    async with engine.begin() as connection:
        await connection.execute(text(statement))
    await engine.dispose()
"""

FIRST_ACTS = {
    "alembic upgrade head": (
        "import alembic.config",
        "alembic.config.main(['upgrade', 'head'])",
    ),
    "qsession.upgrade()": (
        "import asyncio, qsession.migrate",
        "asyncio.run(qsession.migrate.upgrade())",
    ),
    "a read": (ENGINE, "asyncio.run(one('SELECT 1'))"),
    "a write": (ENGINE, "asyncio.run(one('CREATE TABLE IF NOT EXISTS t (x)'))"),
}


@pytest.mark.parametrize("act", list(FIRST_ACTS))
def test_eight_start_at_once(tmp_path, act):
    """The file does not exist yet. All eight succeed, and whatever is to be done is done once."""
    project = Project(tmp_path)
    project.add(FAMILY)
    before, action = FIRST_ACTS[act]
    code = f"import sys\n{before}\nprint(flush=True)\nsys.stdin.readline()\n{action}\n"
    processes = [
        subprocess.Popen(
            [sys.executable, *STRICT, "-c", code],
            cwd=project.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for _ in range(PROCESSES)
    ]
    for each in processes:
        each.stdout.readline()
    for each in processes:
        each.stdin.write("\n")
        each.stdin.flush()
    said = [each.communicate(timeout=STUCK)[1] for each in processes]
    assert [each.returncode for each in processes] == [0] * PROCESSES, said
    if "upgrade" in act:
        assert project.execute("SELECT count(*) FROM parent") == [(1,)]
        assert [text.count("Running upgrade") for text in said].count(1) <= 1
    assert rows(project.file, "PRAGMA journal_mode") == [("wal",)]
    assert_free(project.file)


SERVERS = {
    "gunicorn --preload": (
        *("gunicorn", "--preload", "--workers", "4", "--bind", "fd://{fd}"),
        *("--worker-class", "uvicorn_worker.UvicornWorker", "--no-control-socket", "asgi_app:app"),
    ),
    "uvicorn --workers": ("uvicorn", "--workers", "4", "--fd", "{fd}", "asgi_app:app"),
}


@pytest.mark.parametrize("server", list(SERVERS))
def test_web_servers(tmp_path, server):
    """Four workers count one row up at 16 requests at once: no number is given twice."""
    preload = {"USE_AT_IMPORT": "yes"} if "preload" in server else {}

    def ask(_):
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=STUCK)) as connection:
            connection.request("GET", "/")
            answer = connection.getresponse()
            return answer.status, answer.read().split()

    with serving(SERVERS[server], tmp_path, **preload) as port:
        with ThreadPoolExecutor(16) as threads:
            answers = list(threads.map(ask, range(400)))
    assert {status for status, _ in answers} == {200}
    assert sorted(int(number) for _, (number, _) in answers) == list(range(1, 401))
    assert len({pid for _, (_, pid) in answers}) > 1
    assert rows(tmp_path / "app.db", "SELECT count FROM hits") == [(400,)]
    assert_free(tmp_path / "app.db")


POOL = """
import asyncio, multiprocessing, sys, warnings
from sqlalchemy import text
from qsession import create_async_engine
engine = create_async_engine("sqlite+aiosqlite:///app.db")

async def add():
    async with engine.begin() as connection:
        (value,) = (await connection.execute(text("SELECT x FROM t WHERE x >= 0"))).one()
        await connection.execute(text("UPDATE t SET x = :new"), {"new": value + 1})

async def many():
    await asyncio.gather(*(add() for _ in range(10)))

def work(_):
    asyncio.run(many())

async def create():
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE t (x)"))
        await connection.execute(text("INSERT INTO t VALUES (0)"))

if __name__ == "__main__":
    warnings.filterwarnings("ignore", "This process .* is multi-threaded")
    asyncio.run(create())
    with multiprocessing.get_context(sys.argv[1]).Pool(4) as pool:
        pool.map(work, range(12))
        work(0)
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(tmp_path, method):
    """A pool of processes, and its parent, use the engine of one module."""
    (tmp_path / "pool.py").write_text(POOL)
    done = subprocess.run(
        [sys.executable, *STRICT, "pool.py", method],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        text=True,
        timeout=STUCK,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert rows(tmp_path / "app.db", "SELECT x FROM t") == [(130,)]
    assert_free(tmp_path / "app.db")
