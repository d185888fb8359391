"""A scheduler of APScheduler in a process of its own: adds jobs, or runs them until it is told."""

from __future__ import annotations

import asyncio
import os
import sys

from apscheduler import AsyncScheduler
from apscheduler.datastores.sqlalchemy import SQLAlchemyDataStore
from sqlalchemy import text

from qsession import create_async_engine

engine = create_async_engine(sys.argv[1])


async def work(job: int) -> None:
    async with engine.begin() as connection:
        effect = text("INSERT INTO effects (job, pid) VALUES (:job, :pid)")
        await connection.execute(effect, {"job": job, "pid": os.getpid()})


async def main() -> None:
    async with AsyncScheduler(SQLAlchemyDataStore(engine)) as scheduler:
        await scheduler.configure_task("work", func=work)
        for job in map(int, sys.argv[2:]):
            await scheduler.add_job("work", args=(job,))
        if not sys.argv[2:]:
            await scheduler.run_until_stopped()
    await engine.dispose()


asyncio.run(main())
