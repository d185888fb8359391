"""The code in README.md and docs/ runs as it is printed.

Blocks of Python and of bash are run, in their order, in one empty folder. One that begins with the
name of a file, as ``# models.py``, is written to that file. Blocks of sh and text are not run.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import re
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType

import pytest

ROOT = Path(__file__).parents[2]  # this file is run as a program as well
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\S+\.\w+)\n")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)[^)]*\)")
PROGRAMS = {
    "python": (),
    "pytest": ("-m", "pytest"),
    "qsession": ("-m", "qsession.cli"),
    "alembic": ("-m", "alembic"),
    "litestar": ("-m", "litestar"),
}
"""What Python runs for the commands of the pages: they need not be installed to be tried."""
ELSEWHERE = {
    "dashboard.md",
    "fastapi.md",
    "galera.md",
    "jupyter.md",
    "litestar.md",
    "move-to-postgresql.md",
    "observe.md",
    "replicas.md",
}
"""Pages whose own tests run them."""
NEEDS = {
    "aiogram.md": ("aiogram",),
    "extensions.md": ("sqlite_vec",),
    "opentelemetry.md": ("opentelemetry.sdk", "opentelemetry.instrumentation.sqlalchemy"),
    "sqlmodel.md": ("sqlmodel",),
    "tests.md": ("fastapi", "httpx"),
}
"""What must be installed beside the dev extra: pages run only where it is."""
STEPS = {"migrations.md", "move-to-postgresql.md"}
"""Pages whose blocks that await are steps of the reader's own program."""
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[tuple[int, str, str]]:
    """The blocks of a page that are run, each with the line it begins on and its language."""
    text = page.read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, each.start()) + 2, *each.groups()) for each in BLOCK.finditer(text)
    ]


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=str(page.relative_to(ROOT)))
        for page in PAGES
        if blocks(page) and page.name not in ELSEWHERE
    ],
)
def test_code_blocks_run(page: Path, tmp_path: Path) -> None:
    """The blocks of one page, in their order, in one fresh interpreter and an empty folder."""
    for module in NEEDS.get(page.name, ()):
        pytest.importorskip(module)
    if page.name == "extensions.md" and not hasattr(sqlite3.Connection, "enable_load_extension"):
        pytest.skip("this Python was built without loadable extensions of SQLite")
    run_page(page, tmp_path)


def run_page(page: Path, folder: Path, warnings: Sequence[str] = ("error",)) -> str:
    """Run a page in a process of its own, in a folder; returns what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "QSESSION_URL"}
    paths = [str(folder), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    environment["PYTEST_PLUGINS"] = "pytest_qsession"  # which need not be installed either
    done = subprocess.run(
        [sys.executable, *(f"-W{each}" for each in warnings), __file__, str(page)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["README.md", "README.ru.md"])
def test_the_first_program_can_be_run_twice(name: str, tmp_path: Path) -> None:
    """Whoever tries it out runs it again; it prints the same."""
    _, _, program = blocks(ROOT / name)[0]
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert (done.stdout, done.stderr) == ("100\n", "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link of a page names a file that exists."""
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_says_how_to_run_what_awaits(page: Path) -> None:
    """Blocks that await at the top level are no programs: the page says where they run."""
    awaits = any(
        compile_block(page, line, block).co_flags & inspect.CO_COROUTINE
        for line, language, block in blocks(page)
        if language == "python"
    )
    told = re.search(r"at\s+the\s+top\s+level", page.read_text(encoding="utf-8")) is not None
    assert told or not awaits or page.name in STEPS


def compile_block(page: Path, line: int, block: str) -> CodeType:
    """A block, which may await at the top level. A traceback names the line of the page."""
    source = "\n" * (line - 1) + block
    return compile(source, str(page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


def run_blocks(page: Path) -> None:
    """Run a page's blocks in one namespace. They may await at the top level."""
    loop = asyncio.new_event_loop()
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, language, block in blocks(page):
        if (named := FILE.match(block)) is not None:
            Path(named[1]).parent.mkdir(parents=True, exist_ok=True)
            Path(named[1]).write_text(block, encoding="utf-8")
            continue
        if language == "bash":
            for command in block.splitlines():
                program, *arguments = shlex.split(command)
                words = [sys.executable, *PROGRAMS[program], *arguments]
                subprocess.run(words, check=True)
            continue
        code = compile_block(page, line, block)
        if code.co_flags & inspect.CO_COROUTINE:
            loop.run_until_complete(eval(code, namespace))
        else:
            exec(code, namespace)
    loop.close()


if __name__ == "__main__":
    run_blocks(Path(sys.argv[1]))
