"""What `pip install qsession` gives: a wheel in an empty environment, and its commands at work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from email import message_from_string
from email.message import Message
from pathlib import Path
from zipfile import ZipFile

import pytest
from folders import ROOT

import qsession

pytestmark = pytest.mark.index

MODELS = """
from sqlalchemy.orm import Mapped, mapped_column
from qsession import Base

class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
"""
FILL = """
import asyncio, qsession, shop
from qsession import create_async_engine, qsession as session

async def main():
    session.configure("sqlite+qsession:///app.db")
    await qsession.upgrade(backup="before.db")
    async with session.begin() as s:
        s.add(shop.User(id=1, name="Ann"))
    await session.dispose()

asyncio.run(main())
"""
TEST = """
import shop
from sqlalchemy.orm import Session

def test_it(qsession_sync_engine):
    with Session(qsession_sync_engine) as s:
        assert s.get(shop.User, 1) is None
"""
READ = "import sqlite3; print(sqlite3.connect('copy.db').execute('SELECT * FROM users').fetchall())"


def run(*command: str | Path, cwd: Path) -> str:
    """What a program prints, if it succeeds."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=clean, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(python: str | Path, *arguments: str | Path, cwd: Path) -> None:
    """Let pip do something, quietly."""
    run(python, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    (made,) = folder.iterdir()
    return made


def metadata(wheel: Path) -> Message:
    """Its description of itself."""
    with ZipFile(wheel) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith("/METADATA")]
        return message_from_string(archive.read(name).decode())


def test_there_is_nothing_in_it_that_a_user_does_not_need(wheel: Path) -> None:
    """The package, the benchmarks without figures, and the licence."""
    with ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {
        "pytest_qsession.py",
        "qsession",
        f"qsession-{qsession.__version__}.dist-info",
    }
    assert {Path(name).suffix for name in names if name.startswith("qsession/")} == {
        ".py",
        ".c",  # what slows down the disk of a benchmark
        *(".html", ".css", ".js", ".svg"),  # the page of the dashboard
        ".mako",
        ".txt",
        ".typed",
    }
    assert wheel.stat().st_size < 700_000


def test_the_description_leads_somewhere(wheel: Path) -> None:
    """Links of the README are absolute there, and name files of the release."""
    described = metadata(wheel)
    text = described.get_payload()
    assert isinstance(text, str)
    start = f"https://github.com/qsession/qsession/blob/v{qsession.__version__}/"
    pictures = f"https://raw.githubusercontent.com/qsession/qsession/v{qsession.__version__}/"
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", text)
    assert links
    for picture, link in links:
        assert link.startswith("https://")
        assert link.startswith(pictures) == bool(picture)
        for each in (start, pictures):
            if link.startswith(each):
                assert (ROOT / link.removeprefix(each).partition("#")[0]).exists()
    assert any(link.startswith(start) for _, link in links)
    assert {each.split(",")[0] for each in described.get_all("Project-URL", [])} == {
        "Documentation",
        "Changelog",
        "Source",
        "Issues",
    }


def test_the_commands_work_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """From nothing to a migrated database, a copy of it, and a look at its health."""
    run(sys.executable, "-m", "venv", tmp_path / "env", cwd=tmp_path)
    folder = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin")
    python = folder / "python"
    pip(python, "install", f"{wheel}[cli,testing]", cwd=tmp_path)
    project = tmp_path / "project"
    project.mkdir()
    (project / "shop.py").write_text(MODELS)

    def command(*arguments: str) -> str:
        return run(folder / arguments[0], *arguments[1:], cwd=project)

    assert command("qsession", "--version").strip() == qsession.__version__
    assert command("python", "-m", "qsession", "version").strip() == qsession.__version__
    command("qsession", "init", "--models", "shop:Base")
    command("alembic", "revision", "--autogenerate", "-m", "first")
    command("python", "-c", FILL)
    assert "integrity" in command("qsession", "doctor", "app.db")
    assert "checked" in command("qsession", "backup", "app.db", "kept.db")
    assert "copied and verified" in command("qsession", "copy", "app.db", "copy.db", "--verify")
    assert command("python", "-c", READ).strip() == "[(1, 'Ann')]"
    assert "has it open" in command("qsession", "who", "app.db")
    assert "Import time" in command(
        "qsession", "bench", "import_time", "--rounds", "1", "--scale", "0.01"
    )
    (project / "test_shop.py").write_text(TEST)
    assert "1 passed" in command("python", "-m", "pytest", "-Werror", "test_shop.py")
    where = command("python", "-c", "import qsession; print(qsession.__file__)").strip()
    assert Path(where).is_relative_to(tmp_path / "env")  # and not this checkout
