"""Which database is migrated, and with which options: what Alembic's configuration says."""

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from project import FAMILY, REBUILD_PARENT, Project
from sqlalchemy import URL, Connection, create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.ext.asyncio import create_async_engine as stock_async_engine

from qsession import create_async_engine
from qsession.migrate.configuration import database_of, options_of
from qsession.migrate.migration import upgrade


class OfAdvancedAlchemy(Config):
    """Has what advanced-alchemy's own subclass of ``Config`` has."""

    def __init__(self, engine: Any, **options: Any) -> None:
        super().__init__()
        self.engine = engine
        self.version_table_name = options.get("version_table_name", "alembic_version")
        self.version_table_schema = options.get("version_table_schema")
        self.version_table_pk = options.get("version_table_pk", True)
        self.render_as_batch = True
        self.compare_type = False
        self.user_module_prefix = "sa."


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A folder with migrations; each test has a database of its own."""
    monkeypatch.delenv("QSESSION_URL", raising=False)
    monkeypatch.setattr(sys, "path", sys.path[:])
    return Project(tmp_path)


def as_text(database: URL | AsyncEngine) -> str:
    """Where a database is, by the URL of an engine or by its own."""
    url = database.url if isinstance(database, AsyncEngine) else database
    return url.render_as_string(hide_password=False)


@pytest.mark.parametrize(
    ("x", "environment", "engine", "ini", "found"),
    [
        ("x.db", "env.db", "engine.db", "ini.db", "x.db"),
        (None, "env.db", "engine.db", "ini.db", "env.db"),
        (None, None, "engine.db", "ini.db", "engine.db"),
        (None, None, None, "ini.db", "ini.db"),
    ],
)
def test_the_first_of_four(
    monkeypatch: pytest.MonkeyPatch,
    x: str | None,
    environment: str | None,
    engine: str | None,
    ini: str,
    found: str,
) -> None:
    """-x url=, QSESSION_URL, the engine of advanced-alchemy, sqlalchemy.url."""
    monkeypatch.delenv("QSESSION_URL", raising=False)
    config: Config = Config()
    if engine is not None:
        config = OfAdvancedAlchemy(create_engine(f"sqlite:///{engine}"))
    config.set_main_option("sqlalchemy.url", f"sqlite:///{ini}")
    if x is not None:
        config.cmd_opts = argparse.Namespace(x=["other=1", f"url=sqlite:///{x}"])
    if environment is not None:
        monkeypatch.setenv("QSESSION_URL", f"sqlite+aiosqlite:///{environment}")
    assert as_text(database_of(config)) == f"sqlite+qsession:///{found}"


def test_no_database_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the places."""
    monkeypatch.delenv("QSESSION_URL", raising=False)
    with pytest.raises(CommandError, match=r"set sqlalchemy\.url in the ini file"):
        database_of(Config())


async def test_an_asynchronous_engine_is_taken_as_it_is() -> None:
    """With its listeners and settings; a password is in no text."""
    engine = create_async_engine("sqlite+aiosqlite:///app.db")
    assert database_of(OfAdvancedAlchemy(engine)) is engine


def test_options_of_advanced_alchemy_alone() -> None:
    """Any other Config says nothing."""
    config = OfAdvancedAlchemy(create_engine("sqlite://"), version_table_schema="s")
    assert options_of(config) == {
        "version_table": "alembic_version",
        "version_table_schema": "s",
        "version_table_pk": True,
        "render_as_batch": True,
        "compare_type": False,
        "user_module_prefix": "sa.",
    }
    assert options_of(Config()) == {}


@pytest.mark.parametrize("make", [create_async_engine, stock_async_engine, create_engine])
def test_a_command_with_the_engine_of_advanced_alchemy(project: Project, make: Any) -> None:
    """As `litestar database upgrade` calls it, outside of a loop, with whatever engine it has."""
    driver = "" if make is create_engine else "+aiosqlite"
    engine = make(f"sqlite{driver}:///{project.file}")
    config = OfAdvancedAlchemy(engine, version_table_name="versions", version_table_pk=False)
    config.set_main_option("script_location", str(project.folder / "migrations"))
    project.add(FAMILY)
    command.upgrade(config, "head")
    command.current(config)
    assert project.execute("SELECT version_num FROM versions") == [("0001",)]
    (made,) = project.execute("SELECT sql FROM sqlite_master WHERE name = 'versions'")
    assert "PRIMARY KEY" not in str(made)


