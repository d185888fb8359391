"""The broker for taskiq: jobs in a table, taken by real workers, looked at from outside."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jobs_app
import pytest
from cancelling import PATIENCE, assert_free, eventually, rows
from jobs_app import Base, Effect, broker, once, plain
from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncSession
from taskiq import SendTaskError

from qsession import EngineDraining, QueueTimeout
from qsession.ext.taskiq import LeaseExpired, TableBroker, job_table
from qsession.testing import When, cancel_at_every_await

JOBS = 100


@pytest.fixture
async def queue(tmp_path: Path) -> AsyncIterator[TableBroker]:
    """The broker of the application, on a new file."""
    async with on(f"sqlite+aiosqlite:///{tmp_path / 'jobs.db'}") as broker:
        yield broker


class on:
    """The broker of the application, on a new database."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def __aenter__(self) -> TableBroker:
        jobs_app.maker.configure(self.url)
        async with jobs_app.maker.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        return broker

    async def __aexit__(self, *error: object) -> None:
        await jobs_app.maker.dispose()


@contextmanager
def worker(url: str, lease: float = 60) -> Iterator[Any]:
    """A worker of taskiq in its own processes: the one that watches, and the one that works."""
    command = [sys.executable, "-m", "taskiq", "worker", "jobs_app:broker"]
    command += ["--workers", "1", "--max-async-tasks", "20", "--no-configure-logging"]
    process = subprocess.Popen(
        command,
        cwd=Path(__file__).parent,
        env={**os.environ, "JOBS_URL": url, "JOBS_LEASE": str(lease)},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(30)


def jobs(path: Path) -> int:
    """How many jobs are in the queue, taken or not."""
    return int(rows(path, "SELECT count(*) FROM taskiq_jobs")[0][0])


def effects(path: Path) -> Counter[int]:
    """How often each job has had its effect."""
    return Counter(job for (job,) in rows(path, "SELECT job FROM effects"))


async def taken(queue: TableBroker) -> Any:
    """The next message for a worker, and what acknowledges it."""
    return await anext(queue.listen())


def context_of(task_id: str) -> Any:
    """What taskiq passes to a job."""
    return SimpleNamespace(message=SimpleNamespace(task_id=task_id))


async def test_workers_do_each_job_once(queue, tmp_path):
    """Three workers on one file, jobs enqueued at once: each has its effect exactly once."""
    path = tmp_path / "jobs.db"
    with worker(f"sqlite+aiosqlite:///{path}") as one, worker(f"sqlite+aiosqlite:///{path}") as two:
        await asyncio.gather(*(once.kiq(job) for job in range(JOBS)))
        await asyncio.gather(*(plain.kiq(JOBS + job) for job in range(JOBS)))
        await eventually(lambda: not jobs(path))
    assert effects(path) == Counter(range(2 * JOBS))
    assert len(set(rows(path, "SELECT pid FROM effects"))) == 2
    assert (one.returncode, two.returncode) == (0, 0)
    assert_free(path)


async def test_a_worker_is_killed_in_the_midst_of_a_job(queue, tmp_path):
    """What it had written is undone, its job is done by another one: once."""
    path = tmp_path / "jobs.db"
    url = f"sqlite+aiosqlite:///{path}"
    await jobs_app.stuck.kiq(JOBS)
    with worker(url, lease=1):
        await eventually(lambda: effects(path)[-1] == 1)
        waiting = [asyncio.create_task(once.kiq(job)) for job in range(JOBS)]
        ((pid,),) = rows(path, "SELECT pid FROM effects WHERE job = -1")
        os.kill(pid, signal.SIGKILL)  # taskiq starts another worker
        await asyncio.gather(*waiting)
        await eventually(lambda: not jobs(path))
    assert effects(path) == Counter([-1, *range(JOBS + 1)])
    assert rows(path, f"SELECT pid FROM effects WHERE job = {JOBS}") != [(pid,)]
    assert_free(path)


async def test_at_least_once_is_not_exactly_once(queue, tmp_path):
    """A worker that is killed between the effect and the acknowledgement: the effect is twice."""
    path = tmp_path / "jobs.db"
    await jobs_app.late.kiq(7)
    with worker(f"sqlite+aiosqlite:///{path}", lease=1):
        await eventually(lambda: effects(path)[7] == 1)
        ((pid,),) = rows(path, "SELECT pid FROM effects")
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not jobs(path))
    assert effects(path) == Counter({7: 2})


