"""The synchronous engine by itself: it does what the stock one does, and has our settings."""

from __future__ import annotations

import gc
import sqlite3
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Engine, ForeignKey, event, func, insert, select, text, update
from sqlalchemy.exc import ArgumentError, IntegrityError, InvalidRequestError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship
from sqlalchemy.pool import NullPool, QueuePool, StaticPool
from threads import result, start, until

import qsession
from qsession import (
    EngineDraining,
    QueueFull,
    QueueTimeout,
    ReadOnlyError,
    UncommittedChangesWarning,
    create_async_engine,
    create_engine,
)
from qsession.sqlite.synchronous.pool import SynchronousPool

Make = Callable[..., Engine]
NOTE = text("INSERT INTO notes VALUES ('x')")


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "authors"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    books: Mapped[list[Book]] = relationship(back_populates="author")


class Book(Base):
    __tablename__ = "books"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    author_id: Mapped[int] = mapped_column(ForeignKey("authors.id"))
    author: Mapped[Author] = relationship(back_populates="books")


def notes(engine: Engine) -> int:
    """How many notes there are."""
    with engine.connect() as connection:
        return int(connection.scalar(text("SELECT count(*) FROM notes")) or 0)


def orm(engine: Engine) -> list[Any]:
    """A unit of work, lazy loading, a constraint that fails, a savepoint."""
    seen: list[Any] = []
    with Session(engine) as s:
        s.add(Author(name="ann", books=[Book(title="b"), Book(title="a")]))
        s.commit()
        author = s.scalars(select(Author)).one()
        seen.append(sorted(book.title for book in author.books))
        with s.begin_nested():
            author.name = "bea"
        with pytest.raises(IntegrityError), s.begin_nested():
            s.add(Author(name="bea"))
            s.flush()
        s.commit()
        seen.append(author.name)
        s.execute(update(Author).values(name="cid"))
        s.rollback()
        seen.append(s.scalar(select(Author.name)))
        s.get_one(Author, 1, with_for_update=True).name = "dan"
        s.commit()
    with Session(engine) as s, s.begin():
        s.bulk_insert_mappings(Author.__mapper__, [{"name": str(n)} for n in range(100)])
    return [*seen, orm_names(engine)]


def orm_names(engine: Engine) -> list[str]:
    with Session(engine) as s:
        return list(s.scalars(select(Author.name).order_by(Author.id)))


def core(engine: Engine) -> list[Any]:
    """RETURNING, executemany, lastrowid, rowcount, text."""
    with engine.begin() as c:
        rows = c.execute(insert(Author).returning(Author.id), [{"name": "x"}, {"name": "y"}])
        seen: list[Any] = [rows.scalars().all()]
        seen.append(c.execute(insert(Author).values(name="z")).inserted_primary_key)
        many = [{"id": n, "title": "t", "author": 1} for n in range(50)]
        seen.append(
            c.execute(text("INSERT INTO books VALUES (:id, :title, :author)"), many).rowcount
        )
        seen.append(c.execute(update(Book).where(Book.id > 9).values(title="u")).rowcount)
        seen.append(
            c.exec_driver_sql("SELECT count(*) FROM books WHERE title = ?", ("u",)).scalar()
        )
    return seen


def streams(engine: Engine) -> list[Any]:
    """Rows as they are asked for, in parts and one by one, and one stream left in the middle."""
    with engine.begin() as c:
        c.execute(insert(Author), [{"name": str(n)} for n in range(30)])
    with engine.connect() as c:
        query = select(Author.id).order_by(Author.id)
        streamed = c.execution_options(yield_per=7).execute(query)
        seen = [len(part) for part in streamed.partitions()]
        streamed = c.execution_options(stream_results=True).execute(query)
        return [
            *seen,
            streamed.fetchone(),
            streamed.fetchmany(2),
            c.scalar(select(func.count(Author.id))),
        ]


def autocommit(engine: Engine) -> list[Any]:
    """Each statement is its own transaction."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
        c.execute(insert(Author).values(name="kept"))
        c.execute(text("VACUUM"))
        c.rollback()
    return [orm_names(engine)]


def by_hand(engine: Engine) -> list[Any]:
    """The driver's side: a cursor of its own, a script, a function, a context of warnings."""
    raw = engine.raw_connection()
    cursor = raw.cursor()
    cursor.execute("INSERT INTO authors (name) VALUES (?)", ("raw",))
    seen: list[Any] = [cursor.lastrowid]
    raw.commit()
    cursor.execute("SELECT name FROM authors WHERE name = :name", {"name": "raw"})
    seen += [cursor.description[0][0], cursor.fetchall()]
    cursor.close()
    driver = raw.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    driver.executescript("INSERT INTO authors (name) VALUES ('script'); SELECT 1;")
    driver.commit()
    raw.close()
    return [*seen, orm_names(engine)]


