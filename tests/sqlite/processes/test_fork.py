"""Forks: the child begins anew, the parent goes on, and neither does anything to the other.

Each test runs a script of its own, so that no thread of the test's process is in the way.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
from cancelling import STRICT, assert_free, rows

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

PRELUDE = """
import asyncio, contextlib, ctypes, gc, os, signal, sqlite3, subprocess, sys, threading, warnings
from pathlib import Path
from sqlalchemy import event, text
from qsession import create_async_engine

path = sys.argv[1]
opened = []
STRANGER = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('SELECT * FROM t')"

def make(path, **kw):
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", **kw)
    event.listen(engine.sync_engine, "connect", lambda raw, _: opened.append(path))
    return engine

engine = make(path)

async def create(engine=engine):
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE t (x)"))

async def insert(value, engine=engine):
    async with engine.begin() as connection:
        await connection.execute(text("INSERT INTO t VALUES (:x)"), {"x": value})

def reading(engine=engine):
    return engine.execution_options(qsession_access="read").connect()

async def read(engine=engine):
    async with reading(engine) as connection:
        return (await connection.execute(text("SELECT x FROM t ORDER BY x"))).scalars().all()

async def use():
    "Have the writer and several readers open."
    await create()
    await insert(1)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            connection = await stack.enter_async_context(reading())
            await connection.execute(text("SELECT x FROM t"))
    assert len(opened) == 4

def fork(function):
    "Run it in a child, to the end of its interpreter; wait for that."
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        function()
    except BaseException as error:
        print(f"child: {error!r}", flush=True)
        os._exit(1)
    os._exit(0)

def refused(function):
    try:
        function()
    except Exception as error:
        assert "was forked while its parent" in str(error), error
    else:
        raise AssertionError("not refused")
"""


def run(path, code):
    """What a script prints; it must end well, and without a word on stderr."""
    done = subprocess.run(
        [sys.executable, *STRICT, "-c", PRELUDE + textwrap.dedent(code), str(path)],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout.split()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.db"
    yield path
    assert_free(path)
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


def test_both_go_on(path):
    """Parent and child use the engine they had; it opens its connections anew in each."""
    run(
        path,
        """
        asyncio.run(use())
        assert fork(lambda: asyncio.run(insert(2))) == 0
        assert len(opened) == 4
        asyncio.run(insert(3))
        assert asyncio.run(read()) == [1, 2, 3]
        assert len(opened) == 6
        assert fork(lambda: asyncio.run(insert(4))) == 0
        """,
    )
    assert rows(path, "SELECT x FROM t") == [(1,), (2,), (3,), (4,)]


def test_a_child_has_locks_of_its_own(path):
    """The parent dies, a stranger opens and closes the file: the child's commits are still there.

    With the parent's connections left open, the stranger would delete the WAL that the child goes
    on writing to.
    """
    printed = run(
        path,
        """
        done, stay = os.pipe(), os.pipe()
        if os.fork() == 0:
            asyncio.run(use())
            pid = os.fork()
            if pid == 0:
                os.close(stay[1])
                asyncio.run(insert(2))
                os.kill(os.getppid(), signal.SIGKILL)
                subprocess.run([sys.executable, "-c", STRANGER, path], check=True)
                asyncio.run(insert(3))
                os.write(done[1], b"done")
                os.read(stay[0], 1)
                os._exit(0)
            signal.pause()
        os.close(done[1])
        assert os.read(done[0], 4) == b"done"
        with contextlib.closing(sqlite3.connect(path)) as outside:
            print(*(x for x, in outside.execute("SELECT x FROM t")))
        """,
    )
    assert printed == ["1", "2", "3"]


def test_a_file_in_use_is_refused(path):
    """A child does not touch a file that its parent reads or writes at that moment."""
    run(
        path,
        """
        other = make(path + "2")

        async def main():
            await create()
            await create(other)
            async with reading() as connection:
                await connection.execute(text("SELECT x FROM t"))
                assert fork(lambda: refused(lambda: asyncio.run(insert(7)))) == 0
                assert fork(lambda: asyncio.run(insert(7, other))) == 0
            async with engine.begin() as connection:
                await connection.execute(text("INSERT INTO t VALUES (1)"))
                assert fork(lambda: refused(lambda: asyncio.run(read()))) == 0
            assert fork(lambda: asyncio.run(insert(2))) == 0
            assert await read() == [1, 2]
            assert await read(other) == [7]

        asyncio.run(main())
        """,
    )


@pytest.mark.parametrize("how", ["close", "forget", "exit"])
def test_a_child_leaves_the_parents_transaction_alone(path, how):
    """Whatever becomes of the parent's connection in the child, the parent can commit on it."""
    run(
        path,
        """
        def close():
            asyncio.run(held[0].close())

        def forget():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it was not closed
                held.clear()
                gc.collect()

        def exit():
            os.dup2(2, 1)
            # A loop that is closed here would take its place in the parent's epoll along.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(loop))
            sys.exit(0)

        async def begin():
            await create()
            connection = await engine.connect()
            await connection.execute(text("PRAGMA cache_size=1"))  # so that it writes to the WAL
            await connection.execute(
                text("INSERT INTO t SELECT randomblob(9000) FROM (VALUES (1), (2), (3), (4))")
            )
            return [connection]

        async def end():
            await held[0].commit()
            await held[0].close()

        loop = asyncio.new_event_loop()
        held = loop.run_until_complete(begin())
        if HOW == "exit":
            child = os.fork()
            if child == 0:
                exit()
            assert os.waitpid(child, 0)[1] == 0
        else:
            assert fork(globals()[HOW]) == 0
        loop.run_until_complete(end())
        loop.close()
        """.replace("HOW", repr(how)),
    )
    assert rows(path, "SELECT count(*) FROM t") == [(4,)]


