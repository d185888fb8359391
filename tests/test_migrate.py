"""Migrations: one transaction, under the ticket, whoever asks for them."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError

from qsession import create_async_engine
from qsession.cli import init
from qsession.migrate import upgrade

ROOT = Path(__file__).parent.parent

REVISION = """
import asyncio
import sqlalchemy as sa
from alembic import op
from sqlalchemy.util import await_only
revision = "{number:04}"
down_revision = {before!r}
def upgrade():
    {up}
def downgrade():
    pass
"""

FAMILY = """
    op.execute("CREATE TABLE parent (id INTEGER PRIMARY KEY, name TEXT)")
    op.execute("CREATE TABLE child (id INTEGER PRIMARY KEY,"
               " parent_id INTEGER REFERENCES parent (id) ON DELETE CASCADE)")
    op.execute("INSERT INTO parent VALUES (1, 'Ann')")
    op.execute("INSERT INTO child VALUES (10, 1)")
"""

REBUILD_PARENT = """
    with op.batch_alter_table("parent", recreate="always") as batch:
        batch.add_column(sa.Column("age", sa.Integer()))
"""


class Project:
    """A folder with an alembic.ini, its migrations, and the path of its database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "app.db"
        self.url = f"sqlite+aiosqlite:///{self.file}"
        init(folder, url=self.url, models="qsession:Base")
        self.config = Config(folder / "alembic.ini")
        self.count = 0

    def add(self, up: str) -> None:
        """Write the next revision, with the body of its `upgrade`."""
        before = f"{self.count:04}" if self.count else None
        self.count += 1
        body = REVISION.format(number=self.count, before=before, up=up.strip())
        (self.folder / "migrations" / "versions" / f"{self.count:04}.py").write_text(body)

    def dump(self, file: Path | None = None) -> list[str]:
        """Schema and rows, as SQL."""
        with closing(sqlite3.connect(file or self.file)) as look:
            return list(look.iterdump())

    def execute(self, *statements: str) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(self.file)) as outside:
            rows = [row for statement in statements for row in outside.execute(statement)]
            outside.commit()
            return rows


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


async def test_rebuilding_a_table_keeps_the_rows_that_refer_to_it(project: Project) -> None:
    """Foreign keys on, ON DELETE CASCADE: children survive, and enforcement returns."""
    project.add(FAMILY)
    project.add(REBUILD_PARENT)
    engine = create_async_engine(project.url)

    @event.listens_for(engine.sync_engine, "connect")
    def enforce(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA foreign_keys=ON")

    await upgrade(engine=engine, config=project.config)
    async with engine.connect() as connection:
        await connection.execution_options(qsession_access="write")
        assert (await connection.exec_driver_sql("SELECT id FROM child")).all() == [(10,)]
        assert await connection.scalar(text("PRAGMA foreign_keys")) == 1
    await engine.dispose()


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


async def test_new_broken_references_are_refused(project: Project) -> None:
    """A step that deletes a parent under its child is rolled back, and the tables are named."""
    project.add(FAMILY)
    await upgrade(config=project.config)
    before = project.dump()
    project.add("op.execute('DELETE FROM parent')")
    with pytest.raises(CommandError, match="1 in 'child' to 'parent'"):
        await upgrade(config=project.config)
    assert project.dump() == before


async def test_references_that_were_broken_before_are_no_hindrance(project: Project) -> None:
    """An old orphan is not the migration's fault."""
    project.add(FAMILY)
    await upgrade(config=project.config)
    project.execute("INSERT INTO child VALUES (11, 99)")
    project.add(REBUILD_PARENT)
    await upgrade(config=project.config)
    assert project.execute("SELECT version_num FROM alembic_version") == [("0002",)]


async def test_an_empty_leftover_of_another_driver_is_dropped(project: Project) -> None:
    """A batch migration that failed halfway under the stock driver does not block the next."""
    project.add(FAMILY)
    await upgrade(config=project.config)
    project.execute("CREATE TABLE _alembic_tmp_parent (id INTEGER)")
    project.add(REBUILD_PARENT)
    await upgrade(config=project.config)
    assert not project.execute("SELECT 1 FROM sqlite_master WHERE name LIKE '_alembic_tmp%'")


async def test_a_leftover_that_holds_rows_is_reported_and_kept(project: Project) -> None:
    """It may be the only copy of the rows, so a person has to look."""
    project.add(FAMILY)
    await upgrade(config=project.config)
    project.execute(
        "CREATE TABLE _alembic_tmp_parent (id INTEGER)",
        "INSERT INTO _alembic_tmp_parent VALUES (1)",
    )
    project.add(REBUILD_PARENT)
    with pytest.raises(CommandError, match="'_alembic_tmp_parent' was left behind"):
        await upgrade(config=project.config)
    assert project.execute("SELECT id FROM _alembic_tmp_parent") == [(1,)]


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


async def test_a_database_in_memory_is_migrated_through_its_engine(project: Project) -> None:
    """The engine that is passed is the one that is migrated."""
    project.add(FAMILY)
    engine = create_async_engine("sqlite+aiosqlite://")
    await upgrade(engine=engine, config=project.config)
    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT name FROM parent")) == "Ann"
    await engine.dispose()


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


async def test_a_backup_is_taken_only_if_there_is_something_to_do(project: Project) -> None:
    """The copy holds what was there before; a run that finds all done makes none."""
    project.add(FAMILY)
    await upgrade(config=project.config)
    before = project.dump()
    project.add(REBUILD_PARENT)
    await upgrade(config=project.config, backup=project.folder / "before.db")
    assert project.dump(project.folder / "before.db") == before
    await upgrade(config=project.config, backup=project.folder / "again.db")
    assert not (project.folder / "again.db").exists()
    assert not list(project.folder.glob("*.unfinished"))


async def test_a_backup_never_replaces_a_file(project: Project) -> None:
    """The path of an existing file is refused, and nothing is migrated."""
    project.add(FAMILY)
    (project.folder / "precious").write_text("mine")
    with pytest.raises(CommandError, match="exists already"):
        await upgrade(config=project.config, backup=project.folder / "precious")
    assert (project.folder / "precious").read_text() == "mine"
    assert not project.execute("SELECT * FROM sqlite_master")


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