@pytest.mark.parametrize("scenario", [orm, core, streams, autocommit, by_hand])
def test_it_does_what_the_stock_engine_does(scenario: Any, made: Make, tmp_path: Path) -> None:
    """The same program on both, and the same results."""
    seen = []
    stock = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/stock.db")
    for engine in (stock, made()):
        Base.metadata.create_all(engine)
        seen.append(scenario(engine))
        assert sorted(sqlalchemy.inspect(engine).get_table_names()) == ["authors", "books"]
    stock.dispose()
    assert seen[0] == seen[1]
    assert seen[0]


@pytest.mark.parametrize("url", ["sqlite:///", "sqlite+pysqlite:///", "sqlite+aiosqlite:///"])
def test_each_spelling_of_the_url_leads_to_it(url: str, tmp_path: Path) -> None:
    """So one setting may serve both kinds of engines."""
    engine = create_engine(f"{url}{tmp_path}/a.db?durability=normal", max_size=3, queue_timeout=2)
    assert isinstance(engine.pool, SynchronousPool)
    assert (engine.pool.size(), engine.pool.settings.queue_timeout) == (3, 2)
    assert engine.pool.settings.durability == "normal"
    assert not engine.dialect.is_async


@pytest.mark.parametrize("poolclass", [None, NullPool, StaticPool, QueuePool])
def test_sqlalchemys_own_function_makes_it(made: Make, poolclass: Any) -> None:
    """Whatever pool it is told to use."""
    kw = {} if poolclass is None else {"poolclass": poolclass}
    engine = made(by=sqlalchemy.create_engine, **kw)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (x)"))
    assert isinstance(engine.pool, SynchronousPool)
    assert qsession.stats(engine).commits == 1


def test_the_size_of_a_pool_that_is_named_stays(made: Make) -> None:
    """Applications name QueuePool together with its size."""
    engine = made(by=sqlalchemy.create_engine, poolclass=QueuePool, pool_size=10, max_overflow=0)
    pool = engine.pool
    assert isinstance(pool, SynchronousPool)
    assert (pool.size(), pool._max_overflow) == (10, 0)


def test_a_memory_database_is_one_for_all_threads() -> None:
    """As long as the engine lives."""
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE notes (x)"))
        connection.execute(NOTE)
    assert result(start(notes, engine)) == 1
    engine.dispose()


