"""Whole processes with synchronous engines: beside each other, killed, forked, at their end."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cancelling import STRICT, assert_free, rows

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

PRELUDE = """
import atexit, gc, os, signal, sys, threading
from sqlalchemy import text
from qsession import create_engine, ConflictError

engine = create_engine("sqlite:///" + sys.argv[1])
READ = text("SELECT value FROM counter")
SET = text("UPDATE counter SET value = :value")

def write(value):
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO t VALUES (:x), (:x)"), {"x": value})

def read():
    with engine.connect() as connection:
        return connection.execute(text("SELECT DISTINCT x FROM t ORDER BY x")).scalars().all()

def fork(function):
    "Run it in a child that ends as a program does; its exit code."
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        function()
    except Exception as error:
        print(f"child: {error!r}", flush=True)
        os._exit(1)
    sys.exit(0)

def in_threads(function, *lists):
    threads = [threading.Thread(target=function, args=args) for args in lists]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""

Start = Callable[[str], Any]


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A file with the tables that the programs use."""
    found = str(tmp_path / "app.db")
    connection = sqlite3.connect(found)
    connection.executescript(
        "PRAGMA journal_mode=WAL; CREATE TABLE t (x); CREATE TABLE counter (value);"
        "INSERT INTO counter VALUES (0);"
    )
    connection.close()
    return found


@pytest.fixture
def begin(path: str) -> Iterator[Start]:
    """Starts programs, and kills what is left of them."""
    programs: list[subprocess.Popen[str]] = []

    def begin(code: str) -> subprocess.Popen[str]:
        program = PRELUDE + textwrap.dedent(code)
        programs.append(
            subprocess.Popen(
                [sys.executable, *STRICT, "-c", program, path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return programs[-1]

    yield begin
    for each in programs:
        each.kill()
        each.communicate()


def ends_well(program: subprocess.Popen[str]) -> str:
    """Wait for its end, and see that it has complained of nothing; what it printed."""
    out, err = program.communicate(timeout=60)
    assert (program.returncode, err) == (0, ""), out
    return out


RAISES = """
def raise_often():
    for _ in range(30):
        while True:
            try:
                with engine.begin() as connection:
                    value = connection.scalar(READ)
                    connection.execute(SET, {"value": value + 1})
            except ConflictError:
                continue
            break

