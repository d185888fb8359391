"""A service that files jobs until it is told to end: python -m examples.services.producer URL."""

from __future__ import annotations

import asyncio
import sys

from qsession import Base, EngineDraining, create_async_engine, qsession

from .models import Job, on_sigterm


async def file_jobs() -> int:
    """How many were committed before the engine was drained."""
    filed = 0
    while True:
        try:
            async with qsession.begin() as session:
                session.add(Job())
        except EngineDraining:
            return filed
        filed += 1


async def main(url: str) -> None:
    engine = create_async_engine(url)
    qsession.configure(bind=engine)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    told = on_sigterm()
    work = [asyncio.create_task(file_jobs()) for _ in range(10)]
    print("filing", flush=True)
    await told.wait()
    await engine.drain(timeout=10)
    print(f"{sum(await asyncio.gather(*work))} jobs filed", flush=True)
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