def test_listeners_get_what_they_were_written_for(made: Make) -> None:
    """Recipes that ask for a connection of sqlite3, and call its methods and set its attributes."""
    engine = made()
    seen: list[Any] = []

    @event.listens_for(engine, "connect")
    def connected(dbapi_connection: Any, _: Any) -> None:
        if isinstance(dbapi_connection, sqlite3.Connection):
            cursor = dbapi_connection.cursor()
            cursor.execute("PRAGMA foreign_keys=ON")
            cursor.close()
        dbapi_connection.isolation_level = None
        dbapi_connection.create_function("twice", 1, lambda x: 2 * x)
        dbapi_connection.create_collation("reverse", lambda a, b: (a < b) - (a > b))
        dbapi_connection.text_factory = lambda data: data.decode().upper()
        seen.append(dbapi_connection.execute("PRAGMA foreign_keys").fetchone())
        seen.append((dbapi_connection.isolation_level, dbapi_connection.row_factory))

    @event.listens_for(engine, "begin")
    def begun(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")

    with engine.connect() as connection:
        query = "SELECT twice(2), 'a' FROM (SELECT 1 x UNION SELECT 2) ORDER BY x COLLATE reverse"
        assert connection.execute(text(query)).first() == (4, "A")
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1
    assert seen[:2] == [(1,), (None, None)]


def test_events_of_the_pool_are_told(made: Make) -> None:
    """Where somebody listens, SQLAlchemy's own checkout is used."""
    engine = made()
    told: list[str] = []
    for name in ("connect", "checkout", "checkin", "reset", "close"):
        event.listen(engine, name, lambda *_, name=name: told.append(name))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (x)"))
    engine.dispose()
    assert {"connect", "checkout", "checkin", "close"} <= set(told)


def test_creator_opens_its_connections(made: Make, tmp_path: Path) -> None:
    """One that belongs to one thread is refused, with what to do."""
    path = tmp_path / "other.db"
    engine = made(creator=lambda: sqlite3.connect(path, check_same_thread=False))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE notes (x)"))
        connection.execute(NOTE)
    assert result(start(notes, engine)) == 1
    with sqlite3.connect(path) as stock:
        assert stock.execute("SELECT count(*) FROM notes").fetchone() == (1,)
    stock.close()
    engine = made(creator=lambda: sqlite3.connect(path))
    with pytest.raises(ArgumentError, match="check_same_thread=False"):
        engine.connect()
    with pytest.raises(ArgumentError, match="returned 7"):
        made(creator=lambda: 7).connect()


def test_the_drivers_connection_is_in_the_queue(engine: Engine, made: Make) -> None:
    """What is written there holds the ticket until it is committed; a script is a part of it."""
    other = made(queue_timeout=0.05)
    raw = engine.raw_connection()
    raw.executescript("BEGIN; INSERT INTO notes VALUES ('a');")
    with pytest.raises(QueueTimeout):
        result(start(write, other))
    raw.commit()
    raw.close()
    assert notes(other) == 1
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        raw.nonsense  # noqa: B018


def test_settings_and_options_mean_the_same(engine: Engine, made: Make) -> None:
    """Of the engine, of a connection, of a session."""
    readers = made(access="read")
    with readers.connect() as connection, pytest.raises(ReadOnlyError):
        connection.execute(NOTE)
    reading = engine.execution_options(qsession_access="read")
    with reading.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM notes")) == 0
        result(start(write, engine))
        assert connection.scalar(text("SELECT count(*) FROM notes")) == 0
        with pytest.raises(ReadOnlyError):
            connection.execute(NOTE)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM notes")) == 1
        result(start(write, engine))
        assert connection.scalar(text("SELECT count(*) FROM notes")) == 2  # the latest, in "auto"
    with pytest.raises(ArgumentError):
        create_engine("sqlite:///a.db", access="sometimes")


def write(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(NOTE)


def test_the_line_is_bounded(engine: Engine, made: Make) -> None:
    """By number and by time; the message says which thread is in the way, and where it stands."""
    short = made(max_waiting=1, queue_timeout=0.05)
    holds, ends = threading.Event(), threading.Event()

    def hold() -> None:
        with short.begin() as connection:
            connection.execute(NOTE)
            holds.set()
            ends.wait()

    holder = start(hold, name="holder")
    holds.wait()
    waiting = start(write, short)
    with pytest.raises(QueueTimeout, match=r"thread 'holder' .* in hold\.$") as caught:
        result(waiting)
    assert caught.value.orig is not None
    patient = made(max_waiting=0)
    with pytest.raises(QueueTimeout):
        write(short)
    ends.set()
    result(holder)
    with patient.begin() as connection:
        connection.execute(NOTE)
        with pytest.raises(QueueFull):
            result(start(write, patient))


def test_more_threads_than_connections(made: Make) -> None:
    """They wait for each other."""
    engine = made(pool_size=1, max_overflow=0)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE notes (x)"))
    for each in [start(write, engine) for _ in range(10)]:
        result(each)
    for each in [start(notes, engine) for _ in range(10)]:
        assert result(each) == 10
    assert qsession.stats(engine).size <= 2


def test_it_can_be_drained_and_disposed_of(engine: Engine) -> None:
    """Who is at work is waited for; who comes later is refused, until dispose()."""
    with engine.connect() as connection:
        connection.execute(NOTE)
        with pytest.raises(QueueTimeout):
            qsession.drain(engine, 0.01)
        draining = start(qsession.drain, engine)
        with pytest.raises(EngineDraining):
            result(start(write, engine))
        connection.commit()
    result(draining)
    engine.dispose()
    write(engine)
    assert notes(engine) == 2


async def test_what_drain_returns_is_awaited_for_asyncio_only(tmp_path: Path) -> None:
    """And an engine that is not ours has nothing to drain."""
    engine = create_async_engine(f"sqlite:///{tmp_path}/a.db")
    await qsession.drain(engine)
    await engine.dispose()
    with pytest.raises(InvalidRequestError, match="no write queue"):
        qsession.drain(sqlalchemy.create_engine("sqlite://"))


def test_a_forgotten_connection_is_rolled_back(engine: Engine) -> None:
    """With a warning, and nothing stays locked."""
    connection = engine.connect()
    connection.execute(NOTE)
    gc.collect()  # what other tests have left
    del connection
    with pytest.warns(sqlalchemy.exc.SAWarning, match="not closed"):
        gc.collect()
    write(engine)
    assert notes(engine) == 1


def test_ddl_that_is_lost_is_told(engine: Engine) -> None:
    """Who closes a connection without commit; not who rolls back on purpose."""
    with pytest.warns(UncommittedChangesWarning, match="CREATE TABLE lost"):
        with engine.connect() as connection:
            connection.execute(text("CREATE TABLE lost (x)"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with engine.connect() as connection:
            connection.execute(text("CREATE TABLE dropped (x)"))
            connection.rollback()


def test_a_transaction_goes_from_thread_to_thread(engine: Engine) -> None:
    """As in a framework that runs the parts of a request in different threads."""
    connection = result(start(engine.connect))
    result(start(connection.execute, NOTE, name="second"))
    holder = qsession.stats(engine).holder
    assert holder is not None
    assert holder.task == "thread 'second'"
    waiting = start(write, engine)
    until(lambda: qsession.stats(engine).waiting == 1)
    result(start(connection.commit))
    result(waiting)
    connection.close()
    assert notes(engine) == 2


def test_a_connection_that_was_not_closed_is_told_in_terms_of_synchronous_code(
    tmp_path: Path,
) -> None:
    """There is no ``async with`` in such code."""
    engine = create_engine(f"sqlite:///{tmp_path / 'left.db'}")

    def leave_open() -> None:
        engine.raw_connection().cursor().execute("CREATE TABLE t (x)")
        gc.collect()

    with pytest.warns(sqlalchemy.exc.SAWarning, match="or use them in 'with' blocks"):
        leave_open()
    engine.dispose()