def test_a_connection_with_settings_is_in_use(path):
    """It cannot be closed before a fork, for what it has set would be lost."""
    run(
        path,
        """
        async def begin():
            await create()
            connection = await engine.connect()
            await connection.execute(text("CREATE TEMP TABLE mine AS SELECT 7 AS x"))
            await connection.commit()
            return [connection]

        async def use():
            assert (await held[0].execute(text("SELECT x FROM mine"))).all() == [(7,)]
            await held[0].commit()

        def child():
            refused(lambda: asyncio.run(insert(1)))
            refused(lambda: asyncio.run(use()))
            held.clear()
            gc.collect()

        loop = asyncio.new_event_loop()
        held = loop.run_until_complete(begin())
        assert fork(child) == 0
        loop.run_until_complete(use())
        loop.run_until_complete(held[0].close())
        assert fork(lambda: asyncio.run(insert(2))) == 0
        loop.run_until_complete(insert(3))
        assert loop.run_until_complete(read()) == [2, 3]
        loop.close()
        """,
    )


def test_fork_in_the_middle_of_everything(path):
    """Loops in two threads write and read while a third thread forks: the parent is not hurt.

    What the child could do is another matter: its memory has the locks of threads that it does not
    have, those inside of SQLite among them.
    """
    (count,) = run(
        path,
        """
        asyncio.run(create())
        stop = threading.Event()
        counts = [0, 0]

        async def work(which):
            while not stop.is_set():
                await asyncio.gather(*(insert(1) for _ in range(5)), read())
                counts[which] += 5

        threads = [threading.Thread(target=lambda n=n: asyncio.run(work(n))) for n in (0, 1)]
        for each in threads:
            each.start()
        assert [fork(lambda: None) for _ in range(20)] == [0] * 20
        stop.set()
        for each in threads:
            each.join(30)
            assert not each.is_alive()
        print(sum(counts))
        """,
    )
    assert rows(path, "SELECT count(*) FROM t") == [(int(count),)]


def test_fork_beside_a_checkpoint(path):
    """A connection that makes a checkpoint is in use: the child is refused."""
    run(
        path,
        """
        from qsession.sqlite.durability.checkpoint import When

        begun, over = threading.Event(), threading.Event()

        def checkpoint(raw):
            begun.set()
            over.wait()

        async def fork_beside_it():
            await insert(2)
            await asyncio.to_thread(begun.wait)
            assert fork(lambda: refused(lambda: asyncio.run(insert(3)))) == 0
            over.set()
            while engine.stats().in_use:  # given back by its thread
                await asyncio.sleep(0)

        asyncio.run(use())
        engine.pool.checkpointer.due = lambda: When.NOT if begun.is_set() else When.AFTER
        engine.pool.checkpointer.run = checkpoint
        asyncio.run(fork_beside_it())
        assert fork(lambda: asyncio.run(insert(4))) == 0
        assert asyncio.run(read()) == [1, 2, 4]
        """,
    )


def test_fork_while_a_file_is_opened(path):
    """The parent is about to open some file: its child must not touch any."""
    run(
        path,
        """
        codes = []

        def in_listener(raw, _):
            codes.append(fork(lambda: refused(lambda: asyncio.run(insert(7)))))

        asyncio.run(create())
        asyncio.run(engine.dispose())
        event.listen(engine.sync_engine, "connect", in_listener)
        assert asyncio.run(read()) == []
        event.remove(engine.sync_engine, "connect", in_listener)
        assert codes == [0]
        assert fork(lambda: asyncio.run(insert(1))) == 0
        """,
    )
