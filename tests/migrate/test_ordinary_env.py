"""Alembic's own env.py, which is synchronous, with a URL of ours."""

from __future__ import annotations

import logging.config
import shutil
import sys
from pathlib import Path

import alembic
import pytest
from alembic import command
from project import FAMILY, REBUILD_PARENT, Project
from sqlalchemy.exc import DBAPIError

ENV = Path(alembic.__file__).parent / "templates" / "generic" / "env.py"


def test_it_migrates_through_the_synchronous_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up, a table rebuilt, and a step that fails, of which nothing remains."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(logging.config, "fileConfig", lambda *_args, **_kw: None)
    project = Project(tmp_path)
    shutil.copy(ENV, project.folder / "migrations" / "env.py")
    project.config.set_main_option("sqlalchemy.url", f"sqlite+qsession:///{project.file}")
    project.add(FAMILY)
    project.add(REBUILD_PARENT)
    command.upgrade(project.config, "head")
    assert project.execute("SELECT version_num FROM alembic_version") == [("0002",)]
    assert project.execute("SELECT id, name, age FROM parent") == [(1, "Ann", None)]
    before = project.dump()
    project.add(
        "op.execute('DELETE FROM parent')\n    op.execute('INSERT INTO nowhere VALUES (1)')"
    )
    with pytest.raises(DBAPIError, match="nowhere"):
        command.upgrade(project.config, "head")
    assert project.dump() == before
