"""Migrations: one transaction, under the ticket, whoever asks for them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from folders import ROOT
from project import FAMILY, REBUILD_PARENT, Project
from server_databases import database_on
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError

from qsession import QueueTimeout, create_async_engine
from qsession.migrate.migration import upgrade
from qsession.migrate.servers import one_at_a_time


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.delenv("QSESSION_URL", raising=False)
    monkeypatch.setattr(sys, "path", sys.path[:])
    return Project(tmp_path)


async def test_a_failed_migration_leaves_schema_and_rows_as_they_were(project: Project) -> None:
    """The second of two steps fails in a rebuilt table: nothing of either step remains."""
    project.add(FAMILY)
    await upgrade(config=project.config)
    before = project.dump()
    project.add(REBUILD_PARENT)
    project.add("op.execute('INSERT INTO nowhere VALUES (1)')")
    with pytest.raises(DBAPIError, match="nowhere"):
        await upgrade(config=project.config)
    assert project.dump() == before


async def test_a_cancelled_migration_leaves_schema_and_rows_as_they_were(project: Project) -> None:
    """Cancelled between two statements of a step, the run is rolled back."""
    project.add(FAMILY)
    await upgrade(config=project.config)
    before = project.dump()
    project.add(REBUILD_PARENT + "    await_only(op.get_context().config.attributes['pause']())")
    inside = asyncio.Event()

    async def pause() -> None:
        inside.set()
        await asyncio.Event().wait()

    project.config.attributes["pause"] = pause
    task = asyncio.create_task(upgrade(config=project.config))
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert project.dump() == before
    project.execute("BEGIN IMMEDIATE", "ROLLBACK")


async def test_a_migration_waits_in_the_queue_of_the_application(project: Project) -> None:
    """It stands in line behind a transaction that is writing through the same engine."""
    project.add(FAMILY)
    engine = create_async_engine(project.url)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE before (id INTEGER)"))
        task = asyncio.create_task(upgrade(engine=engine, config=project.config))
        while not engine.stats().waiting:
            await asyncio.sleep(0)
        assert not task.done()
    await task
    await engine.dispose()
    assert project.execute("SELECT * FROM before, parent") == []


async def test_the_application_keeps_its_connections(project: Project) -> None:
    """Those that were open stay open, and what comes after a migration opens no others."""
    project.add(FAMILY)
    engine = create_async_engine(project.url)
    opened: list[object] = []
    closed: list[object] = []
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE before (id INTEGER)"))
    event.listen(engine.sync_engine, "connect", lambda each, _: opened.append(each))
    event.listen(engine.sync_engine, "close", lambda each, _: closed.append(each))
    await upgrade(engine=engine, config=project.config)
    assert {*map(id, closed)} == {*map(id, opened)}  # those of the migration, which is over
    del opened[:], closed[:]
    for _ in range(3):
        async with engine.begin() as connection:
            await connection.execute(text("INSERT INTO before VALUES (1)"))
    assert (opened, closed) == ([], [])
    await engine.dispose()


async def test_many_tasks_upgrade_at_once(project: Project) -> None:
    """Whoever comes first migrates; the others find it done."""
    project.add(FAMILY)
    await asyncio.gather(
        *(upgrade(config=Config(project.folder / "alembic.ini")) for _ in range(6))
    )
    assert project.execute("SELECT count(*) FROM parent") == [(1,)]


def test_many_processes_upgrade_a_new_file_at_once(project: Project) -> None:
    """Four workers start on a file that does not exist; all succeed, one migrates."""
    project.add(FAMILY)
    code = "import asyncio, qsession.migrate as m; asyncio.run(m.upgrade())"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=project.folder, stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=60)
        assert worker.returncode == 0, errors
    assert project.execute("SELECT count(*) FROM parent") == [(1,)]


@pytest.mark.servers
@pytest.mark.parametrize("driver", ["postgresql+asyncpg", "postgresql+psycopg", "mysql+asyncmy"])
def test_many_processes_upgrade_a_server_at_once(project: Project, driver: str) -> None:
    """The same on a new database of a server, and then with a migration that changes rows only."""
    code = "import asyncio, qsession.migrate as m; asyncio.run(m.upgrade())"
    with database_on(driver.partition("+")[0]) as server:
        url = server.set(drivername=driver).render_as_string(hide_password=False)
        for up in (
            "op.execute('CREATE TABLE counts AS SELECT 0 AS n')",
            "op.execute('UPDATE counts SET n = n + 1')",
        ):
            project.add(up)
            workers = [
                subprocess.Popen(
                    [sys.executable, "-c", code],
                    cwd=project.folder,
                    env={**os.environ, "QSESSION_URL": url},
                    stderr=subprocess.PIPE,
                    text=True,
                )
                for _ in range(4)
            ]
            for worker in workers:
                _, errors = worker.communicate(timeout=60)
                assert worker.returncode == 0, errors

        async def count() -> Any:
            engine = create_async_engine(url)
            async with engine.connect() as connection:
                found = await connection.scalar(text("SELECT n FROM counts"))
            await engine.dispose()
            return found

        assert asyncio.run(count()) == 1


@pytest.mark.servers
@pytest.mark.parametrize("driver", ["postgresql+asyncpg", "mysql+asyncmy"])
def test_a_migration_that_waits_too_long_for_another(
    project: Project, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so, and the lock is free again when the other one is done, or has failed."""
    monkeypatch.setattr("qsession.migrate.migration.WAIT", 1.0)
    project.add("op.execute('CREATE TABLE made (n INTEGER)')")

    async def wait_and_fail(engine: Any) -> None:
        async with engine.connect() as connection:
            lock = await connection.run_sync(one_at_a_time, 1.0)
            await connection.run_sync(lambda _: lock.__enter__())
            with pytest.raises(QueueTimeout, match="has been migrating this database for 1 s"):
                await upgrade(engine=engine, config=project.config)
            await connection.run_sync(lambda _: lock.__exit__(None, None, None))
        await upgrade(engine=engine, config=project.config)
        project.add("op.execute('SELECT no_such_thing')")
        for _ in range(2):
            with pytest.raises(DBAPIError, match="no_such_thing"):
                await upgrade(engine=engine, config=project.config)
        await engine.dispose()

    with database_on(driver.partition("+")[0]) as server:
        asyncio.run(wait_and_fail(create_async_engine(server.set(drivername=driver))))


