"""The page on servers is true: its code runs on each of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from contract_tables import Database
from pages import ran
from sqlalchemy import text


@pytest.mark.servers
async def test_the_page_on_servers_runs_on_each(database: Database, tmp_path: Path) -> None:
    """The same code, with another DATABASE_URL, in a fresh interpreter."""
    async with database.outside.begin() as connection:
        await connection.execute(text("DROP TABLE IF EXISTS accounts"))
    await ran("servers.md", tmp_path, DATABASE_URL=database.url)
