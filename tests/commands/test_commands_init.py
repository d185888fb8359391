"""`qsession init`, and the project that it writes."""

from __future__ import annotations

import errno
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from folders import ROOT
from typer.testing import CliRunner

from qsession.cli import app

MODELS = """
from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column
from qsession import Base

class Parent(Base):
    __tablename__ = "parents"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)

class Child(Base):
    __tablename__ = "children"
    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int] = mapped_column(ForeignKey("parents.id"))
"""


def alembic(folder: Path, *arguments: str) -> str:
    """Run the alembic command in `folder` and return what it printed."""
    command = [sys.executable, "-W", "error::DeprecationWarning:qsession", "-m", "alembic"]
    done = subprocess.run(
        [*command, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_init_writes_a_project_that_alembic_can_use(tmp_path: Path) -> None:
    """From an empty folder to a migrated database, without editing a file that init wrote."""
    (tmp_path / "shop.py").write_text(MODELS)
    done = CliRunner().invoke(app, ["init", str(tmp_path), "--models", "shop:Parent"])
    assert done.exit_code == 0, done.output

    alembic(tmp_path, "revision", "--autogenerate", "-m", "first", "--rev-id", "0001")
    written = (tmp_path / "migrations" / "versions" / "0001_first.py").read_text()
    assert "fk_children_parent_id_parents" in written
    assert "uq_parents_name" in written

    assert "CREATE TABLE parents" in alembic(tmp_path, "upgrade", "head", "--sql")
    alembic(tmp_path, "upgrade", "head")
    assert "0001 (head)" in alembic(tmp_path, "current")
    assert "No new upgrade operations" in alembic(tmp_path, "check")

    (tmp_path / "shop.py").write_text(MODELS.replace("unique=True", "unique=False"))
    alembic(tmp_path, "revision", "--autogenerate", "-m", "second", "--rev-id", "0002")
    alembic(tmp_path, "upgrade", "head")
    with closing(sqlite3.connect(tmp_path / "app.db")) as look:
        (schema,) = look.execute("SELECT sql FROM sqlite_master WHERE name = 'parents'").fetchone()
    assert "UNIQUE" not in schema
    alembic(tmp_path, "downgrade", "base")


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    """An existing file is named, and no file is written beside it."""
    (tmp_path / "alembic.ini").write_text("mine")
    done = CliRunner().invoke(app, ["init", str(tmp_path)])
    assert done.exit_code == 1
    assert "alembic.ini already exists" in done.output
    assert (tmp_path / "alembic.ini").read_text() == "mine"
    assert not (tmp_path / "migrations").exists()


def test_init_refuses_models_that_are_no_module_and_name(tmp_path: Path) -> None:
    """A wrong --models is refused before anything is written."""
    done = CliRunner().invoke(app, ["init", str(tmp_path), "--models", "shop.Base"])
    assert done.exit_code == 2
    assert "module:name" in done.output
    assert not list(tmp_path.iterdir())


def test_init_escapes_a_percent_sign_in_the_url(tmp_path: Path) -> None:
    """The ini format reads % as its own; a password may hold one."""
    from alembic.config import Config

    url = "postgresql+asyncpg://me:50%25@host/db"
    CliRunner().invoke(app, ["init", str(tmp_path), "--url", url])
    assert Config(tmp_path / "alembic.ini").get_main_option("sqlalchemy.url") == url


def test_the_repository_uses_what_init_writes() -> None:
    """The migrations at the top of this repository and the templates do not drift apart."""
    ours = (ROOT / "migrations" / "script.py.mako").read_text()
    assert ours == (ROOT / "qsession" / "templates" / "script.py.mako").read_text()


@pytest.mark.parametrize("url", ["app.db", "sqlite:[//]/", "postgresql://host:port/db"])
def test_init_refuses_a_url_that_is_none(tmp_path: Path, url: str) -> None:
    """A wrong --url is refused before anything is written."""
    done = CliRunner().invoke(app, ["init", str(tmp_path), "--url", url])
    assert done.exit_code == 2
    assert "not a database URL" in done.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["alembic.ini", "env.py", "script.py.mako"])
def test_an_init_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The disk is full in the midst of a file: neither files nor folders are left."""
    (tmp_path / "mine").touch()
    real = Path.open

    def open_on_a_full_disk(path: Path, *args: Any, **kwargs: Any) -> Any:
        file = real(path, *args, **kwargs)
        if path.name == name and "x" in args:
            monkeypatch.setattr(file, "write", refuse, raising=False)
        return file

    def refuse(text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", open_on_a_full_disk)
    done = CliRunner().invoke(app, ["init", str(tmp_path / "new" / "project")])
    assert done.exit_code == 1
    assert "No space left" in done.output
    assert [each.name for each in tmp_path.iterdir()] == ["mine"]


def test_an_init_that_fails_keeps_what_was_there(tmp_path: Path) -> None:
    """A folder with revisions stays; a link that leads nowhere is a file that exists."""
    versions = tmp_path / "migrations" / "versions"
    versions.mkdir(parents=True)
    (versions / "0001.py").touch()
    (tmp_path / "migrations" / "script.py.mako").symlink_to(tmp_path / "nowhere")
    done = CliRunner().invoke(app, ["init", str(tmp_path)])
    assert done.exit_code == 1
    assert "script.py.mako already exists: nothing was written" in done.output.replace("\n", "")
    assert sorted(each.name for each in tmp_path.rglob("*")) == [
        "0001.py", "migrations", "script.py.mako", "versions",
    ]  # fmt: skip


def test_without_models_it_says_what_to_fill_in(tmp_path: Path) -> None:
    """In what it prints, in env.py, and in the empty migration that comes of doing nothing."""
    (tmp_path / "shop.py").write_text(MODELS)
    done = CliRunner().invoke(app, ["init", str(tmp_path)])
    assert "import the modules of your models in" in done.output.split("Next:")[1]
    env = tmp_path / "migrations" / "env.py"
    assert "# Import the modules of your models here." in env.read_text()

    alembic(tmp_path, "revision", "--autogenerate", "-m", "first", "--rev-id", "0001")
    first = tmp_path / "migrations" / "versions" / "0001_first.py"
    assert "# migrate.run() in migrations/env.py got no tables: import" in first.read_text()
    assert "    pass" in first.read_text()
    first.unlink()

    env.write_text(env.read_text().replace("# Import", "import shop  # noqa: F401\n# Import"))
    alembic(tmp_path, "revision", "--autogenerate", "-m", "first", "--rev-id", "0001")
    assert "create_table" in first.read_text()
    assert "#" not in first.read_text().split("def upgrade")[1].split("# ###")[0]
    alembic(tmp_path, "upgrade", "head")
    alembic(tmp_path, "revision", "--autogenerate", "-m", "second", "--rev-id", "0002")
    second = (tmp_path / "migrations" / "versions" / "0002_second.py").read_text()
    assert "# Empty: the database already matches the models." in second
    alembic(tmp_path, "revision", "-m", "third", "--rev-id", "0003")
    third = (tmp_path / "migrations" / "versions" / "0003_third.py").read_text()
    assert "#" not in third
    alembic(tmp_path, "upgrade", "head")
