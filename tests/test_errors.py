"""The errors: their tree, how they travel, and what their messages say."""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import exc, select, text
from sqlalchemy.ext.asyncio import AsyncSession

import qsession
from qsession import (
    ConflictError,
    CopyError,
    DurabilityError,
    GroupAborted,
    HoldTimeout,
    NestedWriteError,
    PlainEngineWarning,
    QSessionError,
    QueuedAsyncEngine,
    QueueFull,
    QueueTimeout,
    ReadOnlyError,
    UncommittedChangesWarning,
    create_async_engine,
    errors,
)
from qsession.errors import sqlite_code
from qsession.sqlite.files.explain import explain

TREE: dict[type[BaseException], tuple[type[BaseException], ...]] = {
    QSessionError: (exc.SQLAlchemyError,),
    QueueTimeout: (QSessionError, exc.OperationalError, exc.TimeoutError),
    QueueFull: (QSessionError, exc.OperationalError, exc.TimeoutError),
    NestedWriteError: (QSessionError, exc.InvalidRequestError),
    ReadOnlyError: (QSessionError, exc.InvalidRequestError),
    HoldTimeout: (QSessionError, exc.OperationalError),
    DurabilityError: (QSessionError, exc.OperationalError),
    ConflictError: (QSessionError, exc.OperationalError),
    GroupAborted: (QSessionError, exc.OperationalError),
    CopyError: (QSessionError,),
    UncommittedChangesWarning: (UserWarning,),
    PlainEngineWarning: (UserWarning,),
}


def errors_defined() -> set[type[BaseException]]:
    """The classes that errors.py defines."""
    return {
        value
        for value in vars(errors).values()
        if inspect.isclass(value)
        and issubclass(value, BaseException)
        and value.__module__ == errors.__name__
        and not value.__name__.startswith("_")
    }


@pytest.mark.parametrize("error", sorted(errors_defined(), key=lambda each: each.__name__))
def test_the_tree_is_as_drawn(error: type[BaseException]) -> None:
    """Each error is public, is drawn in the docstring, says what it is, and has its bases."""
    assert error.__name__ in qsession.__all__
    assert re.search(rf"── {error.__name__}\b", errors.__doc__ or "")
    assert (error.__doc__ or "").strip().endswith(".")
    for base in TREE.get(error, ()):
        assert issubclass(error, base)
    for base in ("TimeoutError", "InvalidRequestError", "OperationalError"):
        drawn = re.search(
            rf"── {error.__name__} +\(also sqlalchemy\.exc\.(\w+ and )?{base}\b",
            errors.__doc__ or "",
        )
        assert bool(drawn) == issubclass(error, getattr(exc, base)), base


@pytest.mark.parametrize("error", [each for each in TREE if not issubclass(each, Warning)])
def test_errors_survive_copying_and_pickling(error: type[BaseException]) -> None:
    """An error that crosses a process border keeps its class and its message."""
    original = error("what happened")
    for again in (copy.copy(original), pickle.loads(pickle.dumps(original))):
        assert type(again) is error
        assert str(again) == str(original) == "what happened"


@pytest.mark.parametrize(
    ("error", "code", "name", "text"),
    [
        (ConflictError, 517, "SQLITE_BUSY_SNAPSHOT", "database is locked: what happened"),
        (QueueTimeout, 5, "SQLITE_BUSY", "database is locked: what happened"),
        (QueueFull, 5, "SQLITE_BUSY", "database is locked: what happened"),
        (HoldTimeout, 516, "SQLITE_ABORT_ROLLBACK", "what happened"),
        (DurabilityError, 1034, "SQLITE_IOERR_FSYNC", "what happened"),
    ],
)
def test_code_that_retries_by_the_code_or_the_text_of_sqlite_understands(
    error: type[exc.OperationalError], code: int, name: str, text: str
) -> None:
    """``orig`` is an error of the driver, with what SQLite has for it; copies keep it."""
    original = error("what happened")
    for each in (original, copy.copy(original), pickle.loads(pickle.dumps(original))):
        assert isinstance(each.orig, sqlite3.OperationalError)
        assert vars(each.orig) == {"sqlite_errorcode": code, "sqlite_errorname": name}
        assert (str(each), str(each.orig)) == ("what happened", text)
        assert sqlite_code(each.orig) == code & 0xFF
        assert (each.statement, each.connection_invalidated) == (None, False)


def test_what_sqlalchemy_and_python_add_to_an_error_stays_with_it() -> None:
    """A detail, as that a flush began by itself, is told, and travels along; so is an attribute."""
    original = ConflictError("it has changed")
    original.add_detail("raised as a result of autoflush")
    vars(original)["attempts"] = 3
    again = pickle.loads(pickle.dumps(original))
    assert str(again) == str(original) == "(raised as a result of autoflush)\nit has changed"
    assert vars(again)["attempts"] == 3
    assert repr(again) == "ConflictError('it has changed')"


def test_a_conflict_on_a_server_keeps_the_error_of_the_driver() -> None:
    """Where there is one, it is ``orig``, with whatever codes its driver gives."""
    driver = RuntimeError("deadlock detected")
    again = copy.copy(ConflictError("it was refused", driver))
    assert again.orig is driver
    assert str(again) == "it was refused"


