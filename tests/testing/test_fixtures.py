"""The fixtures for pytest, in small projects that run in a process of their own."""

from __future__ import annotations

import os

import pytest
from folders import ROOT

pytest_plugins = ["pytester"]

MODELS = """
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from qsession import qsession

class Base(DeclarativeBase):
    pass

class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    stock: Mapped[int]

async def add(stock):
    async with qsession.begin() as s:
        s.add(Item(stock=stock))

async def stocks():
    async with qsession.reader() as s:
        return list(await s.scalars(select(Item.stock)))
"""

CONFTEST = """
import pytest

@pytest.fixture(scope="session")
def qsession_metadata():
    from models import Base
    return Base.metadata
"""

ASYNC = """
import asyncio
import pytest
from models import Item, add, stocks
from qsession import qsession
from qsession.testing import assert_free, settled
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession
{mark}

@pytest.fixture
def free(qsession_path):
    "Behind the fixtures that came later: nobody holds anything."
    yield
    assert_free(qsession_path)

async def test_maker(free, qsession_maker, qsession_engine):
    assert qsession_maker is qsession and qsession.engine is qsession_engine
    await asyncio.gather(*(add(n) for n in range(5)))
    assert sorted(await stocks()) == [0, 1, 2, 3, 4]

async def test_each_has_a_database_of_its_own(free, qsession_maker):
    assert await stocks() == []

async def test_session(free, qsession_session, qsession_engine):
    qsession_session.add(Item(stock=1))
    await qsession_session.commit()
    async with AsyncSession(qsession_engine) as other:
        assert list(await other.scalars(select(Item.stock))) == [1]

async def test_left_in_the_middle(free, qsession_session):
    qsession_session.add(Item(stock=1))
    await qsession_session.flush()

async def test_left_waiting(free, qsession_engine, qsession_session):
    qsession_session.add(Item(stock=1))
    await qsession_session.flush()
    async def write():
        async with qsession_engine.begin() as connection:
            await connection.execute(text("DELETE FROM items"))
    waiting = asyncio.create_task(write())
    while not qsession_engine.stats().waiting:
        await asyncio.sleep(0)
    waiting.cancel()

@pytest.fixture
def qsession_options(request):
    return getattr(request, "param", {{}})

@pytest.mark.parametrize("qsession_options", [{{"access": "read"}}], indirect=True)
async def test_options(free, qsession_engine):
    from qsession import ReadOnlyError
    with pytest.raises(ReadOnlyError):
        async with qsession_engine.begin() as connection:
            await connection.execute(text("DELETE FROM items"))

def test_afterwards_the_maker_is_as_it_was():
    assert qsession.kw["bind"] is None
"""

SYNCHRONOUS = """
import warnings
from fastapi import FastAPI
from models import Item, add, stocks
from sqlalchemy import select
from sqlalchemy.orm import Session
from qsession import create_async_engine, qsession
from qsession.testing import OtherLoop

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of Starlette, about httpx
    from fastapi.testclient import TestClient

def test_an_application_in_another_loop(qsession_maker, qsession_sync_engine):
    app = FastAPI()
    app.post("/items")(add)
    with TestClient(app) as client:
        for stock in (1, 2):
            assert client.post(f"/items?stock={stock}").status_code == 200
        with Session(qsession_sync_engine) as s:
            assert list(s.scalars(select(Item.stock))) == [1, 2]
            s.add(Item(stock=3))
            s.commit()
        assert client.portal.call(stocks) == [1, 2, 3]

def test_by_the_url(qsession_url):
    async def write():
        engine = create_async_engine(qsession_url)
        async with engine.begin() as connection:
            await connection.execute(Item.__table__.insert(), {"stock": 1})
        await engine.dispose()
    with OtherLoop() as other:
        other.run(write)

def test_an_asyncio_engine_without_a_plugin(qsession_maker):
    with OtherLoop() as other:
        other.run(add, 1)
    with OtherLoop() as other:
        assert other.run(stocks) == [1]
"""

EACH = """
import pytest

@pytest.mark.parametrize("number", range(8))
def test_each(qsession_sync_engine, qsession_template, number, worker_id):
    assert worker_id != "master"
    with qsession_sync_engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO items (stock) VALUES (1)")
        assert connection.exec_driver_sql("SELECT count(*) FROM items").scalar() == 1
"""

