"""Memory databases: one database for all sessions of an engine, each with its own transaction."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from folders import ROOT
from sqlalchemy import func, insert, make_url, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.ext.asyncio import create_async_engine as stock_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import NullPool, StaticPool

from qsession import QueuedAsyncEngine, create_async_engine
from qsession.sqlite.files import memory
from qsession.sqlite.files.memory import memory_database
from qsession.sqlite.processes import locking


class Base(DeclarativeBase):
    """The tables of these tests."""


class Item(Base):
    """Something with a value."""

    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int] = mapped_column(default=0)


URLS = ["sqlite+aiosqlite://", "sqlite+aiosqlite:///:memory:", "sqlite://"]
SHARED = "sqlite+aiosqlite:///file:{}?mode=memory&cache=shared&uri=true"


async def create(engine: Any) -> None:
    """The tables, and one item of value 0."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(insert(Item), {"id": 1, "value": 0})


async def items(engine: Any) -> int:
    """How many items a new reader sees."""
    async with engine.connect() as connection:
        await connection.execution_options(qsession_access="read")
        return int((await connection.execute(select(func.count()).select_from(Item))).scalar_one())


def folder(engine: Any) -> Path:
    """Where the files of a memory database lie."""
    return Path(engine.dialect._memory._path).parent


@pytest.mark.parametrize("url", URLS)
async def test_sessions_of_one_engine_see_one_database(url: str) -> None:
    """What one session commits the next one reads, however the URL says "memory"."""
    engine = create_async_engine(url)
    await create(engine)
    async with AsyncSession(engine) as session:
        session.add(Item(value=5))
        await session.commit()
    assert await items(engine) == 2
    await engine.dispose()


async def test_a_rollback_leaves_the_work_of_others_alone() -> None:
    """Two sessions at once: the rollback of one discards nothing of the other."""
    engine = create_async_engine("sqlite+aiosqlite://")
    await create(engine)
    async with AsyncSession(engine) as one, AsyncSession(engine) as other:
        assert await one.scalar(select(func.count()).select_from(Item)) == 1
        other.add(Item(id=2))
        await other.commit()
        await one.rollback()
        one.add(Item(id=3))
        await one.flush()
        await one.rollback()
    assert await items(engine) == 2
    await engine.dispose()


async def test_uncommitted_rows_are_invisible_to_others() -> None:
    """A reader beside an open write transaction sees what was committed before."""
    engine = create_async_engine("sqlite+aiosqlite://")
    await create(engine)
    async with AsyncSession(engine) as session:
        session.add(Item())
        await session.flush()
        assert await items(engine) == 1
        await session.commit()
    assert await items(engine) == 2
    await engine.dispose()


async def test_a_failed_session_leaves_the_work_of_others_alone() -> None:
    """An error and its rollback in one session do not touch what another is reading."""
    engine = create_async_engine("sqlite+aiosqlite://")
    await create(engine)
    async with AsyncSession(engine) as reader:
        await reader.connection(execution_options={"qsession_access": "read"})
        assert (await reader.get_one(Item, 1)).value == 0
        with pytest.raises(IntegrityError):
            async with engine.begin() as connection:
                await connection.execute(update(Item).values(value=9))
                await connection.execute(insert(Item), {"id": 1})
        assert await reader.scalar(select(Item.value)) == 0
    await engine.dispose()


async def test_read_modify_write_storm_is_exact() -> None:
    """Thirty-two tasks add one to a row five times each, through plain sessions.

    However slow the machine is, nobody is taken for idle.
    """
    engine = create_async_engine("sqlite+aiosqlite://", stall_after=60)
    await create(engine)

    async def add_one() -> None:
        async with AsyncSession(engine) as session:
            item = await session.get_one(Item, 1)
            await asyncio.sleep(0)
            item.value += 1
            await session.commit()

    async def work() -> None:
        for _ in range(5):
            await add_one()

    await asyncio.gather(*(work() for _ in range(32)))
    async with AsyncSession(engine) as session:
        assert (await session.get_one(Item, 1)).value == 160
    assert engine.stats().conflicts == 0
    await engine.dispose()


async def test_engines_are_separate() -> None:
    """Two engines with the same memory URL have nothing in common."""
    one, other = (create_async_engine("sqlite+aiosqlite:///:memory:") for _ in range(2))
    await create(one)
    async with other.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM sqlite_master"))).scalar() == 0
    await one.dispose()
    await other.dispose()


@pytest.mark.parametrize(
    "name",
    [
        "file:shared?mode=memory&cache=shared&uri=true",
        "file::memory:?cache=shared&uri=true",
        "file:/shared?vfs=memdb&uri=true",
    ],
)
async def test_a_shared_name_is_one_database(name: str) -> None:
    """Engines that name the same shared memory see one database, until the last is disposed of."""
    one, other = (create_async_engine(f"sqlite+aiosqlite:///{name}") for _ in range(2))
    await create(one)
    assert await items(other) == 1
    await one.dispose()
    assert await items(other) == 1
    assert await items(one) == 1
    await other.dispose()
    await one.dispose()
    async with one.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM sqlite_master"))).scalar() == 0
    await one.dispose()


async def test_shared_names_and_private_ones_differ() -> None:
    """Another name is another database, and so is a name that does not ask for sharing."""
    urls = [
        SHARED.format("a"),
        SHARED.format("b"),
        "sqlite+aiosqlite:///file:a?mode=memory&uri=true",
        "sqlite+aiosqlite:///file:a?mode=memory&uri=true",
    ]
    databases = [memory_database(make_url(url)) for url in urls]
    assert len({id(database) for database in databases}) == 4
    assert memory_database(make_url(urls[0])) is databases[0]
    assert memory_database(make_url("sqlite+aiosqlite:////tmp/a.db")) is None


