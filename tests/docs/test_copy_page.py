"""docs/howto/move-to-postgresql.md: its models, commands and code do what it says."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
import sys

import pytest
from copy_databases import ask, database
from folders import ROOT

PAGE = ROOT / "docs" / "howto" / "move-to-postgresql.md"
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TARGET = "postgresql+asyncpg://app@db.example.com/shop"


@pytest.mark.servers
async def test_the_page_does_what_it_says(tmp_path):
    """Step after step, on a server of one's own: models, rows, check, copy, copy from code, use."""
    async with database("asyncpg", tmp_path) as url:
        text = PAGE.read_text(encoding="utf-8").replace(TARGET, url)
        code, steps = "", 0
        for language, block in BLOCK.findall(text):
            if block.startswith("# shop.py"):
                (tmp_path / "shop.py").write_text(block)
                continue
            if language == "bash":
                code += "import subprocess\n"
                for line in block.splitlines():
                    words = shlex.split(line)
                    assert words[0] == "qsession"
                    command = [sys.executable, "-m", "qsession.cli", *words[1:]]
                    code += f"subprocess.run({command!r}, check=True)\n"
                    steps += 1
            else:
                code += block
        assert steps == 2
        page = tmp_path / "page.md"
        page.write_text(f"```python\n{code}```\n")
        environment = {name: value for name, value in os.environ.items() if name != "QSESSION_URL"}
        environment["PYTHONPATH"] = str(tmp_path)
        done = await asyncio.to_thread(
            subprocess.run,
            [
                sys.executable,
                "-W",
                "error",
                str(ROOT / "tests" / "docs" / "test_readme.py"),
                str(page),
            ],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "nothing was written" in done.stdout
        assert "copied and verified" in done.stdout
        assert await ask(url, "SELECT count(*) FROM customers") == [(1,)]
