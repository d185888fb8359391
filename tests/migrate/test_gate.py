"""Processes that migrate one file take turns, also where a migration commits in between."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from project import FAMILY, Project
from sqlalchemy import text

from qsession import QueueTimeout, create_async_engine
from qsession.migrate import gate, patience
from qsession.migrate.migration import upgrade

IN_A_BLOCK = """
    look = op.get_context().config.attributes["look"]
    look()
    with op.get_context().autocommit_block():
        look()
        op.create_table("item", sa.Column("id", sa.Integer, primary_key=True))
        look()
    look()
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A folder with migrations; each test has a database of its own."""
    monkeypatch.delenv("QSESSION_URL", raising=False)
    monkeypatch.setattr(sys, "path", sys.path[:])
    return Project(tmp_path)


@contextmanager
def another_process(file: Path) -> Iterator[None]:
    """It migrates: a lock on a file that was opened by itself is another one's."""
    file.touch()
    with gate.one_at_a_time(str(file), 0):
        yield


def is_free(file: Path) -> bool:
    """Whether another process could migrate now."""
    try:
        with another_process(file):
            return True
    except QueueTimeout:
        return False


async def test_the_gate_stays_shut_through_an_autocommit_block(project: Project) -> None:
    """Before the block, in it, and behind it; it opens with the end of the run."""
    seen: list[bool] = []
    project.config.attributes["look"] = lambda: seen.append(is_free(project.file))
    project.add(IN_A_BLOCK)
    await upgrade(config=project.config)
    assert seen == [False] * 4
    assert is_free(project.file)


async def test_the_gate_opens_behind_a_migration_that_fails(project: Project) -> None:
    """Whatever it raises."""
    project.add("raise RuntimeError('no')")
    with pytest.raises(RuntimeError, match="no"):
        await upgrade(config=project.config)
    assert is_free(project.file)


async def test_whoever_waits_at_the_gate_is_in_nobodys_way(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds no turn to write; and when its own comes, it migrates what is still to be done."""
    waits, opened = asyncio.Event(), asyncio.Event()

    async def pause(_seconds: float) -> None:
        waits.set()
        await opened.wait()

    monkeypatch.setattr(patience, "_pause", pause)
    project.add(FAMILY)
    engine = create_async_engine(project.url)
    with another_process(project.file):
        migrating = asyncio.create_task(upgrade(config=project.config, engine=engine))
        await waits.wait()
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE t (a)"))
    opened.set()
    await migrating
    assert project.execute("SELECT name FROM parent") == [("Ann",)]
    await engine.dispose()


async def test_a_wait_at_the_gate_that_lasts_too_long(project: Project) -> None:
    """The error says what went on; nothing was migrated."""
    project.add(FAMILY)
    with another_process(project.file):
        with pytest.raises(QueueTimeout, match=r"has been migrating '.*app.db' for 0.01 s"):
            await upgrade(config=project.config, url=f"{project.url}?queue_timeout=0.01")
    assert "parent" not in "".join(project.dump())


@pytest.mark.parametrize(
    ("query", "options", "seconds"),
    [
        ("", {}, 600),
        ("?queue_timeout=30", {}, 30),
        ("", {"queue_timeout": 7}, 7),
        ("", {"connect_args": {"timeout": 8}}, 8),
        ("", None, 600),
        ("?queue_timeout=30", None, 30),
    ],
)
async def test_how_long_it_waits_at_the_gate(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    query: str,
    options: dict[str, Any] | None,
    seconds: float,
) -> None:
    """Ten minutes, unless its engine or URL says otherwise: a migration may take long."""
    waits: list[float] = []

    @contextmanager
    def noted(_path: str, wait: float) -> Iterator[None]:
        waits.append(wait)
        yield

    monkeypatch.setattr(gate, "one_at_a_time", noted)
    if options is None:
        await upgrade(config=project.config, url=project.url + query)
    else:
        engine = create_async_engine(project.url + query, **options)
        await upgrade(config=project.config, engine=engine)
        await engine.dispose()
    assert waits == [seconds]


async def test_a_cancelled_wait_leaves_no_lock(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor a descriptor: the gate opens when the one that has it is through."""
    waits = asyncio.Event()

    async def pause(_seconds: float) -> None:
        waits.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(patience, "_pause", pause)
    project.add(FAMILY)
    with another_process(project.file):
        migrating = asyncio.create_task(upgrade(config=project.config))
        await waits.wait()
        migrating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await migrating
    assert is_free(project.file)


async def test_where_no_lock_file_can_be_made_a_run_goes_on_without(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The turn to write still lets one migrate at a time, in one transaction."""

    def refuse(name: str, *_: Any) -> int:
        raise PermissionError(13, "Permission denied", name)

    monkeypatch.setattr(gate, "LockFile", refuse)
    project.add(FAMILY)
    await upgrade(config=project.config)
    assert project.execute("SELECT name FROM parent") == [("Ann",)]


async def test_looking_does_not_wait(project: Project) -> None:
    """`alembic current` reads, whoever migrates."""
    from alembic import command

    project.add(FAMILY)
    await upgrade(config=project.config)
    with another_process(project.file):
        await asyncio.to_thread(command.current, project.config)
