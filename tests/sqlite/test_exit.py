"""Whole processes: how they end in the middle of load, and what is in the file afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from cancelling import assert_free, rows

PRELUDE = """
import asyncio, os, signal, sys, threading
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from qsession import create_async_engine
from qsession.session import QSession

signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored behind a shell's &

engine = create_async_engine("sqlite+aiosqlite:///" + sys.argv[1], pool_size=2, inline=%(inline)s)
INSERT = text("INSERT INTO t (task, number) VALUES (:task, :number)")
ENDLESS = text(
    "SELECT count(*) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
    " SELECT i FROM n)"
)

async def create():
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE t (task INTEGER, number INTEGER)"))

async def write(task, times=10**9):
    for number in range(times):
        async with AsyncSession(engine) as session:
            await session.execute(INSERT, {"task": task, "number": number})
            await session.execute(INSERT, {"task": task, "number": number})
            await session.commit()
        os.write(1, f"{task} {number}\\n".encode())  # at once, or not at all

async def read():
    async with QSession(engine, access="read") as session:
        await session.execute(ENDLESS)

async def load():
    await create()
    print("ready", flush=True)
    await asyncio.gather(*(write(task) for task in range(8)), *(read() for _ in range(5)))
"""
AT_THE_END = 2.0
"""Seconds that a process may take to end."""
SLOW_MACHINE = 20.0
"""Seconds more, for one that is busy with other things."""


@pytest.fixture
def start(tmp_path):
    """Start a process with this code behind the prelude; it is killed if it does not end."""
    started = []

    def start(code, inline=True):
        source = PRELUDE % {"inline": inline} + textwrap.dedent(code)
        process = subprocess.Popen(
            [sys.executable, "-c", source, str(tmp_path / "app.db")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        started.append(process)
        return process

    start.path = tmp_path / "app.db"
    yield start
    for process in started:
        process.kill()
        process.communicate()


def end(process):
    """Its output and errors; fails if it does not end."""
    since = time.monotonic()
    out, err = process.communicate(timeout=AT_THE_END + SLOW_MACHINE)
    assert time.monotonic() - since < AT_THE_END + SLOW_MACHINE / 2
    return out, err


def check(path, out):
    """The file is free and whole, has what was acknowledged, and nothing by half."""
    assert_free(path)
    acknowledged = [
        tuple(map(int, line.split())) for line in out.splitlines() if line[:1].isdigit()
    ]
    found = {
        (task, number): count
        for task, number, count in rows(
            path, "SELECT task, number, count(*) FROM t GROUP BY task, number"
        )
    }
    assert set(found.values()) <= {2}
    assert set(acknowledged) <= set(found)
    return acknowledged


def read_until(process, wanted):
    """Its output up to the line that begins with what is wanted."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(wanted):
            return "".join(lines)
    raise AssertionError(process.communicate()[1])


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.run did not handle SIGINT yet")
@pytest.mark.parametrize("inline", [True, False])
def test_interrupted_in_the_middle_of_load(start, inline):
    """Ctrl-C ends writers, waiters and endless readers, and asyncio has nothing to complain of."""
    process = start("asyncio.run(load())", inline)
    out = read_until(process, "3 10")
    process.send_signal(signal.SIGINT)
    rest, err = end(process)
    assert process.returncode == -signal.SIGINT
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert "never retrieved" not in err
    assert "Exception ignored" not in err
    assert len(check(start.path, out + rest)) > 10


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_interrupted_again_and_again(start):
    """Struck at any line of any task, asyncio may lose a wake-up; the next Ctrl-C ends it."""
    process = start("asyncio.run(load())")
    out = read_until(process, "3 10")
    process.send_signal(signal.SIGINT)
    for _ in range(10):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            rest, _ = process.communicate(timeout=AT_THE_END)
            break
    assert process.returncode is not None
    assert len(check(start.path, out + rest)) > 10


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to be told by")
@pytest.mark.parametrize("sign", ["SIGTERM", "SIGKILL"])
def test_killed_in_the_middle_of_load(start, sign):
    """What was acknowledged is there; nobody is locked out."""
    process = start("asyncio.run(load())")
    out = read_until(process, "3 10")
    process.send_signal(getattr(signal, sign))
    rest, _ = end(process)
    assert len(check(start.path, out + rest)) > 10


