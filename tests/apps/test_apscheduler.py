"""APScheduler 4 keeps schedules and jobs in SQLAlchemy, and takes jobs with SKIP LOCKED."""

from __future__ import annotations

import asyncio
from collections import Counter

from apscheduler import AsyncScheduler, JobOutcome, JobReleased
from apscheduler.datastores.sqlalchemy import SQLAlchemyDataStore
from apscheduler.eventbrokers.local import LocalEventBroker
from conftest import PATIENCE, File

JOBS = 100
ran: Counter[int] = Counter()


async def job(number: int) -> None:
    """Count how often it ran."""
    ran[number] += 1


async def test_each_job_runs_once_on_two_schedulers(file: File) -> None:
    """Both take jobs from one file; the results of all are acknowledged."""
    ran.clear()
    released: asyncio.Queue[JobReleased] = asyncio.Queue()
    broker = LocalEventBroker()
    async with (
        AsyncScheduler(SQLAlchemyDataStore(file.url), broker) as one,
        AsyncScheduler(SQLAlchemyDataStore(file.url), broker) as other,
    ):
        one.subscribe(released.put_nowait, {JobReleased})
        await one.configure_task("job", func=job)
        await other.configure_task("job", func=job)
        await asyncio.gather(
            *((one, other)[number % 2].add_job("job", args=[number]) for number in range(JOBS))
        )
        await one.start_in_background()
        await other.start_in_background()
        outcomes = [(await asyncio.wait_for(released.get(), PATIENCE)).outcome for _ in range(JOBS)]
        assert set(outcomes) == {JobOutcome.success}
    assert ran == dict.fromkeys(range(JOBS), 1)
    assert file.rows("SELECT count(*) FROM jobs") == [(0,)]
