"""What SQLite needs around a migration: foreign keys, leftovers, references, backups."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic.util import CommandError
from project import FAMILY, REBUILD_PARENT, Project
from sqlalchemy import NullPool, event, text

from qsession import create_async_engine
from qsession.engine import QueuedAsyncEngine
from qsession.migrate import references
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


def with_foreign_keys(engine: QueuedAsyncEngine) -> QueuedAsyncEngine:
    """The engine, with a listener as SQLAlchemy's documentation has it."""

    @event.listens_for(engine.sync_engine, "connect")
    def enforce(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA foreign_keys=ON")

    return engine


async def test_rebuilding_a_table_keeps_the_rows_that_refer_to_it(project: Project) -> None:
    """Foreign keys on, ON DELETE CASCADE: children survive, and enforcement returns."""
    project.add(FAMILY)
    project.add(REBUILD_PARENT)
    engine = with_foreign_keys(create_async_engine(project.url))
    await upgrade(engine=engine, config=project.config)
    async with engine.connect() as connection:
        await connection.execution_options(qsession_access="write")
        assert (await connection.exec_driver_sql("SELECT id FROM child")).all() == [(10,)]
        assert await connection.scalar(text("PRAGMA foreign_keys")) == 1
    await engine.dispose()


@pytest.mark.parametrize(
    ("already", "up"),
    [
        ([], "op.execute('DELETE FROM parent')"),
        # One reference is mended and another one broken: as many as before are not the same.
        (
            ["INSERT INTO child VALUES (11, 99)"],
            "op.execute('INSERT INTO parent VALUES (99, NULL)')\n    " + ORPHAN,
        ),
    ],
)
async def test_new_broken_references_are_refused(
    project: Project, already: list[str], up: str
) -> None:
    """A step that deletes a parent under its child is rolled back, and the tables are named."""
    project.add(FAMILY)
    await upgrade(config=project.config)
    project.execute(*already)
    before = project.dump()
    project.add(up)
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


async def test_nothing_is_checked_where_nothing_is_written(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An application that starts on a large database that is up to date does not read all of it."""
    project.add(FAMILY)
    await upgrade(config=project.config)
    monkeypatch.setattr(references, "_orphans", None)
    await upgrade(config=project.config)
    project.add("op.execute('CREATE TABLE more (n)')")
    with pytest.raises(TypeError):
        await upgrade(config=project.config)


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
    with pytest.raises(CommandError, match=r"exist: 1 in 'child' to 'parent'\. F"):
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
    with pytest.raises(CommandError, match="it would leave references"):
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
    monkeypatch.setattr(references, "KEYS", 1)
    monkeypatch.setattr(references, "_keys", None)
    project.add(FAMILY)
    await upgrade(config=project.config)
    project.execute("INSERT INTO child VALUES (11, 98), (12, 99)")
    project.add("op.execute('UPDATE child SET parent_id = 97 WHERE id = 11')")
    await upgrade(config=project.config)
    project.add(ORPHAN)
    with pytest.raises(CommandError, match="1 in 'child' to 'parent'"):
        await upgrade(config=project.config)


PER_MIGRATION = "from qsession import migrate\nmigrate.run(transaction_per_migration=True)\n"
IN_A_BLOCK = "with op.get_context().autocommit_block():\n        "


async def test_a_transaction_for_each_migration(project: Project) -> None:
    """What comes before a migration that fails stays, and so does its revision."""
    (project.folder / "migrations" / "env.py").write_text(PER_MIGRATION)
    project.add(FAMILY)
    project.add(REBUILD_PARENT)
    project.add("op.execute('CREATE TABLE third (n)')\n    " + ORPHAN)
    project.add("op.execute('CREATE TABLE fourth (n)')")
    with pytest.raises(CommandError, match=r"'child' to 'parent'\. Foreign keys are off"):
        await upgrade(config=project.config, backup=project.folder / "before.db")
    assert project.execute("SELECT version_num FROM alembic_version") == [("0002",)]
    assert project.execute("SELECT parent_id, age FROM child, parent") == [(1, None)]
    assert not project.execute("SELECT 1 FROM sqlite_master WHERE name IN ('third', 'fourth')")
    assert project.dump(project.folder / "before.db") == []


async def test_a_transaction_for_each_migration_where_all_is_done(project: Project) -> None:
    """A second run changes nothing and leaves nothing open."""
    (project.folder / "migrations" / "env.py").write_text(PER_MIGRATION)
    for _ in range(2):
        await upgrade(config=project.config)
        project.execute("BEGIN IMMEDIATE", "ROLLBACK")
    assert project.execute("SELECT count(*) FROM alembic_version") == [(0,)]
    project.add(FAMILY)
    for _ in range(2):
        await upgrade(config=project.config)
        assert project.execute("SELECT version_num FROM alembic_version") == [("0001",)]


@pytest.mark.parametrize("env", ["from qsession import migrate\nmigrate.run()\n", PER_MIGRATION])
async def test_references_that_an_autocommit_block_breaks(project: Project, env: str) -> None:
    """They are found at its end, whatever was committed; the error says so."""
    (project.folder / "migrations" / "env.py").write_text(env)
    project.add(FAMILY)
    await upgrade(config=project.config)
    project.execute("INSERT INTO child VALUES (11, 99)")
    project.add("op.execute('CREATE TABLE second (n)')")
    project.add(IN_A_BLOCK + ORPHAN)
    with pytest.raises(CommandError, match=r"'child' to 'parent'\. Its autocommit"):
        await upgrade(config=project.config)
    assert project.execute("SELECT version_num FROM alembic_version") == [("0002",)]
    assert not project.execute("SELECT * FROM parent")


REBUILD_AND_VACUUM = """
    op.execute("CREATE TABLE early (n)")
    with op.get_context().autocommit_block():
        with op.batch_alter_table("parent", recreate="always") as batch:
            batch.add_column(sa.Column("age", sa.Integer()))
        op.execute("VACUUM")
    op.execute("DELETE FROM parent")
    op.execute("INSERT INTO parent VALUES (1, NULL, 5)")
"""


async def test_an_autocommit_block_that_keeps_references(project: Project) -> None:
    """Rows and VACUUM in one; the transaction goes on behind it, without foreign keys as before."""
    project.add(FAMILY)
    project.add(REBUILD_AND_VACUUM)
    engine = with_foreign_keys(create_async_engine(project.url))
    await upgrade(config=project.config, engine=engine)
    assert project.execute("SELECT child.id, age FROM child, parent") == [(10, 5)]
    await engine.dispose()


@pytest.mark.parametrize("size", [{}, {"pool_size": 1, "max_overflow": 0}, {"poolclass": NullPool}])
@pytest.mark.parametrize(
    "send",
    [
        "op.execute({!r})",
        "op.get_bind().exec_driver_sql({!r})",
        "op.get_bind().execute(sa.text({!r}))",
        "with op.get_context().autocommit_block(): op.execute({!r})",
    ],
)
async def test_a_migration_that_turns_foreign_keys_off_and_on(
    project: Project, send: str, size: dict[str, object]
) -> None:
    """As migrations for SQLite often do: they stay off until all have run, and no row is lost."""
    project.add(FAMILY)
    project.add(
        send.format("PRAGMA foreign_keys=OFF") + REBUILD_PARENT + "    "
        + send.format("PRAGMA foreign_keys = ON")
    )  # fmt: skip
    project.add(REBUILD_PARENT.replace("age", "height"))
    engine = with_foreign_keys(create_async_engine(project.url, **size))
    await upgrade(config=project.config, engine=engine)
    async with engine.connect() as connection:
        assert (await connection.exec_driver_sql("SELECT id FROM child")).all() == [(10,)]
        assert await connection.scalar(text("PRAGMA foreign_keys")) == 1
    await engine.dispose()


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
    with pytest.raises(CommandError, match="left the table '_alembic_tmp_parent'"):
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


async def test_a_backup_says_what_it_could_not_check(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    """A table whose index needs a collation of the application is copied, and named in the log.

    References that are compared by it cannot be looked at, and are in no migration's way.
    """
    with closing(sqlite3.connect(project.file)) as raw:
        raw.create_collation("unicase", lambda one, two: (one > two) - (one < two))
        raw.execute("CREATE TABLE tags (tag TEXT COLLATE unicase UNIQUE)")
        raw.execute("CREATE TABLE tagged (tag TEXT COLLATE unicase REFERENCES tags (tag))")
        raw.execute("INSERT INTO tags VALUES ('a')")
        raw.execute("INSERT INTO tagged VALUES ('a')")
        raw.commit()
    project.add('op.execute("CREATE TABLE t (id INTEGER PRIMARY KEY)")')
    await upgrade(config=project.config, backup=project.folder / "before.db")
    assert "tags ('a',)" in project.dump(project.folder / "before.db")
    assert project.execute("SELECT name FROM sqlite_master WHERE name = 't'")
    (told,) = [each.getMessage() for each in caplog.records if each.name == "qsession"]
    assert "before.db' is complete, but the content of tags could not be fully checked" in told


async def test_a_backup_never_replaces_a_file(project: Project) -> None:
    """The path of an existing file is refused, and nothing is migrated."""
    project.add(FAMILY)
    (project.folder / "precious").write_text("mine")
    with pytest.raises(CommandError, match="already exists"):
        await upgrade(config=project.config, backup=project.folder / "precious")
    assert (project.folder / "precious").read_text() == "mine"
    assert not project.execute("SELECT * FROM sqlite_master")