async def test_two_files_upgrade_at_once(tmp_path: Path) -> None:
    """Alembic keeps one run's names in its module; two runs must not mix them up."""
    projects = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        projects.append(Project(tmp_path / name))
        projects[-1].add(f"op.execute('CREATE TABLE {name} (id INTEGER)')")
    await asyncio.gather(*(upgrade(config=each.config) for each in projects))
    for each, name in zip(projects, ("one", "two"), strict=True):
        assert each.execute(f"SELECT count(*) FROM {name}") == [(0,)]


async def test_an_alembic_command_inside_a_loop_says_what_to_call(project: Project) -> None:
    """It would block the loop, and cannot start one of its own."""
    with pytest.raises(CommandError, match=r"await qsession\.upgrade"):
        command.upgrade(project.config, "head")


def test_alembic_commands_work_outside_a_loop(project: Project) -> None:
    """upgrade, downgrade and current, as the command line calls them."""
    project.add(FAMILY)
    command.upgrade(project.config, "head")
    command.current(project.config)
    command.downgrade(project.config, "base")
    assert project.execute("SELECT * FROM alembic_version") == []


async def test_the_environment_decides_over_the_ini_file(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QSESSION_URL is taken before sqlalchemy.url, and a sync SQLite URL will do."""
    project.add(FAMILY)
    monkeypatch.setenv("QSESSION_URL", f"sqlite:///{project.folder / 'other.db'}")
    await upgrade(config=project.config)
    assert (project.folder / "other.db").exists()
    assert not project.file.exists()


def test_the_command_line_decides_over_the_environment(project: Project) -> None:
    """-x url= wins, from the top folder of this repository."""
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "-x", f"url={project.url}", "upgrade", "head"],
        cwd=ROOT,
        env={"QSESSION_URL": "sqlite:////nowhere/at/all.db", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert project.execute("SELECT count(*) FROM transfers") == [(0,)]


async def test_no_ini_file_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says where it looked and what writes one."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CommandError, match="qsession init"):
        await upgrade()


STOCK_ENV = """
import asyncio
from alembic import context
from sqlalchemy.ext.asyncio import create_async_engine

def migrate(connection):
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()

async def main():
    engine = create_async_engine(context.config.get_main_option("sqlalchemy.url"))
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()

work = main()
try:
    asyncio.run(work)
finally:
    work.close()
"""


@pytest.mark.parametrize("env", [STOCK_ENV, "from alembic import context\n"])
async def test_an_env_that_does_not_call_run(project: Project, env: str) -> None:
    """Alembic's own, and one that does nothing: nobody is told that all is done."""
    project.add(FAMILY)
    (project.folder / "migrations" / "env.py").write_text(env)
    with pytest.raises(CommandError, match=r"did not call qsession\.migrate\.run\(\)"):
        await upgrade(config=project.config)
    assert not project.config.attributes


async def test_an_error_of_a_migration_that_is_a_runtime_error(project: Project) -> None:
    """It is raised as it is."""
    project.add("raise RuntimeError('no')")
    with pytest.raises(RuntimeError, match="no"):
        await upgrade(config=project.config)


RUNS_A_LOOP = """
    import asyncio
    work = asyncio.sleep(0)
    try:
        asyncio.run(work)
    finally:
        work.close()
"""


async def test_a_migration_that_runs_an_event_loop(project: Project) -> None:
    """Its error is raised: env.py, which it was blamed on, is as it should be."""
    project.add(RUNS_A_LOOP)
    with pytest.raises(RuntimeError, match="cannot be called from a running event loop"):
        await upgrade(config=project.config)
