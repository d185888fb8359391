"""docs/howto/litestar.md: its application, commands and statuses are what it says."""

from __future__ import annotations

import subprocess
import sys

import pytest
from folders import ROOT
from test_readme import run_page

pytest.importorskip("litestar")
pytest.importorskip("advanced_alchemy")
PAGE = ROOT / "docs" / "howto" / "litestar.md"
# advanced-alchemy uses what SQLAlchemy 2.1 deprecates.
WARNINGS = ("error", "ignore::DeprecationWarning")

STATUSES = """
import asyncio
from advanced_alchemy.extensions.litestar import SQLAlchemyPlugin, providers
from advanced_alchemy.repository import SQLAlchemyAsyncRepository
from litestar import Litestar, post
from litestar.testing import AsyncTestClient
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
import app as page
from app import Counter, app, config
from qsession import ConflictError

class Counters(SQLAlchemyAsyncRepository[Counter]):
    model_type = Counter

@post("/by-repository/{number:int}")
async def by_repository(db_session: AsyncSession, number: int) -> None:
    repository = Counters(session=db_session)
    counter = await repository.get(number)
    counter.value += await page.step()
    await repository.update(counter)
    await db_session.commit()

app.register(by_repository)

async def somebody_else_counts():
    async with config.get_session() as other:
        await other.execute(text("UPDATE counter SET value = value + 10"))
        await other.commit()
    return 1

async def one():
    return 1

async def main():
    async with AsyncTestClient(app) as client:
        number = (await client.post("/counters")).json()
        paths = [f"/counters/{number}/add", f"/by-repository/{number}"]
        value = 0
        for path in paths:
            page.step = somebody_else_counts
            answer = await client.post(path)
            value += 10  # the other one's; nothing of this one
            assert answer.status_code == 409, answer.text
            assert answer.json()["detail"].endswith("try again.")
            assert (await client.get("/counters")).json() == [value]
            page.step = one
            assert (await client.post(path)).status_code == 201
            value += 1
            assert (await client.get("/counters")).json() == [value]
        async with config.get_engine().begin() as holder:
            await holder.execute(text("UPDATE counter SET value = 7"))
            for path in paths:
                answer = await client.post(path)
                assert answer.status_code == 503, answer.text
                assert answer.headers["Retry-After"] == "1"
            await holder.rollback()
        assert (await client.post("/counters/99/add")).status_code == 500
        assert (await client.post("/by-repository/99")).status_code == 404

asyncio.run(main())
"""

SWALLOWED = """
import asyncio
from advanced_alchemy.extensions.litestar import SQLAlchemyAsyncConfig, SQLAlchemyPlugin
from litestar import Litestar, post
from litestar.testing import AsyncTestClient
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from app import Counter

config = SQLAlchemyAsyncConfig(
    connection_string="sqlite+qsession:///app.db", before_send_handler="autocommit"
)

@post("/add")
async def add(db_session: AsyncSession) -> None:
    counter = await db_session.get_one(Counter, 1)
    async with config.get_session() as other:
        await other.execute(text("UPDATE counter SET value = 10"))
        await other.commit()
    counter.value += 1

async def main():
    app = Litestar([add], plugins=[SQLAlchemyPlugin(config=config)])
    async with AsyncTestClient(app) as client:
        assert (await client.post("/add")).status_code == 201
    async with config.get_session() as look:
        assert await look.scalar(text("SELECT value FROM counter")) == 10
    await config.get_engine().dispose()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder with the application and the migrations that the page makes."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("DATABASE_URL", raising=False)
        run_page(PAGE, folder, WARNINGS)
    return folder


@pytest.fixture
def page_was_run(made, monkeypatch):
    """That is the working folder."""
    monkeypatch.chdir(made)


def run(program):
    """A program beside the application of the page."""
    done = subprocess.run(
        [sys.executable, *(f"-W{each}" for each in WARNINGS), "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_statuses(page_was_run, monkeypatch):
    """A conflict is 409 and a turn that does not come is 503, also through a repository."""
    monkeypatch.setenv("DATABASE_URL", "sqlite+qsession:///new.db?queue_timeout=0.05")
    run(STATUSES)


def test_what_autocommit_hides(page_was_run):
    """What the page warns of: the answer is 201, and nothing was written."""
    run(SWALLOWED)


def test_workers_that_start_at_once(made, page_was_run, monkeypatch):
    """Four commands on a new file, as the page makes migrations, and with a block."""
    (migration,) = (made / "migrations" / "versions").glob("2*.py")
    plain = migration.read_text()
    assert "autocommit_block" not in plain
    call = "        schema_upgrades()\n"
    block = "        with op.get_context().autocommit_block():\n    " + call
    for number, text in enumerate((plain, plain.replace(call, block))):
        migration.write_text(text)
        monkeypatch.setenv("DATABASE_URL", f"sqlite+qsession:///workers{number}.db")
        command = ["litestar", "--app", "app:app", "database", "upgrade", "--no-prompt"]
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", *command],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for _ in range(4)
        ]
        for worker in workers:
            said, _ = worker.communicate(timeout=60)
            assert worker.returncode == 0, said
