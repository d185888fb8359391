"""The database and the options from Alembic's configuration."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from qsession.urls import with_driver

if TYPE_CHECKING:
    from alembic.config import Config

_ADVANCED_ALCHEMY = {
    "version_table": "version_table_name",
    "version_table_schema": "version_table_schema",
    "version_table_pk": "version_table_pk",
    "render_as_batch": "render_as_batch",
    "compare_type": "compare_type",
    "user_module_prefix": "user_module_prefix",
}
"""Options of ``context.configure``, and their names in advanced-alchemy's ``Config``."""


def database_of(config: Config) -> URL | AsyncEngine:
    """The database, from the first of these that is set.

    ``-x url=...``, the environment variable ``QSESSION_URL``, the engine in advanced-alchemy's
    ``Config``, and ``sqlalchemy.url`` in the ini file. Raises ``alembic.util.CommandError`` if none
    is set.
    """
    from alembic import util

    arguments = getattr(config.cmd_opts, "x", None) or ()
    given = [value for key, _, value in (each.partition("=") for each in arguments) if key == "url"]
    url: str | URL | None = (given[-1] if given else None) or os.environ.get("QSESSION_URL")
    if not url:
        engine = _engine_of(config)
        if isinstance(engine, AsyncEngine):
            return engine
        url = config.get_main_option("sqlalchemy.url") if engine is None else engine.url
    if not url:
        raise util.CommandError(
            "no database is configured: pass -x url=..., set QSESSION_URL, or set sqlalchemy.url "
            "in the ini file"
        )
    return with_driver(url)


def options_of(config: Config) -> dict[str, Any]:
    """The options for ``context.configure`` in advanced-alchemy's ``Config``, if it is one."""
    if _engine_of(config) is None:
        return {}
    return {
        option: getattr(config, name)
        for option, name in _ADVANCED_ALCHEMY.items()
        if hasattr(config, name)
    }


def _engine_of(config: Config) -> Engine | AsyncEngine | None:
    engine = getattr(config, "engine", None)
    return engine if isinstance(engine, (Engine, AsyncEngine)) else None