async def test_takers_at_once_take_different_jobs(url):
    """On each database: as many takers as jobs, and each job is taken by one. Oldest first."""
    async with on(url) as queue:
        for job in range(20):
            await plain.kiq(job)
        messages = await asyncio.gather(*(taken(queue) for _ in range(20)))
        found = [queue.formatter.loads(each.data).args[0] for each in messages]
        assert sorted(found) == list(range(20))
        await asyncio.gather(*(each.ack() for each in messages))
        async with jobs_app.maker.reader() as session:
            assert (await session.execute(select(job_table))).all() == []


async def test_one_who_lost_the_lease_has_no_effect(url, monkeypatch):
    """Two have taken a job, as the first was late: one of them commits, in either order."""
    async with on(url) as queue:
        monkeypatch.setattr(queue, "lease", 0.0)
        for first_is_faster in (True, False):
            task = await once.kiq(1)
            one, two = await taken(queue), None
            held = queue._held[task.task_id]
            two = await taken(queue)
            assert one.data == two.data
            async with jobs_app.maker.begin() as session:
                if first_is_faster:
                    await queue.acknowledge(session, context_of(task.task_id))
            with pytest.raises(LeaseExpired):
                async with jobs_app.maker.begin() as session:
                    session.add(Effect(job=1, pid=0))
                    if not first_is_faster:
                        queue._held[task.task_id] = held
                    await queue.acknowledge(session, context_of(task.task_id))
            await one.ack()  # has no effect
            async with jobs_app.maker.reader() as session:
                left = (await session.execute(select(job_table.c.id))).all()
                assert len(left) == (0 if first_is_faster else 1)
                assert (await session.execute(select(Effect))).all() == []
            await two.ack()


async def test_jobs_of_a_transaction(queue, tmp_path):
    """They are there when it commits, and never if it does not; with any session."""
    path = tmp_path / "jobs.db"
    async with AsyncSession(jobs_app.maker.engine) as session, jobs_app.maker.engine.begin() as c:
        session.add(Effect(job=1, pid=1))
        with queue.within(session):
            await plain.kiq(1)
        assert jobs(path) == 0
        await session.commit()
        assert jobs(path) == 1
        with queue.within(c):
            await plain.kiq(2)
    assert jobs(path) == 2
    with pytest.raises(LookupError):
        async with jobs_app.maker.begin() as session:
            with queue.within(session):
                await plain.kiq(3)
            raise LookupError
    assert jobs(path) == 2
    assert sum(effects(path).values()) == 1


async def test_a_task_that_goes_on_after_the_block(queue, tmp_path):
    """Its job is a transaction of its own: the session of the block may be of no use any more."""
    over = asyncio.Event()

    async def later() -> None:
        await over.wait()
        await plain.kiq(1)

    async with jobs_app.maker.begin() as session:
        with queue.within(session):
            task = asyncio.create_task(later())
    over.set()
    await task
    assert jobs(tmp_path / "jobs.db") == 1


async def test_a_second_transaction_beside_the_own_one_is_told(queue):
    """A transaction that has written, and a job that does not belong to it."""
    async with jobs_app.maker.begin() as session:
        session.add(Effect(job=1, pid=1))
        await session.flush()
        with pytest.raises(SendTaskError) as told:
            await plain.kiq(1)
        assert "use one session for both" in str(told.value.__cause__)


