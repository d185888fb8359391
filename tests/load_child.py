"""A process under load, to be watched or killed from outside.

Run as ``python load_child.py DATABASE LOG DURABILITY TIMES [LIMIT]``: 50 tasks commit ``TIMES``
transactions each, of three marks with one number; each line of the log is written at once. With a
limit, no file may grow past so many bytes until all tasks have ended; then each commits once more.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import threading

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from qsession import create_async_engine

TASKS = 50
ADD = text("INSERT INTO marks (run) VALUES (:run)")


async def main(path: str, log: int, durability: str, times: int, limit: int = 0) -> None:
    """Load, told of in the log: "loop THREAD", "executed", "acknowledged" or "failed" RUN."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", durability=durability)

    def say(*words: object) -> None:
        os.write(log, f"{' '.join(map(str, words))}\n".encode())

    async def write(task: int, numbers: range) -> None:
        for number in numbers:
            run = task + TASKS * number + os.getpid() * 10_000_000
            try:
                async with engine.begin() as connection:
                    for _ in range(3):
                        await connection.execute(ADD, {"run": run})
                    say("executed", run)
            except SQLAlchemyError:
                assert limit
                say("failed", run)
            else:
                say("acknowledged", run)

    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE IF NOT EXISTS marks (run INTEGER)"))
    say("loop", threading.get_native_id())
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    await asyncio.gather(*(write(task, range(times)) for task in range(TASKS)))
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        say("room", limit)
        await asyncio.gather(*(write(task, range(times, times + 1)) for task in range(TASKS)))
    say("syncs", engine.stats().syncs)
    await engine.dispose()


if __name__ == "__main__":
    opened = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    asyncio.run(main(sys.argv[1], opened, sys.argv[3], *map(int, sys.argv[4:])))
