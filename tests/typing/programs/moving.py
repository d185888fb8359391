"""Migrations, copies and backups from code."""

from __future__ import annotations

import asyncio
from pathlib import Path

from alembic.config import Config
from sqlalchemy import MetaData
from sqlalchemy.orm import DeclarativeBase
from typing_extensions import assert_type

from qsession import CopyError, copy, create_async_engine, migrate, upgrade
from qsession.tools.backup import back_up
from qsession.transfer.events import Progress, Report


class Base(DeclarativeBase):
    """The tables."""


def show(progress: Progress) -> None:
    """Told after each batch."""
    print(progress.stage.value, progress.table, progress.done / progress.total)


def env() -> None:
    """The whole of env.py."""
    migrate.run(Base.metadata, compare_server_default=True)
    migrate.run([Base.metadata, MetaData()])


async def main() -> None:
    """At the start of an application, and when it moves."""
    engine = create_async_engine("sqlite+aiosqlite:///app.db")
    await upgrade(engine=engine, config=Path("alembic.ini"), backup=Path("before.db"))
    await upgrade("+1", url="sqlite:///app.db", config=Config("alembic.ini"))
    assert_type(back_up("app.db", Path("copy.db"), replace=True), tuple[str, ...])
    try:
        report = await copy(
            "sqlite:///app.db", engine.url, metadata=Base, verify=True, progress=show
        )
    except CopyError as error:
        for problem in error.problems:
            print(problem.table, problem.row, problem.reason)
        for (table, column, reason), number in error.counts.items():
            print(table, column, reason, number)
        raise
    assert_type(report, Report)
    assert_type([each.rows for each in report.tables], list[int])
    await copy("app.db", "other.db", metadata="models:Base")
    await copy("app.db", "other.db", metadata=Base.metadata, check=True)


asyncio.run(main())


async def mistakes() -> None:
    """Each line is one."""
    await copy("app.db")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await copy("app.db", "b.db", metadata=7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await upgrade(url=7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await upgrade(config=7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
