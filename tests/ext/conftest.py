"""Fixtures for the tests of more than one integration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from server_databases import database_on


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgresql", marks=pytest.mark.servers),
        pytest.param("mysql", marks=pytest.mark.servers),
    ]
)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path / 'app.db'}"
        return
    with database_on(request.param) as url:
        yield url.render_as_string(hide_password=False)


@pytest.fixture
def postgresql() -> Iterator[str]:
    """An empty database on PostgreSQL."""
    with database_on("postgresql") as url:
        yield url.render_as_string(hide_password=False)