ENDINGS = {
    "never disposed of": """
        async def main():
            await create()
            await asyncio.gather(*(write(task, 5) for task in range(8)))

        asyncio.run(main())
    """,
    "in the middle of statements": """
        async def main():
            await create()
            await asyncio.gather(*(write(task, 5) for task in range(8)))
            tasks = [asyncio.create_task(read()) for _ in range(5)]
            tasks += [asyncio.create_task(write(task + 100)) for task in range(5)]
            while not engine.stats().waiting:
                await asyncio.sleep(0)

        asyncio.run(main())
    """,
    "with an open session": """
        async def main():
            global session
            await create()
            await asyncio.gather(*(write(task, 5) for task in range(8)))
            session = AsyncSession(engine)
            await session.execute(INSERT, {"task": 1, "number": 77})

        asyncio.run(main())
    """,
    "in a loop that is never closed": """
        async def main():
            await create()
            await asyncio.gather(*(write(task, 5) for task in range(8)))
            global tasks
            tasks = [asyncio.create_task(read()) for _ in range(2)]
            await asyncio.sleep(0)

        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # asyncio complains of pending tasks
    """,
    "by sys.exit in a task": """
        async def main():
            await create()
            await asyncio.gather(*(write(task, 5) for task in range(8)))
            async with QSession(engine) as session:
                await session.execute(INSERT, {"task": 1, "number": 77})
                sys.exit(0)

        asyncio.run(main())
    """,
    "with a daemon thread at work": """
        async def main():
            await create()
            await asyncio.gather(*(write(task, 5) for task in range(8)))

        asyncio.run(main())
        threading.Thread(target=asyncio.run, args=(read(),), daemon=True).start()
        writer = threading.Thread(target=asyncio.run, args=(write(100),), daemon=True)
        writer.start()
        writer.join(0.1)
    """,
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_interpreter_ends(start, ending):
    """Nobody has to dispose of an engine: the process ends, without a word, and all is there."""
    out, err = end(process := start(ENDINGS[ending]))
    if ending == "with an open session":
        assert "was not closed" in err
        assert "Traceback" not in err
    else:
        assert err == ""
    assert process.returncode == 0
    acknowledged = check(start.path, out)
    assert {(task, number) for task in range(8) for number in range(5)} <= set(acknowledged)
    assert rows(start.path, "SELECT * FROM t WHERE number = 77 AND task = 1") == []


def test_interpreter_ends_under_a_busy_loop(start):
    """A daemon thread whose loop is in the middle of transactions: the process does not crash.

    Without the sleep that ``shutdown`` puts such loops to, about every second run does.
    """
    for _ in range(10):
        process = start(
            """
            begun = threading.Event()

            async def main():
                if not os.path.exists(sys.argv[1]):
                    await create()
                tasks = [asyncio.create_task(write(os.getpid() + each)) for each in range(6)]
                while not engine.stats().waiting:
                    await asyncio.sleep(0)
                begun.set()
                await asyncio.gather(*tasks)

            threading.Thread(target=asyncio.run, args=(main(),), daemon=True).start()
            begun.wait()
            """
        )
        out, err = end(process)
        assert (process.returncode, err) == (0, "")
        check(start.path, out)


def test_others_that_wait_for_their_loop_at_the_end(start):
    """An application that ends its loop behind our back is not kept waiting for ever."""
    out, err = end(
        process := start(
            """
            import atexit
            from qsession.waiting import shutdown

            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=loop.run_forever, daemon=True)
            thread.start()

            def stop():
                loop.call_soon_threadsafe(loop.stop)
                thread.join()
                print("stopped", flush=True)

            atexit.unregister(shutdown.put_to_sleep)
            atexit.register(stop)
            atexit.register(shutdown.put_to_sleep)
            shutdown.SLEEP = 0.5
            asyncio.run_coroutine_threadsafe(create(), loop).result()
            """
        )
    )
    assert (process.returncode, err) == (0, "")
    assert out.split() == ["stopped"]


def test_an_exit_function_that_uses_a_synchronous_engine(start):
    """It runs last, if it was registered before the first engine; no sleeping loop delays it."""
    out, err = end(
        process := start(
            """
            import atexit, time
            from qsession import create_engine
            from qsession.waiting import shutdown

            def last():
                since = time.monotonic()
                for number in range(3):
                    with engine.begin() as connection:
                        connection.execute(INSERT, {"task": 1, "number": number})
                        connection.execute(INSERT, {"task": 1, "number": number})
                    print(1, number, flush=True)
                print("took", time.monotonic() - since < shutdown.SLEEP / 2, flush=True)

            def work():
                number = 0
                while True:
                    number += 1
                    with engine.begin() as connection:
                        connection.execute(INSERT, {"task": 2, "number": number})
                        connection.execute(INSERT, {"task": 2, "number": number})

            atexit.unregister(shutdown.put_to_sleep)
            atexit.register(last)
            atexit.register(shutdown.put_to_sleep)
            shutdown.SLEEP = 30.0
            asyncio.run(create())
            engine = create_engine("sqlite:///" + sys.argv[1])
            worker = threading.Thread(target=work, daemon=True)
            worker.start()
            worker.join(0.2)
            """
        )
    )
    assert (process.returncode, err) == (0, "")
    assert out.endswith("took True\n")
    assert len(check(start.path, out)) == 3


@pytest.mark.parametrize("stands", ["in a write", "in a call that blocks"])
def test_an_exit_function_beside_a_loop_that_stands(start, stands):
    """All loops are woken for it, since one may hold the lock. A blocked one is told to sleep once.

    A loop that was left asleep in the middle of its write would keep the exit function waiting.
    """
    out, err = end(
        process := start(
            f"""
            import atexit, time
            from qsession import create_engine
            from qsession.waiting import shutdown

            def last():
                since = time.monotonic()
                for number in range(3):
                    with sync.begin() as connection:
                        connection.execute(INSERT, {{"task": 1, "number": number}})
                        connection.execute(INSERT, {{"task": 1, "number": number}})
                    print(1, number, flush=True)
                print("took", time.monotonic() - since < shutdown.SLEEP / 2, flush=True)

            atexit.unregister(shutdown.put_to_sleep)
            atexit.register(last)
            atexit.register(shutdown.put_to_sleep)
            shutdown.SLEEP = 30.0
            shutdown.PATIENCE = {0.5 if stands == "in a write" else 8.0}
            sync = create_engine("sqlite:///" + sys.argv[1], queue_timeout=15)
            asyncio.run(create())
            with sync.begin() as connection:
                connection.execute(text("SELECT * FROM t"))
            begun = threading.Event()

            async def work():
                async with engine.begin() as connection:
                    if {stands == "in a write"}:
                        await connection.execute(INSERT, {{"task": 2, "number": 0}})
                        asyncio.get_running_loop().call_later(0.2, begun.set)
                        await asyncio.sleep(0.4)
                        await connection.execute(INSERT, {{"task": 2, "number": 0}})
                if {stands != "in a write"}:
                    begun.set()
                    threading.Event().wait(3600)
                await asyncio.sleep(3600)

            threading.Thread(target=asyncio.run, args=(work(),), daemon=True).start()
            assert begun.wait(20)
            """
        )
    )
    assert (process.returncode, err) == (0, "")
    assert out.endswith("took True\n")
    assert len(check(start.path, out)) == 3
