"""What makes a transaction run again: a conflict, whatever a library has made of the error."""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import exc, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from qsession import ConflictError, QSession, create_async_engine, create_pool
from qsession.session import retry
from qsession.session.maker import SessionMaker

Group: Any = (
    getattr(builtins, "ExceptionGroup", None) or import_module("exceptiongroup").ExceptionGroup
)


class Base(DeclarativeBase):
    """Of the tables of this module."""


class Item(Base):
    """A row that two transactions change."""

    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    stock: Mapped[int] = mapped_column(default=0)


class RepositoryError(Exception):
    """What a library makes of the errors of SQLAlchemy."""


def raised(raising: Callable[[], None]) -> Exception:
    """The error that a function raises."""
    try:
        raising()
    except Exception as error:
        return error
    raise AssertionError


def lost() -> None:
    """What the driver below raises."""
    raise ConflictError("lost")


def wrap_on_purpose() -> None:
    """``raise ... from``."""
    try:
        lost()
    except ConflictError as error:
        raise RepositoryError from error


def wrap_by_the_way() -> None:
    """An error that is raised while another one is handled."""
    try:
        lost()
    except ConflictError:
        raise RepositoryError  # noqa: B904


def hide_it() -> None:
    """``raise ... from None``."""
    try:
        lost()
    except ConflictError:
        raise RepositoryError from None


def wrap_twice() -> None:
    """A library on a library."""
    try:
        wrap_by_the_way()
    except RepositoryError as error:
        raise RuntimeError from error


@pytest.mark.parametrize("wrap", [wrap_on_purpose, wrap_by_the_way, hide_it, wrap_twice])
def test_a_conflict_is_found_behind_other_errors(wrap: Callable[[], None]) -> None:
    """Whatever an error comes from counts."""
    assert retry.is_conflict(raised(wrap))


def test_other_errors_are_no_conflicts() -> None:
    """An error of the same kind that comes of something else; one that comes of itself."""
    other = RepositoryError()
    other.__cause__ = exc.OperationalError(None, None, ValueError("x"))
    assert not retry.is_conflict(other)
    first, second = ValueError(1), ValueError(2)
    first.__context__, second.__context__ = second, first
    assert not retry.is_conflict(first)


def test_a_group_is_a_conflict_if_each_of_its_errors_is() -> None:
    """Also where each is wrapped, or the group is. On Python 3.10 it is that of a package."""
    plain, wrapped = raised(lost), raised(wrap_on_purpose)
    group = Group("two tasks", [plain, wrapped, wrapped])
    outer = RepositoryError()
    outer.__cause__ = group
    assert retry.is_conflict(group)
    assert retry.is_conflict(outer)
    assert not retry.is_conflict(Group("both", [plain, ValueError()]))


@pytest.mark.parametrize("kind", [ConflictError, ValueError])
def test_an_error_that_comes_of_the_group_it_is_in(kind: type[Exception]) -> None:
    """As Starlette raises the only error of a task group: the chain has a circle."""
    wrapper, error = RepositoryError(), kind("x")
    wrapper.__cause__ = error
    group = Group("one task", [wrapper])
    error.__context__ = group
    assert retry.is_conflict(group) == retry.is_conflict(wrapper) == (kind is ConflictError)


@pytest.fixture
async def maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SessionMaker]:
    """Sessions of a file with one item; the pauses between two attempts last no time."""
    monkeypatch.setattr(retry, "_jitter", lambda _low, _high: 0)
    maker = SessionMaker(f"sqlite+aiosqlite:///{tmp_path}/app.db")
    async with maker.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with maker.begin() as s:
        s.add(Item(id=1))
    yield maker
    await maker.dispose()


async def lose(s: QSession) -> None:
    """Meet a conflict in a session."""

    await s.run_sync(lambda _session: lost())


