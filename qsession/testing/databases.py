"""Databases for tests: a file with all tables is made once, and copied for each test."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, MetaData, make_url

from qsession.engine import create_engine
from qsession.migrate import upgrade
from qsession.testing.loops import OtherLoop

if TYPE_CHECKING:
    from alembic.config import Config


def database_url(path: str | os.PathLike[str], **settings: Any) -> str:
    """The URL of a SQLite file, for each way in. ``settings`` become parameters of the URL.

    Raises `ValueError` for a question mark in the path with SQLAlchemy 2.0, whose URLs end there.
    """
    query = {name: str(value) for name, value in settings.items()}
    url = URL.create("sqlite+qsession", database=os.fspath(path), query=query)
    text = url.render_as_string(hide_password=False)
    if make_url(text) != url:
        raise ValueError(f"{os.fspath(path)!r} cannot be written in a URL: rename it")
    return text


def create_database(
    path: str | os.PathLike[str],
    metadata: MetaData | None = None,
    *,
    alembic: str | os.PathLike[str] | Config | None = None,
) -> None:
    """Make a SQLite file with the tables of ``metadata``, by Alembic if ``alembic`` is given.

    ``alembic`` is the path of an ini file or a ``Config``; its ``env.py`` must call
    `qsession.migrate.run`. It works whether or not an event loop runs, and stops the calling thread
    meanwhile. Raises the errors of the migration, and `ValueError` if there would be no table.
    """
    if alembic is not None:
        with OtherLoop() as other:
            other.run(upgrade, url=database_url(path), config=alembic)
        return
    if metadata is None or not metadata.tables:
        raise ValueError(
            "there are no tables for the database of the tests: import the models first, and give "
            "their MetaData, or an alembic.ini. With pytest: the fixture qsession_metadata, or the "
            "setting qsession_alembic"
        )
    engine = create_engine(database_url(path))
    try:
        metadata.create_all(engine)
    finally:
        engine.dispose()


def copy_database(template: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Copy a SQLite file that nobody has open.

    Raises `ValueError` if it has a WAL, as then somebody has, and the file is not the whole.
    """
    wal = Path(f"{os.fspath(template)}-wal")
    if wal.exists() and wal.stat().st_size:
        raise ValueError(f"{os.fspath(template)!r} is still open: dispose of its engine first")
    shutil.copyfile(template, path)
