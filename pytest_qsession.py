"""Fixtures for pytest: a throw-away database for each test, and engines and sessions on it.

All of them are plain fixtures, so they work with pytest-asyncio, with AnyIO's plugin and with
neither. pytest loads this module in every suite of an environment that has qsession. It is no part
of the package, and imports it inside the fixtures, so that suites without them pay nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from sqlalchemy import Engine, MetaData

    from qsession import QSession, QueuedAsyncEngine
    from qsession.session import SessionMaker


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "qsession_alembic",
        "path of alembic.ini from the root folder: the databases of the tests are migrated with it",
        default="",
    )


@pytest.fixture(scope="session")
def qsession_metadata() -> MetaData:
    """The tables of the databases, unless they are migrated. By default those of `qsession.Base`.

    Override it if your models have another base.
    """
    from qsession import Base

    return Base.metadata


@pytest.fixture(scope="session")
def qsession_template(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The file that is copied for each test; made once a session, or once a worker of pytest-xdist.

    With the setting ``qsession_alembic`` it is migrated to the head, else it gets the tables of
    `qsession_metadata`. Override it to add rows that all tests need, or to make it in another way.
    """
    from qsession.testing import create_database

    path = tmp_path_factory.mktemp("qsession") / "template.db"
    if ini := request.config.getini("qsession_alembic"):
        create_database(path, alembic=request.config.rootpath / ini)
    else:
        create_database(path, request.getfixturevalue("qsession_metadata"))
    return path


@pytest.fixture
def qsession_path(qsession_template: Path, tmp_path: Path) -> Path:
    """The file of this test: a new copy of the template."""
    from qsession.testing import copy_database

    path = tmp_path / "qsession.db"
    copy_database(qsession_template, path)
    return path


@pytest.fixture
def qsession_url(qsession_path: Path) -> str:
    """The URL of the file of this test, for every way in."""
    from qsession.testing import database_url

    return database_url(qsession_path)


@pytest.fixture
def qsession_options() -> dict[str, Any]:
    """The keyword arguments of both engines; none by default. Override it for other settings."""
    return {}


@pytest.fixture
def qsession_engine(
    qsession_url: str, qsession_options: dict[str, Any]
) -> Iterator[QueuedAsyncEngine]:
    """An asyncio engine on the file of this test, for any event loop. It is disposed of."""
    from qsession import create_async_engine
    from qsession.testing import OtherLoop

    engine = create_async_engine(qsession_url, **qsession_options)
    yield engine
    with OtherLoop() as other:  # the loop of the test may be closed, or another one
        other.run(engine.dispose)


@pytest.fixture
def qsession_sync_engine(qsession_url: str, qsession_options: dict[str, Any]) -> Iterator[Engine]:
    """A synchronous engine on the file of this test. It is disposed of."""
    from qsession import create_engine

    engine = create_engine(qsession_url, **qsession_options)
    yield engine
    engine.dispose()


@pytest.fixture
def qsession_maker(qsession_engine: QueuedAsyncEngine) -> Iterator[SessionMaker]:
    """`qsession`, whose sessions use the file of this test. Afterwards it is as it was."""
    from qsession import qsession

    before = dict(qsession.kw)
    qsession.configure(bind=qsession_engine)
    yield qsession
    qsession.kw.clear()
    qsession.kw.update(before)


@pytest.fixture
def qsession_session(qsession_engine: QueuedAsyncEngine) -> Iterator[QSession]:
    """A session on the file of this test. It is closed; what was not committed is rolled back."""
    from qsession import QSession
    from qsession.testing import OtherLoop

    session = QSession(qsession_engine)
    yield session
    with OtherLoop() as other:
        other.run(session.close)