@pytest.mark.parametrize("poolclass", [StaticPool, NullPool])
async def test_pool_classes_of_test_suites(poolclass: type[Any]) -> None:
    """The usual recipe of test suites works, and each session keeps its own transaction."""
    engine = create_async_engine(
        "sqlite+aiosqlite://", poolclass=poolclass, connect_args={"check_same_thread": False}
    )
    await create(engine)
    async with AsyncSession(engine) as session:
        session.add(Item())
        await session.flush()
        assert await items(engine) == 1
    assert await items(engine) == 1
    await engine.dispose()


async def test_url_of_the_dialect_alone() -> None:
    """SQLAlchemy's own create_async_engine gives the same with the URL alone."""
    engine = stock_engine("sqlite+qsession://", poolclass=StaticPool)
    await create(engine)
    assert await items(engine) == 1
    await engine.dispose()


async def test_dispose_forgets_the_data() -> None:
    """After dispose() the engine begins with an empty database, as a memory database does."""
    engine = create_async_engine("sqlite+aiosqlite://")
    await create(engine)
    place = folder(engine)
    await engine.dispose()
    assert not place.exists()
    await create(engine)
    assert await items(engine) == 1
    await engine.dispose()


async def test_files_go_with_the_engine() -> None:
    """The folder is private to this user, and is gone when nobody refers to the engine."""
    engine: QueuedAsyncEngine | None = create_async_engine("sqlite+aiosqlite://")
    await create(engine)
    place = folder(engine)
    assert place.stat().st_mode & 0o777 == 0o700
    assert engine is not None
    await engine.dispose()
    engine = None
    gc.collect()
    assert not place.exists()


CHILD = """
import asyncio, os, sys
from sqlalchemy import text
from qsession import create_async_engine
engine = create_async_engine("sqlite+aiosqlite://")
async def create():
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE t (a)"))
async def count():
    async with engine.connect() as connection:
        print((await connection.execute(text("SELECT count(*) FROM t"))).scalar())
asyncio.run(create())
print(engine.dialect._memory._path, flush=True)
"""

FORK = """
child = os.fork()
if child == 0:
    asyncio.run(engine.dispose(close=False))
    {exit}
assert os.waitpid(child, 0)[1] == 0
asyncio.run(count())
"""


async def run(code: str) -> list[str]:
    """The lines that a process prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    return out.decode().split()


async def test_files_go_with_the_process() -> None:
    """A process that ends without dispose() leaves no files behind."""
    (path,) = await run(CHILD)
    assert not await asyncio.to_thread(os.path.exists, os.path.dirname(path))


@pytest.mark.parametrize("end", ["sys.exit(0)", "os._exit(0)"])
async def test_a_forked_child_does_not_delete_its_parents_database(end: str) -> None:
    """The child disposes of the engine and exits; the parent's data is still there."""
    path, count = await run(CHILD + FORK.format(exit=end))
    assert count == "0"
    assert not await asyncio.to_thread(os.path.exists, os.path.dirname(path))


KILLED = """
import asyncio, sys
from sqlalchemy import text
from qsession import create_async_engine

async def main():
    engine = create_async_engine("sqlite+aiosqlite://")
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE t (x)"))
    print(engine.dialect._memory._path, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    async with engine.connect() as connection:
        print((await connection.execute(text("SELECT count(*) FROM t"))).scalar(), flush=True)
    await engine.dispose()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there a folder cannot be locked")
def test_what_a_killed_process_leaves_is_deleted_by_the_next_one() -> None:
    """And nothing else is: neither the database of a process that lives, nor another's folder."""

    def start() -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", KILLED],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    victim, left = start()
    living, kept = start()
    parent = left.parent.parent
    other = Path(tempfile.mkdtemp(prefix="qsession-", dir=parent))
    empty = Path(tempfile.mkdtemp(prefix=memory._PREFIX, dir=parent))  # as after dispose()
    victim.kill()
    victim.communicate()
    assert left.exists()
    following, path = start()
    try:
        assert not left.parent.exists()
        assert kept.exists()
        assert other.exists()
        assert not empty.exists()
        for each in (living, following):
            assert each.communicate("\n", timeout=60)[0] == "0\n"
        assert not kept.parent.exists()
        assert not path.parent.exists()
    finally:
        other.rmdir()


@pytest.mark.skipif(sys.platform == "win32", reason="there a folder cannot be locked")
@pytest.mark.parametrize("place", [(tempfile, "mkdtemp"), (os, "open"), (locking.Flock, "lock")])
def test_swept_before_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: tuple[Any, str]
) -> None:
    """Another process takes a folder that is only being made for one left behind: one more."""
    monkeypatch.setattr(memory, "_IN_MEMORY", str(tmp_path))
    original = getattr(*place)
    swept: list[Path] = []

    def sweep(*args: Any, **kw: Any) -> Any:
        made = original(*args, **kw) if place[1] == "mkdtemp" else None
        if not swept:
            swept.extend(tmp_path.iterdir())
            memory.sweep.__wrapped__(str(tmp_path))
            assert list(tmp_path.iterdir()) == []
        return made or original(*args, **kw)

    memory.sweep(str(tmp_path))
    monkeypatch.setattr(*place, sweep)
    database = memory.MemoryDatabase()
    path = database.enter(database)
    assert len(swept) == 1
    assert [Path(path).parent] == list(tmp_path.iterdir())
