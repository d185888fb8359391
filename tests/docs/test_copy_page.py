"""docs/howto/move-to-postgresql.md: its models, commands and code do what it says."""

from __future__ import annotations

import asyncio

import pytest
from copy_databases import ask, database
from folders import ROOT
from test_readme import run_page

PAGE = ROOT / "docs" / "howto" / "move-to-postgresql.md"
TARGET = "postgresql+asyncpg://app@db.example.com/shop"


@pytest.mark.servers
async def test_the_page_does_what_it_says(tmp_path):
    """Step after step, on a server of one's own: models, rows, check, copy, copy from code, use."""
    async with database("asyncpg", tmp_path) as url:
        text = PAGE.read_text(encoding="utf-8")
        assert text.count(f"qsession copy app.db {TARGET}") == 3
        page = tmp_path / "page.md"
        page.write_text(text.replace(TARGET, url))
        said = await asyncio.to_thread(run_page, page, tmp_path)
        assert "nothing was written" in said
        assert "copied and verified" in said
        assert await ask(url, "SELECT count(*) FROM customers") == [(1,)]
