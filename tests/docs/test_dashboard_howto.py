"""docs/howto/dashboard.md: its applications run, and its function lets in whom it names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from folders import ROOT
from test_readme import run_page

PAGE = ROOT / "docs" / "howto" / "dashboard.md"
# advanced-alchemy, which Litestar imports, uses what SQLAlchemy 2.1 deprecates.
WARNINGS = ("error", "ignore::DeprecationWarning")

ADMIN = """
import asyncio
import admin
from httpx import ASGITransport, AsyncClient

async def ask(role):
    async def with_session(scope, receive, send):
        await admin.app({**scope, "session": {"role": role}}, receive, send)

    transport = ASGITransport(with_session)
    async with AsyncClient(transport=transport, base_url="https://shop") as client:
        return [(await client.get(path)).status_code for path in ("/watch/", "/qsession/")]

assert asyncio.run(ask("admin")) == [200, 403]
assert asyncio.run(ask("guest")) == [403, 403]
"""


def test_the_page_does_what_it_says(tmp_path: Path) -> None:
    """Its programs run, and print figures; an administrator may look from anywhere."""
    assert "'open': " in run_page(PAGE, tmp_path, WARNINGS)
    done = subprocess.run(
        [sys.executable, "-Werror", "-c", ADMIN],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_the_pictures_are_small() -> None:
    """The page loads quickly."""
    found = list((ROOT / "docs" / "images").glob("dashboard-*.png"))
    assert len(found) == 3
    assert all(each.stat().st_size < 150_000 for each in found)
