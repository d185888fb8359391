"""What is true of a database afterwards: its engine is at rest, and others can write."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from qsession.engine import stats


async def settled(engine: AsyncEngine | Engine, timeout: float = 20.0) -> None:
    """Wait until nobody uses a connection of the engine, and nobody holds or awaits the ticket.

    What a cancelled task has begun, such as a rollback, may end a little later than the task.
    Raises `AssertionError`, which says what is still in use, after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        seen = stats(engine)
        if seen.holder is None and not seen.waiting and not seen.in_use:
            return
        assert time.monotonic() < deadline, (
            f"after {timeout:g} s {seen.in_use} connections are in use and {seen.waiting} "
            f"transactions wait; the holder of the ticket: {seen.holder}"
        )
        await asyncio.to_thread(time.sleep, 0)


def assert_free(path: str | os.PathLike[str]) -> None:
    """Assert that a connection from outside can write to a file, and that the file is sound.

    In a task, `await settled(engine)` before: this call stops the loop for up to 0.2 seconds.
    """
    uri = f"{Path(path).absolute().as_uri()}?mode=rw"  # a missing file is not made
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=0.2, isolation_level=None)) as outside:
            outside.execute("BEGIN IMMEDIATE")
            outside.execute("ROLLBACK")
            found = outside.execute("PRAGMA quick_check").fetchall()
    except sqlite3.Error as error:
        raise AssertionError(f"{os.fspath(path)!r} cannot be written to: {error}") from error
    assert found == [("ok",)], found