def test_sqlite_codes() -> None:
    """The primary code is told, from the code where Python has one and else from the text."""
    with (
        closing(sqlite3.connect(":memory:")) as connection,
        pytest.raises(sqlite3.DatabaseError) as caught,
    ):
        connection.execute("PRAGMA query_only=ON")
        connection.execute("CREATE TABLE t (a)")
    assert sqlite_code(caught.value) == errors.SQLITE_READONLY
    assert sqlite_code(sqlite3.OperationalError("database is locked")) == errors.SQLITE_BUSY
    malformed = sqlite3.DatabaseError("malformed database schema (t) - near x: syntax error")
    assert sqlite_code(malformed) == errors.SQLITE_CORRUPT
    assert sqlite_code(sqlite3.OperationalError("something else")) == 0
    assert sqlite_code(ValueError("database is locked")) == 0


def test_explaining_keeps_class_and_code() -> None:
    """An explained error is of the same class, has the same code, and says more."""
    with pytest.raises(sqlite3.OperationalError) as caught:
        sqlite3.connect("/nowhere/a.db")
    explained = explain(caught.value, "/nowhere/a.db")
    assert type(explained) is sqlite3.OperationalError
    assert sqlite_code(explained) == sqlite_code(caught.value) == errors.SQLITE_CANTOPEN
    assert "the folder '/nowhere' does not exist" in str(explained)
    assert explained.__cause__ is caught.value
    for other in (sqlite3.IntegrityError("UNIQUE"), ValueError("x")):
        assert explain(other, "a.db") is other


# What the messages say: what happened, to whom, and what to do.


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[QueuedAsyncEngine]:
    """An engine whose queue soon loses patience, on an empty table ``t``."""
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{tmp_path}/a.db", queue_timeout=0.01, max_waiting=1
    )
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE t (a)"))
    yield engine
    await engine.dispose()


INSERT = "INSERT INTO t VALUES (1)"


def says(error: pytest.ExceptionInfo[Any], *parts: str) -> None:
    """Each part stands in the message, and SQLite's own does not."""
    for part in (*parts,):
        assert part in str(error.value)
    assert "database is locked" not in str(error.value)


async def test_read_only_error(engine: QueuedAsyncEngine) -> None:
    """It names the statement and the ways to write."""
    async with engine.connect() as connection:
        await connection.execution_options(qsession_access="read")
        with pytest.raises(ReadOnlyError) as error:
            await connection.execute(text(INSERT))
    says(error, "access='read' cannot write", INSERT, "Use qsession()")


async def test_nested_write_error(engine: QueuedAsyncEngine) -> None:
    """It names both statements and what to do instead."""
    async with AsyncSession(engine) as outer, AsyncSession(engine) as inner:
        await outer.execute(text(INSERT))
        with pytest.raises(NestedWriteError) as error:
            await inner.execute(text("DELETE FROM t"))
    says(error, "would wait for itself", INSERT, "DELETE FROM t", "use one session for both")


async def test_queue_timeout_and_queue_full(engine: QueuedAsyncEngine) -> None:
    """They name the statement, the limit, and the holder with its place in the code."""

    async def write() -> None:
        async with engine.begin() as connection:
            await connection.execute(text("DELETE FROM t"))

    async with engine.begin() as connection:
        await connection.execute(text(INSERT))
        waiting = asyncio.create_task(write())
        await asyncio.sleep(0)
        while not engine.stats().waiting:
            await asyncio.sleep(0)
        full = asyncio.create_task(write())
        with pytest.raises(QueueFull) as error:
            await full
        says(error, "1 writers are already waiting (max_waiting=1)", "DELETE FROM t", "has written")
        with pytest.raises(QueueTimeout) as error:
            await waiting
        says(error, "not free within 0.01 s", "DELETE FROM t", INSERT, "test_errors.py:")


async def test_conflict_error(engine: QueuedAsyncEngine) -> None:
    """It names the statement that returns something else now, and the ways out."""
    count = text("SELECT count(*) FROM t")
    for _ in range(20):
        async with engine.connect() as connection:
            await connection.execute(count)
    async with engine.connect() as connection:
        assert (await connection.execute(count)).scalar() == 0
        async with engine.begin() as other:
            await other.execute(text(INSERT))
        with pytest.raises(ConflictError) as error:
            await connection.execute(text(INSERT))
        says(error, "SELECT count(*) FROM t", "Nothing was written", "with_for_update()")
        with pytest.raises(ConflictError):
            await connection.execute(select(1))
        await connection.rollback()
        assert (await connection.execute(count)).scalar() == 1


async def test_hold_timeout(tmp_path: Path) -> None:
    """It names the limit and the last statement; nothing of the transaction is left."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/b.db", max_hold=0.001)
    async with engine.connect() as connection:
        await connection.execute(text("CREATE TABLE t (a)"))
        while engine.stats().holder is not None:
            await asyncio.sleep(0)
        with pytest.raises(HoldTimeout) as error:
            await connection.execute(text(INSERT))
        says(error, "max_hold=0.001 s", "CREATE TABLE t (a)", "was rolled back")
        await connection.rollback()
        with pytest.raises(exc.OperationalError, match="no such table"):
            await connection.execute(text("SELECT * FROM t"))
    await engine.dispose()
