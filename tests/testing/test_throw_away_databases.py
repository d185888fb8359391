"""Throw-away databases without pytest, and the look from outside."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import pytest
from cancelling import rows
from sqlalchemy import Column, Integer, MetaData, Table, make_url, text

from qsession import create_async_engine
from qsession.testing import (
    assert_free,
    copy_database,
    create_database,
    database_url,
    foreign_writer,
    settled,
)

METADATA = MetaData()
Table("items", METADATA, Column("id", Integer, primary_key=True))


def test_a_template_is_one_file_and_is_copied(tmp_path: Path) -> None:
    """Nothing lies beside it when it is made, and a copy is in WAL mode already."""
    create_database(tmp_path / "template.db", METADATA)
    assert [each.name for each in tmp_path.iterdir() if "wal" in each.name] == []
    copy_database(tmp_path / "template.db", tmp_path / "copy.db")
    assert rows(tmp_path / "copy.db", "SELECT name FROM sqlite_schema") == [("items",)]
    assert rows(tmp_path / "copy.db", "PRAGMA journal_mode") == [("wal",)]


def test_no_tables(tmp_path: Path) -> None:
    """An empty MetaData is what one gets who forgot to import the models."""
    for metadata in (None, MetaData()):
        with pytest.raises(ValueError, match="import the models first"):
            create_database(tmp_path / "a.db", metadata)
    assert not (tmp_path / "a.db").exists()


def test_a_file_that_somebody_has_open_is_not_copied(tmp_path: Path) -> None:
    """Its last commits are in the WAL: a copy of the file alone would lack them."""
    create_database(tmp_path / "a.db", METADATA)
    with closing(sqlite3.connect(tmp_path / "a.db")) as user:
        user.execute("INSERT INTO items VALUES (1)")
        user.commit()
        with pytest.raises(ValueError, match="still open"):
            copy_database(tmp_path / "a.db", tmp_path / "b.db")
    copy_database(tmp_path / "a.db", tmp_path / "b.db")
    assert rows(tmp_path / "b.db", "SELECT id FROM items") == [(1,)]


@pytest.mark.parametrize("name", ["a.db", "a b#&%.db"])
async def test_the_url_of_any_name(tmp_path: Path, name: str) -> None:
    """With settings as parameters; names that a URL would read otherwise are quoted."""
    url = database_url(tmp_path / name, queue_timeout=5)
    assert make_url(url).query == {"queue_timeout": "5"}
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE t (a)"))
    await engine.dispose()
    assert (tmp_path / name).exists()


def test_a_name_that_a_url_cannot_have() -> None:
    """It is quoted, or refused by SQLAlchemy 2.0; never is another file opened."""
    with suppress(ValueError):
        assert make_url(database_url("a?b.db", queue_timeout=5)).database == "a?b.db"


def test_a_file_that_is_not_free(tmp_path: Path) -> None:
    """Locked, missing or damaged: each is an AssertionError that says so."""
    path = tmp_path / "a.db"
    with pytest.raises(AssertionError, match="unable to open"):
        assert_free(path)
    assert not path.exists()
    create_database(path, METADATA)
    assert_free(path)
    with foreign_writer(path), pytest.raises(AssertionError, match="locked"):
        assert_free(path)
    path.write_bytes(b"no database" * 100)
    with pytest.raises(AssertionError, match="not a database"):
        assert_free(path)


async def test_an_engine_that_is_not_at_rest(tmp_path: Path) -> None:
    """It is waited for, and told of when that takes too long."""
    create_database(tmp_path / "a.db", METADATA)
    engine = create_async_engine(database_url(tmp_path / "a.db"))
    async with engine.begin() as connection:
        await connection.execute(text("DELETE FROM items"))
        with pytest.raises(AssertionError, match=r"1 connections are in use.*DELETE FROM items"):
            await settled(engine, timeout=0)
    await settled(engine)
    await engine.dispose()