in_threads(raise_often, (), (), ())
engine.dispose()
"""


def test_no_update_is_lost_between_processes(begin: Start, path: str) -> None:
    """Each reads, adds one and writes, in three threads, after which the file is free."""
    for each in [begin(RAISES) for _ in range(3)]:
        ends_well(each)
    assert rows(path, "SELECT value FROM counter") == [(270,)]
    assert_free(path)


def test_a_process_that_is_killed_leaves_whole_transactions(begin: Start, path: str) -> None:
    """What it has acknowledged is there, what it had begun is not, and others go on."""
    killed = begin(
        """
        def write_on(thread):
            for number in range(10**9):
                write(f"{thread} {number}")
                os.write(1, f"{thread} {number}\\n".encode())

        in_threads(write_on, (0,), (1,), (2,))
        """
    )
    other = begin("print(read()); write('other'); engine.dispose()")
    acknowledged = {killed.stdout.readline().strip() for _ in range(50)}
    killed.send_signal(signal.SIGKILL)
    acknowledged |= {line.strip() for line in killed.communicate()[0].splitlines()}
    ends_well(other)
    ends_well(begin("write('later'); engine.dispose()"))
    found = dict(rows(path, "SELECT x, count(*) FROM t GROUP BY x"))
    assert set(found.values()) == {2}
    assert acknowledged | {"other", "later"} <= set(found)
    assert len(found) - len(acknowledged) - 2 <= 3  # committed, and not told any more
    assert_free(path)


def test_a_process_that_holds_the_lock_is_waited_for(begin: Start, path: str) -> None:
    """One that has only read is not."""
    holder = begin(
        """
        with engine.connect() as connection:
            connection.execute(READ)
            print("read", flush=True)
            sys.stdin.readline()
            connection.execute(text("UPDATE counter SET value = value + 1"))
            print("wrote", flush=True)
            sys.stdin.readline()
            connection.commit()
        engine.dispose()
        """
    )
    assert holder.stdout.readline() == "read\n"
    ends_well(begin("write('beside'); engine.dispose()"))
    print(file=holder.stdin, flush=True)
    assert holder.stdout.readline() == "wrote\n"
    waiting = begin("print('begun', flush=True); write('behind'); engine.dispose()")
    assert waiting.stdout.readline() == "begun\n"
    assert rows(path, "SELECT DISTINCT x FROM t") == [("beside",)]
    print(file=holder.stdin, flush=True)
    ends_well(holder)
    ends_well(waiting)
    assert rows(path, "SELECT DISTINCT x FROM t ORDER BY x") == [("behind",), ("beside",)]


def test_an_engine_made_and_used_before_a_fork(begin: Start, path: str) -> None:
    """As in a worker that forks its pool: children and parent write, one after the other."""
    program = begin(
        """
        write("before")
        assert [fork(lambda: write(f"child {n}")) for n in range(3)] == [0, 0, 0]
        write("after")
        assert fork(lambda: in_threads(write, ("a",), ("b",), ("c",))) == 0
        assert fork(lambda: fork(lambda: write("grandchild"))) == 0
        assert len(read()) == 9, read()
        engine.dispose()
        """
    )
    assert ends_well(program) == ""
    assert_free(path)


def test_a_fork_while_other_threads_write(begin: Start, path: str) -> None:
    """The child writes, or is told that the file was in use; the parent goes on."""
    program = begin(
        """
        stop = threading.Event()

        def write_on(thread):
            number = 0
            while not stop.is_set():
                write(f"{thread} {number}")
                number += 1

        def child():
            try:
                write(f"child {os.getpid()}")
            except Exception as error:
                assert "locks are not inherited" in str(error), error

        threads = [threading.Thread(target=write_on, args=(n,)) for n in range(3)]
        for each in threads:
            each.start()
        codes = [fork(child) for _ in range(10)]
        stop.set()
        for each in threads:
            each.join()
        assert codes == [0] * 10, codes
        write("end")
        engine.dispose()
        """
    )
    assert ends_well(program) == ""
    assert set(dict(rows(path, "SELECT x, count(*) FROM t GROUP BY x")).values()) == {2}
    assert_free(path)


@pytest.mark.parametrize(
    "end",
    ["pass", "sys.exit()", "engine.dispose()", "atexit.register(write, 'at exit')"],
)
def test_the_end_of_the_interpreter(begin: Start, path: str, end: str) -> None:
    """With and without dispose(), with a daemon thread in the middle of a transaction."""
    program = begin(
        f"""
        ready = threading.Event()

        def hold():
            connection = engine.connect()
            connection.execute(READ)
            ready.set()
            threading.Event().wait()

        threading.Thread(target=hold, daemon=True).start()
        ready.wait()
        write("here")
        {end}
        """
    )
    assert ends_well(program) == ""
    assert ("here",) in rows(path, "SELECT x FROM t")
    assert (("at exit",) in rows(path, "SELECT x FROM t")) == ("atexit" in end)
    assert_free(path)


def test_what_is_closed_after_the_end_of_the_threads(begin: Start, path: str) -> None:
    """By an object that the interpreter collects last; what it had not committed is not there."""
    program = begin(
        """
        class Keeper:
            def __init__(self):
                self.connection = engine.connect()
                self.connection.execute(text("INSERT INTO t VALUES ('kept')"))

            def __del__(self, print=print, is_finalizing=sys.is_finalizing):
                assert is_finalizing()
                self.connection.close()
                print("closed", flush=True)

        keeper = Keeper()
        """
    )
    assert ends_well(program) == "closed\n"
    assert rows(path, "SELECT x FROM t") == []
    assert_free(path)


def test_ctrl_c_in_a_program(begin: Start, path: str) -> None:
    """Python's own handler, while the program waits for the lock of a thread of it."""
    program = begin(
        """
        signal.signal(signal.SIGINT, signal.default_int_handler)
        held, ends = threading.Event(), threading.Event()

        def hold():
            with engine.begin() as connection:
                connection.execute(SET, {"value": 7})
                held.set()
                ends.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()

        def interrupt():
            while not engine.pool.write_queue.queue.waiting:
                ends.wait(0.001)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        try:
            write("never")
        except KeyboardInterrupt:
            print("interrupted")
        ends.set()
        thread.join()
        write("afterwards")
        engine.dispose()
        """
    )
    assert ends_well(program) == "interrupted\n"
    assert rows(path, "SELECT DISTINCT x FROM t") == [("afterwards",)]
    assert rows(path, "SELECT value FROM counter") == [(7,)]
