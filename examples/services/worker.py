"""A service that takes jobs until told to end: python -m examples.services.worker URL NAME."""

from __future__ import annotations

import asyncio
import sys

from sqlalchemy import select

from qsession import Base, EngineDraining, create_async_engine, qsession

from .models import Job, on_sigterm


async def take_jobs(name: str) -> int:
    """How many were done before the engine was drained. No job is taken twice."""
    done = 0
    while True:
        try:
            async with qsession.begin() as session:
                job = await session.scalar(select(Job).where(Job.done_by.is_(None)).limit(1))
                if job is not None:
                    job.done_by = name
        except EngineDraining:
            return done
        if job is not None:
            done += 1
        else:
            await asyncio.sleep(0.05)


async def main(url: str, name: str) -> None:
    engine = create_async_engine(url)
    qsession.configure(bind=engine)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    told = on_sigterm()
    work = [asyncio.create_task(take_jobs(name)) for _ in range(10)]
    print("working", flush=True)
    await told.wait()
    await engine.drain(timeout=10)
    print(f"{sum(await asyncio.gather(*work))} jobs done", flush=True)
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
