"""What SQLite needs around a migration: foreign keys, leftovers, references, backups."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

import pytest
from alembic.util import CommandError
from project import FAMILY, REBUILD_PARENT, Project
from sqlalchemy import event, text

from qsession import create_async_engine
from qsession.migrate import upgrade


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.delenv("QSESSION_URL", raising=False)
    monkeypatch.setattr(sys, "path", sys.path[:])
    return Project(tmp_path)


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


async def test_a_database_in_memory_is_migrated_through_its_engine(project: Project) -> None:
    """The engine that is passed is the one that is migrated."""
    project.add(FAMILY)
    engine = create_async_engine("sqlite+aiosqlite://")
    await upgrade(engine=engine, config=project.config)
    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT name FROM parent")) == "Ann"
    await engine.dispose()


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
