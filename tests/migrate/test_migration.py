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
from qsession.migrate import sqlite as migration
from qsession.migrate.migration import upgrade

REBUILD = "with op.batch_alter_table('{}', recreate='always') as batch:\n        {}"
ADD_AGE = "batch.add_column(sa.Column('age', sa.Integer))"
COPY_CHILD = """op.execute("CREATE TABLE {0} (id INTEGER PRIMARY KEY, {1})")
    op.execute("INSERT INTO {0} SELECT {2} FROM child")
    op.execute("DROP TABLE child")"""
WIDER = "parent_id, name, FOREIGN KEY (parent_id, name) REFERENCES parent (id, name)"
RENAME_KID = "\n    op.rename_table('kid', 'child')"
ORPHAN = "op.execute('DELETE FROM parent WHERE id = 1')"


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


async def test_one_reference_mended_and_another_broken(project: Project) -> None:
    """As many as before are not the same as before."""
    project.add(FAMILY)
    await upgrade(config=project.config)
    project.execute("INSERT INTO child VALUES (11, 99)")
    before = project.dump()
    project.add("op.execute('INSERT INTO parent VALUES (99, NULL)')\n    " + ORPHAN)
    with pytest.raises(CommandError, match="1 in 'child' to 'parent'"):
        await upgrade(config=project.config)
    assert project.dump() == before


async def test_a_reference_that_cannot_be_checked_hides_no_other_table(project: Project) -> None:
    """To columns that are not unique: SQLite refuses to look at that table."""
    project.add(FAMILY)
    await upgrade(config=project.config)
    project.execute(
        "CREATE TABLE words (word TEXT)",
        "CREATE TABLE uses (id INTEGER PRIMARY KEY, word TEXT REFERENCES words (word))",
        "CREATE TABLE spoken (word TEXT REFERENCES words (word))",
    )
    everything = "SELECT sql FROM sqlite_schema", "SELECT * FROM parent", "SELECT * FROM child"
    before = project.execute(*everything)  # a dump of Python 3.13 would check references, too
    project.add(ORPHAN)
    with pytest.raises(CommandError, match=r"exist: 1 in 'child' to 'parent'\. It"):
        await upgrade(config=project.config)
    assert project.execute(*everything) == before


async def test_a_reference_that_cannot_be_checked_any_more(project: Project) -> None:
    """It is told as a broken one."""
    project.add(FAMILY)
    await upgrade(config=project.config)
    project.add("op.execute('CREATE TABLE odd (n TEXT REFERENCES parent (name))')")
    with pytest.raises(CommandError, match="1 in 'odd' to 'columns that are not unique'"):
        await upgrade(config=project.config)


@pytest.mark.parametrize(
    "step",
    [
        "op.rename_table('child', 'Kid')",
        "op.rename_table('child', 'kid')\n    op.execute('CREATE TABLE child (id INTEGER)')",
        "op.rename_table('parent', 'mother')",
        REBUILD.format("child", "batch.alter_column('parent_id', new_column_name='of')"),
        REBUILD.format("odd table", "batch.add_column(sa.Column('age', sa.Integer))"),
        REBUILD.format("bare", "batch.add_column(sa.Column('age', sa.Integer))"),
    ],
)
async def test_old_broken_references_in_a_table_that_is_changed(
    project: Project, step: str
) -> None:
    """Renamed, or built anew with other numbers for its rows and references: they are the same."""
    project.add(FAMILY)
    await upgrade(config=project.config)
    project.execute(
        "INSERT INTO child VALUES (11, 99)",
        "CREATE TABLE gone (id INTEGER PRIMARY KEY)",
        'CREATE TABLE "odd table" (rowid TEXT, parent_id REFERENCES parent,'
        ' "to" REFERENCES gone (id))',
        """INSERT INTO "odd table" VALUES ('a', 1, NULL), ('b', 98, 7), ('c', 97, 7)""",
        """DELETE FROM "odd table" WHERE rowid = 'a'""",
        "CREATE TABLE bare (name TEXT PRIMARY KEY, parent_id REFERENCES parent) WITHOUT ROWID",
        "INSERT INTO bare VALUES ('a', 98)",
    )
    project.add(step)
    await upgrade(config=project.config)
    project.add(ORPHAN if "mother" not in step else "op.execute('DELETE FROM mother')")
    with pytest.raises(CommandError, match="the migration would leave"):
        await upgrade(config=project.config)


@pytest.mark.parametrize(
    "step",
    [
        "op.rename_table('child', 'kid')\n    " + REBUILD.format("kid", ADD_AGE),
        "op.rename_table('parent', 'mother')\n    " + REBUILD.format("mother", ADD_AGE),
        REBUILD.format("child", "batch.alter_column('parent_id', type_=sa.String(9))"),
        COPY_CHILD.format("kid", "parent_id REFERENCES parent", "id, parent_id"),
        COPY_CHILD.format("kid", WIDER, "id, parent_id, 'Ann'") + RENAME_KID,
    ],
)
async def test_old_broken_references_that_cannot_be_told_by_their_keys(
    project: Project, step: str
) -> None:
    """There may be as many as before, and no more."""
    project.add(FAMILY)
    await upgrade(config=project.config)
    project.execute(
        "CREATE UNIQUE INDEX by_both ON parent (id, name)",
        "INSERT INTO child VALUES (11, 99)",
    )
    before = project.dump()
    orphan = ORPHAN.replace("parent", "mother") if "mother" in step else ORPHAN
    project.add(f"{step}\n    {orphan}")
    with pytest.raises(CommandError, match=r"1 in '(child|kid)' to '(parent|mother)'"):
        await upgrade(config=project.config)
    assert project.dump() == before
    project.count -= 1
    project.add(step)
    await upgrade(config=project.config)


async def test_many_broken_references_are_counted(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their keys would need memory and time."""
    monkeypatch.setattr(migration, "KEYS", 1)
    monkeypatch.setattr(migration, "_keys", None)
    project.add(FAMILY)
    await upgrade(config=project.config)
    project.execute("INSERT INTO child VALUES (11, 98), (12, 99)")
    project.add("op.execute('UPDATE child SET parent_id = 97 WHERE id = 11')")
    await upgrade(config=project.config)
    project.add(ORPHAN)
    with pytest.raises(CommandError, match="1 in 'child' to 'parent'"):
        await upgrade(config=project.config)


async def test_a_transaction_for_each_migration_is_refused(project: Project) -> None:
    """References would be checked when all is committed, and other workers come between."""
    env = project.folder / "migrations" / "env.py"
    env.write_text("from qsession import migrate\nmigrate.run(transaction_per_migration=True)\n")
    project.add(FAMILY)
    with pytest.raises(CommandError, match="transaction_per_migration=True: on SQLite"):
        await upgrade(config=project.config)
    assert not project.execute("SELECT * FROM sqlite_master")


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
