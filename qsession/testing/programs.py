"""Other programs: real processes, which hold SQLite's write lock, are stopped, or crash."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import final

PRELUDE = """
import sys

def held():
    "Say so, and wait until let_go() is called."
    print("held", flush=True)
    sys.stdin.readline()
"""

WRITER = """
import sqlite3
raw = sqlite3.connect(sys.argv[1], timeout=5, isolation_level=None)
raw.execute("BEGIN IMMEDIATE")
for statement in sys.argv[2:]:
    raw.execute(statement)
held()
raw.execute("COMMIT")
raw.close()
"""


@final
class Program:
    """A process that runs ``code`` in this Python, for a ``with`` or ``async with`` block.

    The block begins when the program calls ``held()``, which is defined there and returns when
    `let_go` is called. ``sys.argv[1:]`` are ``arguments``, and modules are found as here. At the
    end of the block a program that still runs is killed, as by a crash.

    Raises `RuntimeError` if the program ends before it calls ``held()``; what it says of itself is
    on the standard error. A cancellation kills it.
    """

    def __init__(self, code: str, *arguments: object) -> None:
        self._command = [sys.executable, "-c", PRELUDE + code, *map(str, arguments)]
        self._process: subprocess.Popen[str]

    def __enter__(self) -> Program:
        self._start()
        try:
            self._until_held()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    async def __aenter__(self) -> Program:
        self._start()
        try:
            await asyncio.to_thread(self._until_held)
        except BaseException:
            self.kill()  # this ends the thread, too
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        self.kill()

    def _start(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603  # it is the caller's own code
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def _until_held(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line == "held\n":
                return
        raise RuntimeError("the program ended before it called held()")

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self._process.pid

    def let_go(self) -> None:
        """Let ``held()`` return in the program, and do not wait for what it does then."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def wait(self, timeout: float = 60.0) -> int:
        """Stop this thread until the program has ended. Returns its exit code.

        Raises `subprocess.TimeoutExpired` after ``timeout`` seconds.
        """
        return self._process.wait(timeout)

    def finish(self) -> None:
        """`let_go`, and stop this thread until the program has ended.

        Raises `RuntimeError` if it has failed.
        """
        self.let_go()
        if (code := self.wait()) != 0:
            raise RuntimeError(f"the program has failed with exit code {code}")

    def stop(self) -> None:
        """Let it stand still, as Ctrl-Z does, with all that it holds. Not on Windows."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """The end of `stop`."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once, as a crash would, and wait for that."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def foreign_writer(path: str | os.PathLike[str], *statements: str) -> Program:
    """A program without qsession that holds SQLite's write lock of a file.

    It has sent ``statements`` when the block begins. `finish` and `let_go` commit them. If neither
    was called by the end of the block, the program is killed, and SQLite rolls back. It waits 5
    seconds for the lock if another program has it.
    """
    return Program(WRITER, os.fspath(path), *statements)