async def test_a_session_knows_that_its_transaction_has_lost(maker: SessionMaker) -> None:
    """A function that swallows the conflict, and raises something else later, is run again."""
    attempts = 0

    async def change(s: QSession) -> None:
        nonlocal attempts
        attempts += 1
        (await s.get_one(Item, 1)).stock += 1
        if attempts == 1:
            with contextlib.suppress(ConflictError):
                await lose(s)
            raise RepositoryError

    await maker.run(change)
    assert attempts == 2
    async with maker.reader() as s:
        assert await s.scalar(select(Item.stock)) == 1


async def test_after_a_rollback_the_conflict_is_over(maker: SessionMaker) -> None:
    """What fails in the transaction that follows has nothing to do with it."""
    attempts = 0

    async def change(s: QSession) -> None:
        nonlocal attempts
        attempts += 1
        with pytest.raises(ConflictError):
            await lose(s)
        assert s.in_conflict
        await s.rollback()
        assert not s.in_conflict
        raise RepositoryError

    with pytest.raises(RepositoryError):
        await maker.run(change)
    assert attempts == 1


async def test_the_pool_runs_again_behind_a_wrapper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`AsyncConnectionPool.run` goes by the same rule."""
    monkeypatch.setattr(retry, "_jitter", lambda _low, _high: 0)
    attempts = 0

    async def change(_connection: object) -> str:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            wrap_on_purpose()
        return "done"

    async with create_pool(f"sqlite:///{tmp_path}/app.db") as pool:
        assert await pool.run(change) == "done"
    assert attempts == 2


async def test_a_real_conflict_that_a_library_wraps_is_run_again(maker: SessionMaker) -> None:
    """What the transaction had read is changed by another one, and the flush says so."""
    engine = create_async_engine(maker.engine.url)
    for _ in range(20):  # so that the read of an `auto` transaction does not wait for its turn
        async with engine.connect() as connection:
            await connection.execute(select(Item.stock))
    others = SessionMaker()
    others.configure(bind=engine, access="auto")
    attempts = 0

    async def change(s: QSession) -> None:
        nonlocal attempts
        attempts += 1
        stock = (await s.execute(select(Item.stock))).scalar_one()
        if attempts == 1:
            async with maker.begin() as other:
                (await other.get_one(Item, 1)).stock += 10
        try:
            await s.merge(Item(id=1, stock=stock + 1))
            await s.flush()
        except exc.SQLAlchemyError as error:
            raise RepositoryError("it failed") from error

    await others.run(change)
    assert attempts == 2
    async with maker.reader() as s:
        assert await s.scalar(select(Item.stock)) == 11
    await engine.dispose()


async def flush(s: QSession) -> None:
    """Hide the error, and say nothing: SQLAlchemy would end the block without a COMMIT."""
    with contextlib.suppress(ConflictError):
        await s.flush()


async def on_the_connection(s: QSession) -> None:
    """Meet the conflict beside the session, and raise another error that knows nothing of it."""
    connection = await s.connection()
    with contextlib.suppress(ConflictError):
        await connection.execute(update(Item).values(stock=0))
    raise RepositoryError


async def in_a_function(s: QSession) -> None:
    """Meet the conflict in the synchronous session."""

    def change(inner: Session) -> None:
        with contextlib.suppress(ConflictError):
            inner.flush()

    await s.run_sync(change)
    raise RepositoryError


@pytest.mark.parametrize("hide", [flush, on_the_connection, in_a_function])
async def test_a_conflict_that_is_hidden(
    maker: SessionMaker, hide: Callable[[QSession], Awaitable[None]]
) -> None:
    """The transaction knows of it, and cannot be committed: what `run` returns is committed."""
    attempts = 0

    async def change(s: QSession) -> None:
        nonlocal attempts
        attempts += 1
        item = await s.get_one(Item, 1)
        if attempts == 1:
            async with maker.begin() as other:
                (await other.get_one(Item, 1)).stock += 10
        item.stock += 1
        if attempts == 1:
            await hide(s)

    others = SessionMaker()
    others.configure(bind=maker.engine, access="auto")
    await others.run(change)
    assert attempts == 2
    async with maker.reader() as s:
        assert await s.scalar(select(Item.stock)) == 11
