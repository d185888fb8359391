"""The qsession command, and the project that `qsession init` writes."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

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
    assert "alembic.ini exists already" in done.output
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


def test_without_typer_the_error_names_the_extra() -> None:
    """Without the cli extra the import says what to install."""
    code = "import sys; sys.modules['typer'] = None; import qsession.cli"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "pip install 'qsession[cli]'" in done.stderr


@pytest.mark.parametrize("arguments", [["version"], ["--help"], ["init", "--help"]])
def test_commands_answer(arguments: list[str]) -> None:
    """Each command can be asked for what it is."""
    assert CliRunner().invoke(app, arguments).exit_code == 0