async def test_upgrade_with_the_engine_of_advanced_alchemy(project: Project) -> None:
    """A database in memory is the engine's own, so that it is migrated shows which was taken."""
    engine = create_async_engine("sqlite+aiosqlite://")
    config = OfAdvancedAlchemy(engine)
    config.set_main_option("script_location", str(project.folder / "migrations"))
    project.add(FAMILY)
    await upgrade(config=config)
    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT name FROM parent")) == "Ann"
    await engine.dispose()


async def test_a_memory_database_of_the_stock_driver_is_refused(project: Project) -> None:
    """Another engine by its URL would migrate an empty database, and say nothing."""
    project.add(FAMILY)
    engine = stock_async_engine("sqlite+aiosqlite://")
    with pytest.raises(CommandError, match=r"qsession\.create_async_engine\(\)"):
        await upgrade(config=project.config, engine=engine)
    await engine.dispose()


async def test_options_of_run_reach_alembic(project: Project) -> None:
    """version_table, its primary key and its schema, as Alembic has them."""
    (project.folder / "migrations" / "env.py").write_text(
        "from qsession import migrate\n"
        "migrate.run(version_table='v', version_table_pk=False, version_table_schema='main')\n"
    )
    project.add(FAMILY)
    for _ in range(2):
        await upgrade(config=project.config)
    (made,) = project.execute("SELECT sql FROM sqlite_master WHERE name = 'v'")
    assert "PRIMARY KEY" not in str(made)
    assert project.execute("SELECT version_num FROM v") == [("0001",)]


def test_a_connection_of_the_stock_driver_is_left_to_alembic(project: Project) -> None:
    """It sends no BEGIN before DDL, so what was done is noted migration by migration."""
    project.add(FAMILY)
    project.add("op.execute('INSERT INTO nowhere VALUES (1)')")
    engine = create_engine(f"sqlite:///{project.file}")
    with engine.connect() as connection:
        project.config.attributes["connection"] = connection
        with pytest.raises(Exception, match="nowhere"):
            command.upgrade(project.config, "head")
    engine.dispose()
    assert project.execute("SELECT version_num FROM alembic_version") == [("0001",)]


async def test_a_connection_of_ones_own(project: Project) -> None:
    """It is used as it is, in its transaction; the wrong kind is refused."""
    project.add(FAMILY)
    engine = create_async_engine(project.url)

    def migrate(connection: object) -> None:
        project.config.attributes["connection"] = connection
        command.upgrade(project.config, "head")

    async with engine.connect() as connection:
        with pytest.raises(CommandError, match=r"await connection\.run_sync"):
            migrate(connection)
        await connection.execute(text("CREATE TABLE mine (n)"))
        await connection.run_sync(migrate)
        await connection.rollback()
        assert project.execute("SELECT * FROM sqlite_master") == []
    async with engine.begin() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()
    assert project.execute("SELECT version_num FROM alembic_version") == [("0001",)]


@pytest.mark.parametrize("make", [create_engine, create_async_engine, stock_async_engine])
@pytest.mark.parametrize("written", [True, False])
def test_a_pragma_that_sqlite_ignores_on_a_connection_of_ones_own(
    project: Project, make: Any, written: bool
) -> None:
    """Behind a write an error says so, whatever driver it is: no row is lost, and none is kept."""
    project.add(FAMILY)
    write = "op.execute(\"INSERT INTO parent VALUES (2, 'Ben')\")\n    " if written else ""
    project.add(write + "op.execute('PRAGMA foreign_keys=OFF')" + REBUILD_PARENT)
    driver = "" if make is create_engine else "+aiosqlite"
    engine = make(f"sqlite{driver}:///{project.file}")
    sync_engine = getattr(engine, "sync_engine", engine)
    event.listen(sync_engine, "connect", lambda raw, _: raw.execute("PRAGMA foreign_keys=ON"))

    def migrate(connection: Connection, revision: str) -> None:
        project.config.attributes["connection"] = connection
        command.upgrade(project.config, revision)

    async def migrate_in_loop(revision: str) -> None:
        try:
            async with engine.connect() as connection:
                await connection.run_sync(migrate, revision)
        finally:
            await engine.dispose()

    def run(revision: str) -> None:
        if make is create_engine:
            try:
                with engine.connect() as connection:
                    migrate(connection, revision)
            finally:
                engine.dispose()
        else:
            asyncio.run(migrate_in_loop(revision))

    run("0001")
    refused = pytest.raises(Exception, match="SQLite ignores it inside a transaction")
    with refused if written else nullcontext():
        run("head")
    assert project.execute("SELECT id FROM child") == [(10,)]
    assert project.execute("SELECT name FROM parent") == [("Ann",)]
    done = "0001" if written else "0002"
    assert project.execute("SELECT version_num FROM alembic_version") == [(done,)]