STRANGER = """
import sys

def test_nothing_was_imported():
    heavy = {"qsession", "sqlalchemy", "alembic", "greenlet", "aiosqlite"}
    assert not heavy & {name.partition(".")[0] for name in sys.modules}
    assert "pytest_qsession" in sys.modules
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder with models, in which tests find this checkout and its fixtures."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(pytester.path)]))
    monkeypatch.setenv("PYTEST_PLUGINS", "pytest_qsession")  # which need not be installed
    monkeypatch.delenv("QSESSION_URL", raising=False)
    pytester.makepyfile(models=MODELS)
    pytester.makeconftest(CONFTEST)
    return pytester


def passes(project: pytest.Pytester, number: int, *arguments: str) -> None:
    """All tests of the project pass, without a warning."""
    fixed = [
        "-Werror",
        "-o",
        "asyncio_default_fixture_loop_scope=function",
        "-p",
        "no:cacheprovider",
    ]
    done = project.runpytest_subprocess(*fixed, *arguments)
    done.assert_outcomes(passed=number)
    assert done.ret == 0


ANYIO = "pytestmark = pytest.mark.anyio\nanyio_backend = pytest.fixture(lambda: 'asyncio')"


@pytest.mark.parametrize(
    ("mark", "arguments"),
    [
        pytest.param("", ["--asyncio-mode=auto"], id="pytest-asyncio, auto"),
        pytest.param("pytestmark = pytest.mark.asyncio", [], id="pytest-asyncio, strict"),
        pytest.param(ANYIO, [], id="AnyIO"),
    ],
)
def test_async_tests(project: pytest.Pytester, mark: str, arguments: list[str]) -> None:
    """Under each plugin the engine and the sessions work, and leave nothing behind.

    Also those that a test leaves in the middle of a transaction, whose loop is closed by then.
    """
    text = ASYNC.format(mark=mark)
    if "asyncio" in mark:  # which warns of a mark on a plain function
        text = text.replace("def test_afterwards", "async def test_afterwards")
    project.makepyfile(test_shop=text)
    passes(project, 7, *arguments)


def test_synchronous_tests(project: pytest.Pytester) -> None:
    """No plugin for asyncio is needed: not for a client, nor for an engine in another loop."""
    project.makepyfile(test_shop=SYNCHRONOUS)
    plain = ["-Werror", "-p", "no:asyncio", "-p", "no:anyio", "-p", "no:cacheprovider"]
    project.runpytest_subprocess(*plain).assert_outcomes(passed=3)


def test_with_xdist(project: pytest.Pytester) -> None:
    """Each worker has a template of its own, and each test a database of its own."""
    project.makepyfile(test_shop=EACH)
    passes(project, 8, "-n", "2")


def test_suites_that_do_not_use_them_pay_nothing(project: pytest.Pytester) -> None:
    """They import neither qsession nor SQLAlchemy."""
    project.makeconftest("")
    project.makepyfile(test_stranger=STRANGER)
    passes(project, 1)


def test_no_tables(project: pytest.Pytester) -> None:
    """Who has not said which tables there are is told how to."""
    project.makeconftest("")
    project.makepyfile(test_shop="def test_it(qsession_path): pass")
    done = project.runpytest_subprocess()
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["E * ValueError: there are no tables *qsession_metadata*"])


MIGRATED = """
from sqlalchemy import text

def test_migrated(qsession_sync_engine):
    with qsession_sync_engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "0001"
        assert connection.scalar(text("SELECT name FROM shops")) == "ours"

async def test_a_fixture_that_is_asked_for_in_a_loop(request):
    path = request.getfixturevalue("qsession_path")
    assert path.exists()
"""

REVISION = """
from alembic import op
revision = "0001"
down_revision = None
def upgrade():
    op.execute("CREATE TABLE shops (name TEXT)")
    op.execute("INSERT INTO shops VALUES ('ours')")
"""


def test_migrated_databases(project: pytest.Pytester) -> None:
    """The setting names an alembic.ini, whose migrations make the template."""
    from qsession.commands.init import init

    init(project.path / "db", url="sqlite:///other.db", models="models:Base")
    (project.path / "db" / "migrations" / "versions" / "0001.py").write_text(REVISION)
    project.makepyfile(test_shop=MIGRATED)
    project.makeini("[pytest]\nqsession_alembic = db/alembic.ini")
    for order in ("test_shop.py", "test_shop.py::test_a_fixture_that_is_asked_for_in_a_loop"):
        passes(project, 1 + (order == "test_shop.py"), "--asyncio-mode=auto", order)
    assert not (project.path / "other.db").exists()


OWN = """
import sqlite3
import pytest

@pytest.fixture(scope="session")
def qsession_template(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "own.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE own (a)")
    connection.close()
    return path

def test_it(qsession_sync_engine):
    with qsession_sync_engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT * FROM own").all() == []
"""


def test_a_template_of_your_own(project: pytest.Pytester) -> None:
    """Whatever file it returns is copied."""
    project.makepyfile(test_shop=OWN)
    passes(project, 1)