async def test_a_delayed_job_waits(queue, tmp_path):
    """The label says for how long; jobs that are due pass it."""
    await plain.kicker().with_labels(delay=100).kiq(1)
    await plain.kiq(2)
    now = await taken(queue)
    assert queue.formatter.loads(now.data).args == [2]
    await now.ack()
    assert await queue._take() is None
    async with jobs_app.maker.begin() as session:
        assert await session.scalar(select(job_table.c.due)) > time.time() + 50
        await session.execute(update(job_table).values(due=job_table.c.due - 100))
    assert queue.formatter.loads((await taken(queue)).data).args == [1]


async def test_queues_are_apart(queue):
    """A worker takes the jobs of its own queue."""
    await plain.kiq(1)
    assert await TableBroker(jobs_app.maker, queue="other")._take() is None
    assert await queue._take() is not None


@pytest.mark.parametrize("when", list(When))
async def test_cancelled_anywhere(queue, tmp_path, when):
    """A worker that is stopped while it takes a job leaves it to the others, at once."""
    path = tmp_path / "jobs.db"
    await plain.kiq(1)
    got = []

    async def take() -> None:
        got.append(await taken(queue))

    async def check() -> None:
        assert_free(path)
        assert jobs(path) == 1
        if got:
            return
        ((due,),) = rows(path, "SELECT due FROM taskiq_jobs")
        assert due < time.time()

    assert await cancel_at_every_await(take, check, when=when) > 2


async def test_a_busy_file_does_not_end_a_worker(queue, tmp_path):
    """Its turn does not come in time: it looks again, and takes the job later."""
    await plain.kiq(1)
    path = tmp_path / "jobs.db"
    jobs_app.maker.configure(f"sqlite+aiosqlite:///{path}", queue_timeout=0.05)
    holder = jobs_app.maker()
    await holder.execute(text("DELETE FROM effects"))
    take = asyncio.create_task(taken(queue))
    with pytest.raises(QueueTimeout):
        await asyncio.create_task(queue._take())
    await holder.rollback()
    await holder.close()
    await (await take).ack()
    assert jobs(path) == 0


async def test_a_busy_file_is_looked_at_in_intervals(queue, tmp_path, monkeypatch):
    """A worker that does not wait in the queue looks every `poll` seconds, not all the time."""
    await plain.kiq(1)
    jobs_app.maker.configure(f"sqlite+aiosqlite:///{tmp_path / 'jobs.db'}", queue_timeout=0)
    monkeypatch.setattr(queue, "poll", 0.05)
    looks: list[float] = []
    really_take = queue._take

    async def take() -> Any:
        looks.append(time.monotonic())
        return await really_take()

    monkeypatch.setattr(queue, "_take", take)
    async with jobs_app.maker() as holder:
        await holder.execute(text("DELETE FROM effects"))
        worker = asyncio.create_task(taken(queue))
        await eventually(lambda: len(looks) >= 5)
        await holder.rollback()
    await (await worker).ack()
    assert looks[4] - looks[0] > 4 * 0.045


async def test_a_worker_goes_on_after_an_error_of_the_database(
    queue: TableBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """The table is not there for a while, as before a migration; then jobs are taken again."""
    async with jobs_app.maker.engine.begin() as connection:
        await connection.run_sync(job_table.drop)
    worker = asyncio.create_task(taken(queue))
    await eventually(lambda: "No job could be taken" in caplog.text)
    async with jobs_app.maker.engine.begin() as connection:
        await connection.run_sync(job_table.create)
    await plain.kiq(7)
    message = await asyncio.wait_for(worker, PATIENCE)
    await message.ack()


async def test_a_worker_ends_when_its_engine_drains(queue: TableBroker) -> None:
    """It would look for ever else."""
    await jobs_app.maker.engine.drain()
    with pytest.raises(EngineDraining):
        await taken(queue)
