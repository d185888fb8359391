"""How the URL of a database may be spelt: the same for every way in."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from qsession import create_async_engine, create_pool, urls
from qsession.commands.target import url_of as command_url
from qsession.session.maker import SessionMaker
from qsession.transfer.options import url_of as copy_url
from qsession.urls import with_driver

SPELLINGS = [
    ("sqlite:///a.db", "sqlite+qsession"),
    ("sqlite+aiosqlite:///a.db", "sqlite+qsession"),
    ("sqlite+qsession:///a.db", "sqlite+qsession"),
    ("postgres://u@h/d", "postgresql+asyncpg"),
    ("postgresql://u@h/d", "postgresql+asyncpg"),
    ("postgresql+psycopg://u@h/d", "postgresql+psycopg"),
    ("mysql://u@h/d", "mysql+asyncmy"),
    ("mariadb://u@h/d", "mariadb+asyncmy"),
]


@pytest.mark.parametrize(("given", "driver"), SPELLINGS)
def test_each_way_in_takes_each_spelling(given: str, driver: str) -> None:
    """None of them connects; each has the same driver."""
    maker = SessionMaker()
    maker.configure(given)
    command = command_url(given)
    assert command is not None
    assert {
        create_async_engine(given).url.drivername,
        create_pool(given).engine.url.drivername,
        maker.engine.url.drivername,
        copy_url(given).drivername,
        command.drivername,
    } == {driver}


def test_a_driver_that_is_installed_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any of them the first is named, in the error that follows."""
    monkeypatch.setattr(urls, "find_spec", lambda name: name == "psycopg")
    assert with_driver("postgres://h/d").drivername == "postgresql+psycopg"
    monkeypatch.setattr(urls, "find_spec", lambda _name: None)
    assert with_driver("postgres://h/d").drivername == "postgresql+asyncpg"
    assert with_driver("mysql://h/d").drivername == "mysql+asyncmy"


def test_what_libpq_calls_sslmode_is_ssl_for_asyncpg() -> None:
    """Everything else of a URL stays as it is."""
    found = with_driver("postgres://u:p%40@h:5/d?sslmode=require&application_name=x")
    assert found == make_url("postgresql+asyncpg://u:p%40@h:5/d?application_name=x&ssl=require")


def test_a_synchronous_engine_of_an_asyncio_url_is_refused(tmp_path: Path) -> None:
    """The error names the URL to give instead, without our settings and without the password."""
    url = f"sqlite+qsession:///{tmp_path}/a.db"
    with pytest.raises(ArgumentError, match=r"create_async_engine\(\)") as caught:
        sqlalchemy.create_engine(f"{url}?durability=normal&timeout=3")
    assert f"give it sqlite:///{tmp_path}/a.db?timeout=3, or" in str(caught.value)


def test_statements_are_compiled_for_a_url_without_an_engine() -> None:
    """Alembic does so to print SQL, and asks for the dialect as a synchronous engine would."""
    dialect = make_url("sqlite+qsession:///a.db").get_dialect()()
    assert str(sqlalchemy.select(sqlalchemy.literal(1)).compile(dialect=dialect))
