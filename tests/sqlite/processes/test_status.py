"""What processes tell `qsession who` and `qsession top`."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, contextmanager

import pytest
from cancelling import PATIENCE, eventually
from sqlalchemy import text
from typer.testing import CliRunner

from qsession import create_async_engine
from qsession.cli import app
from qsession.commands import engines
from qsession.commands.who import processes
from qsession.sqlite.processes import status

CHILD = """
import asyncio, sys
from sqlalchemy import text
from qsession import create_async_engine

WRITE = text("INSERT INTO t VALUES (1)")

async def write(engine, holding=None, over=None):
    async with engine.begin() as connection:
        await connection.execute(WRITE)
        if holding is not None:
            holding.set()
            await over.wait()

async def main(path):
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE IF NOT EXISTS t (x)"))
    holding, over = asyncio.Event(), asyncio.Event()
    tasks = [asyncio.create_task(write(engine, holding, over), name="first")]
    await holding.wait()
    tasks += [asyncio.create_task(write(engine)) for _ in range(3)]
    while engine.stats().waiting < 3:
        await asyncio.sleep(0)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    over.set()
    await asyncio.gather(*tasks)
    await engine.dispose()
    print("done", flush=True)

asyncio.run(main(sys.argv[1]))
"""
WAIT = """
import asyncio, sys
from sqlalchemy import text
from qsession import create_async_engine

async def main(path):
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    async with engine.connect() as connection:
        writing = asyncio.create_task(connection.execute(text("INSERT INTO t VALUES (1)")))
        while not engine.pool.write_queue.turn.held:
            await asyncio.sleep(0)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        writing.cancel()
        await asyncio.wait([writing])
    await engine.dispose()
    print("done", flush=True)

asyncio.run(main(sys.argv[1]))
"""
HOLD = """
import sqlite3, sys
raw = sqlite3.connect(sys.argv[1], isolation_level=None)
raw.execute("BEGIN IMMEDIATE")
print("ready", flush=True)
sys.stdin.readline()
raw.close()
"""


@contextmanager
def running(code, path, **environment):
    """A process that has said that it is ready; it goes on at the end."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
    ) as process:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        yield process
        _, said = process.communicate("\n", timeout=PATIENCE)
        assert (process.returncode, said) == (0, "")


def who(*arguments):
    return CliRunner().invoke(app, ["who", *map(str, arguments)], env={"COLUMNS": "200"})


def test_holder_and_queue_of_another_process(tmp_path):
    """Its task, its statement and how many wait; by any name of the file; nothing afterwards."""
    path = tmp_path / "app.db"
    (tmp_path / "link.db").symlink_to(path)
    with running(CHILD, path) as child:
        (found,) = processes(str(path))
        assert (found.pid, found.locks) == (child.pid, True)
        (engine,) = found.engines
        assert engine["waiting"] == 3
        assert engine["holder"]["task"] == "task 'first'"
        assert engine["turn"] == "holds"
        shown = who(tmp_path / "link.db").output
        assert "writing: task 'first'" in shown
        assert "'INSERT INTO t VALUES (1)'" in shown
        assert "3 wait behind it" in shown
        (told,) = json.loads(who(path, "--json").output)
        assert told["engines"][0]["waiting"] == 3
    assert processes(str(path)) == []
    assert "No process that this user can see has it open" in who(path).output


def test_two_processes(tmp_path):
    """One that has another file is not among them; one that only has this one open is."""
    path, other = tmp_path / "app.db", tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("CREATE TABLE t (x)")
    with running(CHILD, other), running(HOLD, path) as foreign:
        (found,) = processes(str(path))
        assert (found.pid, found.locks, found.engines) == (foreign.pid, True, [])
        assert "holds SQLite's write lock" in who(path).output


def test_waiting_for_a_program_without_qsession(tmp_path):
    """`who` and `top` say who is in the way of the process that has the turn."""
    path = tmp_path / "app.db"
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("PRAGMA journal_mode=WAL")
        raw.execute("CREATE TABLE t (x)")
    with running(HOLD, path) as foreign, running(WAIT, path):
        words = f"waits for SQLite's lock, held by pid {foreign.pid}"
        shown = who(path).output
        assert words in " ".join(shown.split())
        top = ["top", str(path), "--count", "1", "--interval", "0.05"]
        shown = CliRunner().invoke(app, top, env={"COLUMNS": "200"}).output
        assert words in shown
        assert f"{foreign.pid}: holds SQLite's write lock" in shown


