"""What a process does on odd ground that would be harmful to do in the one that tests.

Run as ``python odd_child.py NAME PATH``: it prints what it saw as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from qsession import QueuedAsyncEngine, create_async_engine

import_module("qsession.sqlite.dialect")  # with the first engine it would be too late
NOBODY = 65534
Seen = dict[str, Any]


async def become_nobody() -> None:
    """Give up root's right to write everywhere, when everything needed is imported."""
    engine = create_async_engine("sqlite://")
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
    await engine.dispose()
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


async def said(awaitable: Awaitable[Any]) -> Any:
    """What came back, or the error as text."""
    try:
        return await awaitable
    except SQLAlchemyError as error:
        return f"{type(error).__name__}: {error}"


async def count(engine: QueuedAsyncEngine) -> int:
    """The rows of ``t``."""
    async with engine.connect() as connection:
        return int((await connection.execute(text("SELECT count(*) FROM t"))).scalar_one())


async def add(engine: QueuedAsyncEngine, size: int = 1) -> str:
    """One more row of ``size`` bytes, committed."""
    async with engine.begin() as connection:
        await connection.execute(text("INSERT INTO t (b) VALUES (:b)"), {"b": "x" * size})
    return "written"


async def read_only(path: str) -> Seen:
    """Read, write and read again as a user who may not write."""
    await become_nobody()
    seen: Seen = {}
    for form in ("", "mode=ro", "immutable=1"):
        url = f"sqlite+aiosqlite:///file:{path}?{form}&uri=true" if form else f"sqlite:///{path}"
        engine = create_async_engine(url)
        seen[form] = [await said(count(engine)), await said(add(engine)), await said(count(engine))]
        await engine.dispose()
    return seen


def writer_beside(path: str) -> Callable[[], str]:
    """A process that stays root, writes when it is told, and says what came of it."""
    ask, go = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.close(go[1])
        if not os.read(go[0], 1):
            os._exit(1)
        import sqlite3

        connection = sqlite3.connect(path, timeout=0)
        try:
            connection.execute("INSERT INTO t (b) VALUES ('y')")
            connection.commit()
            outcome = "written"
        except sqlite3.OperationalError as error:
            outcome = str(error)
        connection.close()
        os.write(ask[1], outcome.encode())
        os._exit(0)
    os.close(ask[1])

    def write() -> str:
        os.write(go[1], b"x")
        with open(ask[0], encoding="utf-8") as answer:
            return answer.read()

    return write


async def locked_beside(path: str) -> Seen:
    """Another connection is opened while a transaction reads, and then somebody writes."""
    engine = create_async_engine(f"sqlite:///{path}")
    write = writer_beside(path)
    await become_nobody()
    reading = {"qsession_access": "read"}
    async with engine.connect() as one, engine.connect() as other:
        for each in (one, other):
            await each.execute(text("SELECT count(*) FROM t"), execution_options=reading)
        seen: Seen = {"write": write()}
    await engine.dispose()
    return seen


async def changed_beside(path: str) -> Seen:
    """A database that is read where nothing can be written is changed by somebody who may."""
    engine = create_async_engine(f"sqlite:///{path}")
    write = writer_beside(path)
    await become_nobody()
    seen: Seen = {"before": await count(engine)}
    async with engine.connect() as connection:
        await connection.execute(text("SELECT count(*) FROM t"))
        assert write() == "written"
        seen["during"] = await said(connection.execute(text("SELECT count(*) FROM t")))
    seen["after"] = await said(count(engine))
    await engine.dispose()
    return seen


async def limited(path: str) -> Seen:
    """Files may not grow past a limit, as on a full disk; then they may."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    engine = create_async_engine(f"sqlite:///{path}")
    written = 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    errors: set[str] = set()
    async with AsyncSession(engine) as session:
        for _ in range(20):
            try:
                await session.execute(text("INSERT INTO t (b) VALUES (:b)"), {"b": "x" * 30_000})
                await session.commit()
                written += 1
            except SQLAlchemyError as error:
                errors.add(str(error))
                await session.rollback()
    full = await said(count(engine))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    later = await said(add(engine, 300_000))
    seen = {"written": written, "full": full, "later": later, "errors": sorted(errors)}
    seen["rows"] = await count(engine)
    holder = engine.stats().holder
    seen["holder"] = None if holder is None else str(holder)
    await engine.dispose()
    return seen


async def small_disk(path: str) -> Seen:
    """The disk is full until another file is deleted."""
    engine = create_async_engine(f"sqlite:///{path}")
    ballast = Path(path).with_name("ballast")
    ballast.write_bytes(b"x" * 1_000_000)
    written, error = 0, ""
    while not error and written < 100:
        outcome = await said(add(engine, 50_000))
        written += outcome == "written"
        error = "" if outcome == "written" else outcome
    full = await said(count(engine))
    ballast.unlink()
    later = await said(add(engine, 50_000))
    seen = {"written": written, "error": error, "full": full, "later": later}
    seen["rows"] = await count(engine)
    await engine.dispose()
    return seen


CASES: dict[str, Callable[[str], Awaitable[Seen]]] = {
    case.__name__: case for case in (read_only, locked_beside, changed_beside, limited, small_disk)
}

if __name__ == "__main__":
    print(json.dumps(asyncio.run(CASES[sys.argv[1]](sys.argv[2]))))  # type: ignore[arg-type]
