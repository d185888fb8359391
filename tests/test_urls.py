"""How the URL of a database may be spelt: the same for every way in."""

from __future__ import annotations

import pytest
import sqlalchemy
from sqlalchemy import make_url

from qsession import create_async_engine, create_engine, create_pool, urls
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


def test_synchronous_engines_keep_the_driver_of_a_server() -> None:
    """One URL of SQLite serves both kinds of engines; on a server the driver says which it is."""
    for given in ("sqlite:///a.db", "sqlite+aiosqlite:///a.db", "sqlite+qsession:///a.db"):
        assert create_engine(given).url.drivername == "sqlite+qsession"
    assert create_engine("postgresql+psycopg://u@h/d").url.drivername == "postgresql+psycopg"


def test_statements_are_compiled_for_a_url_without_an_engine() -> None:
    """Alembic does so to print SQL, and asks for the dialect as a synchronous engine would."""
    dialect = make_url("sqlite+qsession:///a.db").get_dialect()()
    assert str(sqlalchemy.select(sqlalchemy.literal(1)).compile(dialect=dialect))