def test_turned_off(tmp_path):
    """With QSESSION_STATUS=off a process is like any other that has the file open."""
    path = tmp_path / "app.db"
    with running(CHILD, path, QSESSION_STATUS="off") as child:
        (found,) = processes(str(path))
        assert (found.pid, found.engines) == (child.pid, [])


def test_top(tmp_path):
    """A look at the queues, and how many were committed since the look before."""
    path = tmp_path / "app.db"
    with running(CHILD, path) as child:
        arguments = ["top", str(path), "--count", "2", "--interval", "0.05"]
        done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
        assert done.exit_code == 0, done.output
        assert str(child.pid) in done.output
        assert "writing: task 'first'" in done.output
    done = CliRunner().invoke(app, ["top", str(path), "--count", "1", "--interval", "0.05"])
    assert "No qsession process" in done.output
    assert CliRunner().invoke(app, ["top", str(tmp_path / "missing.db")]).exit_code == 2


@pytest.fixture
async def engine(tmp_path):
    made = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}")
    async with made.begin() as connection:
        await connection.execute(text("CREATE TABLE t (x)"))
    yield made
    await made.dispose()


async def test_asked_at_any_moment(engine, tmp_path):
    """Somebody asks without a pause while tasks come and go: no answer fails, and none is wrong."""
    over = False
    answers = []

    def ask():
        found = os.stat(tmp_path / "app.db")
        while not over:
            answers.append(engines._ask(os.getpid(), found))

    async def write():
        for _ in range(20):
            async with engine.begin() as connection:
                await connection.execute(text("INSERT INTO t VALUES (1)"))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        await asyncio.gather(*(write() for _ in range(10)))
        await eventually(lambda: len(answers) > 5)
    finally:
        over = True
        await asyncio.to_thread(asking.join)
    counts = [engine["commits"] for _, (engine,) in answers]
    assert counts == sorted(counts)
    assert engine.stats().commits == 201


@pytest.mark.parametrize("said", [b"", b"x", b"1", b"\xff" * 100, b"-1 99999999999999999999"])
def test_nonsense_is_not_answered(said, engine, tmp_path):
    """Whatever is said to the socket, the next one who asks gets an answer."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(PATIENCE)
        asking.connect(status.address_of(os.getpid()))
        asking.sendall(said)
        asking.shutdown(socket.SHUT_WR)
        assert asking.recv(100) in (b"", b"[]")
    assert [each for each, _ in engines.engines_on(str(tmp_path / "app.db"))] == [os.getpid()]


def test_other_users_get_no_answer(engine, tmp_path, monkeypatch):
    """Only the same user, and root."""
    here = threading.get_ident()

    def peer(_):
        return os.getpid(), os.geteuid() if threading.get_ident() == here else 54321

    monkeypatch.setattr(status, "peer_of", peer)
    assert list(engines.engines_on(str(tmp_path / "app.db"))) == []


def test_no_socket_can_be_made(monkeypatch, tmp_path):
    """The application does not notice."""

    def refuse(*_):
        raise OSError("no sockets today")

    monkeypatch.setattr(status, "_serving", None)
    monkeypatch.setattr(socket, "socket", refuse)
    status.serve()
    assert status._serving == os.getpid()


def test_forked_child_answers_for_itself(tmp_path):
    """It has its own thread and its own engines, beside its parent's."""
    code = """
import asyncio, os, sys
from sqlalchemy import text
from qsession import create_async_engine
engine = create_async_engine(f"sqlite+aiosqlite:///{sys.argv[1]}")
async def write():
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE IF NOT EXISTS t (x)"))
asyncio.run(write())
ready, going = os.pipe(), os.pipe()
child = os.fork()
if not child:
    asyncio.run(write())
    os.write(ready[1], b"x")
    os.read(going[0], 1)
    os._exit(0)
os.read(ready[0], 1)
print("ready", flush=True)
sys.stdin.readline()
os.write(going[1], b"x")
os.waitpid(child, 0)
"""
    path = tmp_path / "app.db"
    with running(code, path) as parent:
        found = {each.pid: each.engines[0]["commits"] for each in processes(str(path))}
        assert len(found) == 2
        assert found.pop(parent.pid) == 1
        assert list(found.values()) == [1]
