"""The page on servers is true: its code runs on each of them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from contract_tables import Database
from folders import ROOT
from sqlalchemy import text


@pytest.mark.servers
async def test_the_page_on_servers_runs_on_each(database: Database, tmp_path: Path) -> None:
    """The same code, with another DATABASE_URL, in a fresh interpreter."""
    page = ROOT / "docs" / "howto" / "servers.md"
    async with database.outside.begin() as connection:
        await connection.execute(text("DROP TABLE IF EXISTS accounts"))
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "error", str(ROOT / "tests" / "docs" / "test_readme.py"), str(page)],
        cwd=tmp_path,
        env={**os.environ, "DATABASE_URL": database.url},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
