"""Real programs on the engine: a small load, and what was acknowledged against the file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
PATIENCE = 180.0
"""Seconds in which a program has to start: some of them migrate a hundred times first."""


class File:
    """The database of a program."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def url(self) -> str:
        """The URL by which a program comes to the write queue without a change of its code."""
        return f"sqlite+qsession:///{self.path}"

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """What a plain connection from outside reads. It must not wait for a lock."""
        with contextlib.closing(sqlite3.connect(self.path, timeout=0)) as outside:
            return outside.execute(sql, values).fetchall()

    def is_whole_and_free(self) -> None:
        """SQLite finds no fault in the file, and anybody may write to it at once."""
        assert self.rows("PRAGMA integrity_check") == [("ok",)]
        with contextlib.closing(sqlite3.connect(self.path, timeout=0)) as outside:
            outside.execute("BEGIN IMMEDIATE")
            outside.rollback()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    """The file of a test; whole, and not locked at the end."""
    file = File(tmp_path / "app.db")
    yield file
    file.is_whole_and_free()


async def together(work: Callable[[int], Awaitable[T]], times: int, tasks: int = 25) -> list[T]:
    """Do ``work(0)``, ``work(1)`` and so on, so many at once; their results in this order."""
    limit = asyncio.Semaphore(tasks)

    async def one(number: int) -> T:
        async with limit:
            return await work(number)

    return await asyncio.gather(*(one(number) for number in range(times)))


def free_port() -> int:
    """A port of the loopback that is free now."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@contextlib.contextmanager
def served(
    command: list[str], ready: Callable[[], bool], log: Path, **environment: str
) -> Iterator[None]:
    """Run a server until the block ends. Its output is shown if it does not start."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **environment},
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
        )
    try:
        until = time.monotonic() + PATIENCE
        while not ready():
            if process.poll() is not None or time.monotonic() > until:
                pytest.fail(f"It did not start:\n{log.read_text(errors='replace')[-5000:]}")
            time.sleep(0.2)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        finally:
            process.kill()
