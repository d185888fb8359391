"""Sessions that tasks share, blocks that end, makers, and transactions that run again."""

from __future__ import annotations

import asyncio
import builtins
import functools
import inspect
import warnings
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

import pytest
from sqlalchemy import ForeignKey, event, exc, insert, select, text, update
from sqlalchemy.ext.asyncio import (
    AsyncAttrs,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
    sessionmaker,
)
from sqlalchemy.util import await_only

from qsession import QueuedAsyncEngine
from qsession import create_async_engine as qsession_engine
from qsession.errors import (
    ConflictError,
    PlainEngineWarning,
    UncommittedChangesWarning,
)
from qsession.session import maker as session_module
from qsession.session import retry
from qsession.session.maker import QSession, SessionMaker


class Base(AsyncAttrs, DeclarativeBase):
    """The models of these tests."""


class User(Base):
    """Somebody."""

    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    posts: Mapped[list[Post]] = relationship(order_by="Post.id")


class Post(Base):
    """Something said."""

    __tablename__ = "posts"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))


@pytest.fixture(
    params=[
        pytest.param(
            "stock", marks=pytest.mark.filterwarnings("ignore::qsession.PlainEngineWarning")
        ),
        "queued",
    ]
)
async def engine(tmp_path, request):
    """SQLAlchemy's engine, and ours, on a new file with three users."""
    if request.param == "queued":
        engine = qsession_engine(f"sqlite+aiosqlite:///{tmp_path}/app.db")
    else:
        engine = stock_engine(f"sqlite+aiosqlite:///{tmp_path}/app.db")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(insert(User), [{"name": "Ann"}, {"name": "Ben"}, {"name": "Cy"}])
        await connection.execute(insert(Post), [{"user_id": 1}, {"user_id": 1}, {"user_id": 2}])
    yield engine
    assert engine.pool.checkedout() == 0, "a connection was left out"
    await engine.dispose()


def stock_engine(url: str) -> Any:
    engine = create_async_engine(url)

    @event.listens_for(engine.sync_engine, "connect")
    def no_implicit_begin(connection: Any, _record: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Any) -> None:  # without it SQLite commits when a savepoint ends
        connection.exec_driver_sql("BEGIN")

    return engine


@pytest.fixture
def maker(engine):
    """A maker of sessions on `engine`."""
    return SessionMaker(bind=engine, expire_on_commit=False)


class Door:
    """Holds statements that contain `mark` inside the driver until it is opened."""

    def __init__(self, engine: AsyncEngine, mark: str) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()
        self.order: list[str] = []

        @event.listens_for(engine.sync_engine, "before_cursor_execute")
        def wait(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if statement != "BEGIN":
                self.order.append(statement)
            if mark in statement:
                self.reached.set()
                await_only(self.opened.wait())


async def settle() -> None:
    """Let every task run until it waits for something."""
    for _ in range(20):
        await asyncio.sleep(0)


async def names(engine: AsyncEngine) -> list[str]:
    """The names as another connection sees them."""
    async with engine.connect() as connection:
        return list(await connection.scalars(text("SELECT name FROM users ORDER BY id")))


# Several tasks on one session


async def test_gather_over_one_session(maker):
    """Operations of all kinds begun at once on one session all give their own results."""
    async with maker() as s:
        rows, user, all_users, one, merged = await asyncio.gather(
            s.execute(select(User.name).order_by(User.id)),
            s.get(User, 2),
            s.scalars(select(User)),
            s.scalar(select(User.name).where(User.id == 3)),
            s.merge(User(id=1, name="Ann")),
        )
        assert [row.name for row in rows] == ["Ann", "Ben", "Cy"]
        assert user.name == "Ben"
        assert len(all_users.all()) == 3
        assert one == "Cy"
        assert merged.name == "Ann"


async def test_first_use_by_many_tasks_provisions_one_connection(maker, engine):
    """Fifty tasks that are all the first to use a session share one connection."""
    async with maker() as s:
        users = await asyncio.gather(*(s.get(User, 1 + n % 3) for n in range(50)))
        assert len({id(user) for user in users}) == 3
        held = isinstance(engine, QueuedAsyncEngine) and engine.stats().holder is not None
        assert engine.pool.checkedout() + held == 1


async def test_operations_run_in_the_order_of_asking(maker, engine):
    """While one task is in the driver the others queue, and run first come, first served."""
    door = Door(engine, "slow")
    async with maker() as s:
        texts = ["SELECT 'slow'", *(f"SELECT {n}" for n in range(9))]
        tasks = [asyncio.create_task(s.execute(text(each))) for each in texts]
        await door.reached.wait()
        await settle()
        assert door.order == texts[:1]
        door.opened.set()
        await asyncio.gather(*tasks)
        assert door.order == texts


async def test_cancelled_while_waiting_gives_up_its_place(maker, engine):
    """A task cancelled in the line never runs, and those behind it do."""
    door = Door(engine, "slow")
    async with maker() as s:
        first = asyncio.create_task(s.execute(text("SELECT 'slow'")))
        await door.reached.wait()
        second = asyncio.create_task(s.execute(text("SELECT 'second'")))
        third = asyncio.create_task(s.scalar(text("SELECT 'third'")))
        await settle()
        second.cancel()
        await asyncio.wait([second])
        assert second.cancelled()
        door.opened.set()
        assert await third == "third"
        await first
        assert "SELECT 'second'" not in door.order
        assert s.line.owner is None
        assert not s.line.waiting


async def test_cancelled_at_the_moment_of_hand_over_passes_it_on(maker):
    """A task cancelled after it was handed the session, but before it ran, hands it on."""
    s = maker()
    holder = asyncio.current_task()
    s.line.owner = holder
    second = asyncio.create_task(s.scalar(text("SELECT 'second'")))
    third = asyncio.create_task(s.scalar(text("SELECT 'third'")))
    await settle()
    s.line.hand_over()
    assert s.line.owner is second
    second.cancel()
    assert await third == "third"
    assert second.cancelled()
    assert s.line.owner is None
    await s.close()


async def test_cancelled_in_the_same_turn_as_the_hand_over(maker):
    """A waiter whose cancellation came just before the hand-over is passed over."""
    s = maker()
    s.line.owner = asyncio.current_task()
    second = asyncio.create_task(s.scalar(text("SELECT 'second'")))
    third = asyncio.create_task(s.scalar(text("SELECT 'third'")))
    await settle()
    second.cancel()
    s.line.hand_over()
    assert s.line.owner is third
    assert await third == "third"
    assert s.line.owner is None
    await s.close()


async def test_an_error_hands_the_session_on(maker):
    """A statement that fails does not keep the session from the next task."""
    async with maker() as s:
        bad, good = await asyncio.gather(
            s.execute(text("SELECT nonsense")), s.scalar(text("SELECT 1")), return_exceptions=True
        )
        assert isinstance(bad, exc.OperationalError)
        assert good == 1


async def test_operations_within_run_sync_do_not_wait_for_themselves(maker):
    """A function in run_sync uses the session it was given, and the async one through a bridge."""
    async with maker() as s:

        def work(inner: Session) -> tuple[str, str]:
            a = inner.scalar(select(User.name).where(User.id == 1))
            b = await_only(s.scalar(select(User.name).where(User.id == 2)))
            return a, b

        assert await s.run_sync(work) == ("Ann", "Ben")


async def test_begin_block_is_shared_by_other_tasks(maker, engine):
    """Operations of other tasks join the transaction of an open block, and commit with it."""
    async with maker() as s:
        async with s.begin():
            await asyncio.gather(
                *(s.execute(insert(User).values(name=f"new{n}")) for n in range(5))
            )
        assert len(await names(engine)) == 8


async def test_commit_of_a_block_waits_for_the_operation_in_progress(maker, engine):
    """The end of a begin() block queues behind a statement that another task has in the driver."""
    door = Door(engine, "slow")
    async with maker() as s:
        async with s.begin():
            await s.execute(insert(User).values(name="Dee"))
            other = asyncio.create_task(s.scalar(text("SELECT 'slow'")))
            await door.reached.wait()
            asyncio.get_running_loop().call_soon(door.opened.set)
        assert await other == "slow"
    assert (await names(engine))[-1] == "Dee"


async def test_savepoint_of_one_task(maker, engine):
    """A savepoint that is rolled back leaves what was written before it."""
    async with maker.begin() as s:
        await s.execute(insert(User).values(name="kept"))
        with pytest.raises(ZeroDivisionError):
            async with s.begin_nested():
                await s.execute(insert(User).values(name="gone"))
                raise ZeroDivisionError
    assert (await names(engine))[3:] == ["kept"]


async def test_stream_is_read_while_another_task_executes(maker):
    """Rows of a stream keep coming in order while other tasks use the session in between."""
    async with maker() as s:
        seen = []
        stream = await s.stream_scalars(select(User.name).order_by(User.id))
        async for name in stream:
            other = await asyncio.gather(s.get(User, 1), s.scalar(select(User.name).limit(1)))
            assert other[1] == "Ann"
            seen.append(name)
        assert seen == ["Ann", "Ben", "Cy"]


async def test_fetch_of_a_stream_waits_for_its_turn(maker, engine):
    """A fetch begun while another task is in the driver waits until it is out."""
    door = Door(engine, "slow")
    async with maker() as s:
        stream = await s.stream(select(User.name).order_by(User.id))
        other = asyncio.create_task(s.execute(text("SELECT 'slow'")))
        await door.reached.wait()
        fetch = asyncio.create_task(stream.fetchone())
        await settle()
        assert not fetch.done()
        assert len(s.line.waiting) == 1
        door.opened.set()
        assert (await fetch).name == "Ann"
        await other
        await stream.close()


async def test_results_of_a_stream_have_every_form(maker):
    """Mappings, partitions, single rows and frozen results are as on a stock stream."""
    query = select(User.id, User.name).order_by(User.id)
    async with maker() as s:
        assert (await (await s.stream(query)).mappings().all())[1] == {"id": 2, "name": "Ben"}
        parts = [len(part) async for part in (await s.stream(query)).partitions(2)]
        assert parts == [2, 1]
        parts = [part async for part in (await s.stream(query)).scalars("name").partitions(2)]
        assert parts == [["Ann", "Ben"], ["Cy"]]
        parts = [len(part) async for part in (await s.stream(query)).mappings().partitions(2)]
        assert parts == [2, 1]
        assert (await (await s.stream(query)).first()) == (1, "Ann")
        assert (await (await s.stream(query.limit(1))).one()).id == 1
        frozen = await (await s.stream(query)).freeze()
        assert len(frozen().all()) == 3


async def test_awaitable_attributes_queue_too(maker):
    """Lazy loads by several tasks, which do not pass through the async session, take turns."""
    async with maker() as s:
        users = (await s.scalars(select(User).order_by(User.id))).all()
        posts = await asyncio.gather(*(user.awaitable_attrs.posts for user in users))
        assert [len(each) for each in posts] == [2, 1, 0]
        assert s.line.owner is None


async def test_object_added_during_a_flush_is_kept_for_the_next(maker, engine):
    """An object that another task adds while a flush is in the driver is written by the next."""
    door = Door(engine, "INSERT")
    async with maker() as s:
        s.add(User(name="first"))
        flush = asyncio.create_task(s.flush())
        await door.reached.wait()
        s.add(User(name="second"))
        s.add_all([User(name="third")])
        door.opened.set()
        await flush
        assert len(s.new) == 2
        await s.commit()
    assert (await names(engine))[3:] == ["first", "second", "third"]


def test_session_made_without_a_loop_serves_two_loops(tmp_path):
    """A session can be made before any loop runs, and used in one loop after another."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/app.db")
    s = QSession(engine)

    async def use() -> list[Any]:
        async with s:
            found = await asyncio.gather(*(s.scalar(text(f"SELECT {n}")) for n in range(5)))
        await engine.dispose()
        return found

    assert asyncio.run(use()) == asyncio.run(use()) == [0, 1, 2, 3, 4]


def test_a_sync_lazy_load_still_says_missing_greenlet(tmp_path):
    """Using the inner session outside of any loop gives SQLAlchemy's own error."""
    s = QSession(create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/app.db"))
    with pytest.raises(exc.MissingGreenlet):
        s.sync_session.execute(text("SELECT 1"))


async def test_execution_options_may_be_none(maker):
    """As of SQLAlchemy's own session."""
    async with maker() as session:
        found = await session.execute(text("SELECT 1"), execution_options=None)
        assert found.scalar_one() == 1
        assert await session.scalar(text("SELECT 2"), execution_options=None) == 2
        assert (await session.scalars(text("SELECT 3"), execution_options=None)).all() == [3]


async def test_a_sync_session_class_of_the_user_is_kept(engine):
    """A sync_session_class stays what it is, with its overrides and its listeners."""

    class Mine(Session):
        asked = 0

        def get_bind(self, *args: Any, **kw: Any) -> Any:
            Mine.asked += 1
            return super().get_bind(*args, **kw)

    flushed: list[Session] = []
    event.listen(Mine, "after_flush", lambda session, _: flushed.append(session))
    maker = SessionMaker(bind=engine, sync_session_class=Mine)
    async with maker.begin() as s:
        assert isinstance(s.sync_session, Mine)
        s.add(User(name="Dee"))
        await s.flush()
        assert flushed == [s.sync_session]
    assert Mine.asked > 0
    with pytest.warns(UncommittedChangesWarning, match="insert on users"):
        async with maker() as s:
            await s.execute(insert(User).values(name="Eve"))


async def test_a_sync_sessionmaker_of_the_user_is_kept(engine):
    """A sessionmaker as sync_session_class keeps its defaults, and listeners set on it later."""
    sync_maker = sessionmaker(expire_on_commit=False, info={"of": "the sync maker"})
    maker = SessionMaker(bind=engine, sync_session_class=sync_maker)
    committed: list[Session] = []
    event.listen(sync_maker, "before_commit", committed.append)
    async with maker.begin() as s:
        s.add(User(name="Dee"))
        assert s.info == {"of": "the sync maker"}
        assert isinstance(s.sync_session, sync_maker.class_)
    assert committed == [s.sync_session]
    with pytest.warns(UncommittedChangesWarning, match="insert on users"):
        async with maker() as s:
            await s.execute(insert(User).values(name="Eve"))


async def test_a_sync_session_class_that_is_none_is_refused(engine):
    """Any other callable would make sessions that do not wait for their turn."""
    with pytest.raises(exc.ArgumentError, match="a subclass of Session or a sessionmaker"):
        QSession(engine, sync_session_class=functools.partial(Session))


async def test_session_on_a_connection(engine):
    """Bound to a connection, as test suites do, a session works inside its transaction."""
    async with engine.connect() as connection:
        await connection.begin()
        async with QSession(connection, join_transaction_mode="create_savepoint") as s:
            s.add(User(name="Dee"))
            await s.commit()
            assert await s.scalar(select(User.name).where(User.id == 4)) == "Dee"
        await connection.rollback()
    assert len(await names(engine)) == 3


async def test_the_access_mode_travels_with_the_bind(engine):
    """The dialect finds the mode and the priority among the execution options."""
    seen = []

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def note(_conn: Any, _cursor: Any, statement: str, _params: Any, context: Any, _: Any) -> None:
        if statement == "BEGIN":
            return
        options = context.execution_options
        seen.append((options["qsession_access"], options["qsession_priority"]))

    maker = SessionMaker(bind=engine)
    for s in (
        maker(),
        maker.reader(priority=3),
        maker(access="auto"),
        QSession(binds={User: engine}),
    ):
        async with s:
            await s.execute(select(User))
    assert seen == [("write", 0), ("read", 3), ("auto", 0), ("write", 0)]
    assert maker().bind is maker().bind is engine
    assert maker().get_bind() is engine.sync_engine
    with pytest.raises(exc.ArgumentError, match="access='both'"):
        maker(access="both")
    for priority in ("high", None, 0.5):
        with pytest.raises(exc.ArgumentError, match=f"priority={priority!r}"):
            maker(priority=priority)


# The end of a block


@pytest.mark.parametrize(
    ("work", "message"),
    [
        ("add", "1 new User"),
        ("add_two", "2 new User"),
        ("change", "1 changed User"),
        ("delete", "1 deleted User"),
        ("flush", "flushed User"),
        ("flush_change", "flushed User"),
        ("insert", "insert on users"),
        ("update", "update on users"),
        ("text", "the changes of UPDATE users SET name = :name WHERE id = 1[.]"),
        ("bulk_insert", "bulk save of User"),
        ("bulk_update", "bulk save of User"),
        ("bulk_save", "bulk save of User"),
        ("released_savepoint", "insert on users"),
        ("after_commit", "insert on users"),
    ],
)
async def test_block_that_ends_with_changes_warns(maker, engine, work, message):
    """A clean end with pending, flushed or executed changes says what is lost."""
    with pytest.warns(UncommittedChangesWarning, match=message) as caught:
        async with maker() as s:
            await WORK[work](s)
    assert caught[0].filename == __file__
    assert await names(engine) == ["Ann", "Ben", "Cy"]


async def _add(s: QSession) -> None:
    s.add(User(name="x"))


async def _add_two(s: QSession) -> None:
    s.add_all([User(name="x"), User(name="y")])


async def _change(s: QSession) -> None:
    (await s.get_one(User, 1)).name = "x"


async def _delete(s: QSession) -> None:
    await s.delete(await s.get_one(User, 3))


async def _flush(s: QSession) -> None:
    s.add(User(name="x"))
    await s.flush()


async def _flush_change(s: QSession) -> None:
    await _change(s)
    await s.flush()


async def _insert(s: QSession) -> None:
    await s.execute(insert(User).values(name="x"))


async def _update(s: QSession) -> None:
    await s.scalar(update(User).where(User.id == 1).values(name="x").returning(User.id))


async def _text(s: QSession) -> None:
    await s.execute(text("UPDATE users  SET name = :name WHERE id = 1"), {"name": "x"})


async def _bulk_insert(s: QSession) -> None:
    await s.run_sync(lambda inner: inner.bulk_insert_mappings(User, [{"name": "x"}]))


async def _bulk_update(s: QSession) -> None:
    await s.run_sync(lambda inner: inner.bulk_update_mappings(User, iter([{"id": 1, "name": "x"}])))


async def _bulk_save(s: QSession) -> None:
    await s.run_sync(lambda inner: inner.bulk_save_objects([User(name="x")]))


async def _released_savepoint(s: QSession) -> None:
    async with s.begin_nested():
        await _insert(s)


async def _after_commit(s: QSession) -> None:
    await s.execute(update(User).values(name=User.name))
    await s.commit()
    await _insert(s)


WORK = {
    "add": _add,
    "add_two": _add_two,
    "change": _change,
    "delete": _delete,
    "flush": _flush,
    "flush_change": _flush_change,
    "insert": _insert,
    "update": _update,
    "text": _text,
    "bulk_insert": _bulk_insert,
    "bulk_update": _bulk_update,
    "bulk_save": _bulk_save,
    "released_savepoint": _released_savepoint,
    "after_commit": _after_commit,
}


async def test_block_that_owes_nothing_is_silent(maker):
    """Committed, rolled back, read-only, unchanged and undone work does not warn."""
    async with maker() as s:  # committed
        await _flush(s)
        await s.commit()
    async with maker() as s:
        await s.run_sync(lambda inner: inner.bulk_insert_mappings(User, []))
    async with maker() as s:  # committed by a block
        async with s.begin():
            await _insert(s)
    async with maker() as s:  # rolled back on purpose
        await _flush(s)
        await s.rollback()
    async with maker() as s:  # only read
        await s.scalars(select(User))
    async with maker() as s:  # SQL as text that changes nothing
        await s.execute(text("SELECT name FROM users"))
        await s.execute(text("UPDATE users SET name = 'x' WHERE id = 7"))
        await s.get(User, 1, with_for_update=True)
    async with maker() as s:  # set to what it was, and flushed so
        user = await s.get_one(User, 1)
        user.name = str(user.name)
        await s.flush()
    async with maker() as s:  # undone with its savepoint, with one inside it
        await s.get(User, 1)
        async with s.begin_nested() as savepoint:
            await _insert(s)
            await _text(s)
            async with s.begin_nested():
                await _flush(s)
            await savepoint.rollback()
    async with maker.reader() as s:  # cannot write
        s.add(User(name="x"))


async def test_block_left_by_an_error_does_not_warn(maker):
    """An exception that leaves the block is the message; no warning is added to it."""
    with pytest.raises(ZeroDivisionError):
        async with maker() as s:
            await _flush(s)
            raise ZeroDivisionError
    async with maker() as s:  # the error was seen and swallowed inside
        s.add(User(id=1, name="twice"))
        with pytest.raises(exc.IntegrityError):
            await s.flush()


async def test_warning_as_an_error_still_closes(maker, engine):
    """With warnings turned into errors the session is closed all the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UncommittedChangesWarning):
            async with maker() as s:
                await _insert(s)
    assert engine.pool.checkedout() == 0


async def test_block_waits_for_operations_already_asked_for(maker, engine):
    """After one task of a gather fails, the block closes behind what the others had asked."""
    door = Door(engine, "slow")
    slow: asyncio.Task[Any] | None = None
    with pytest.raises(ZeroDivisionError):
        async with maker() as s:
            slow = asyncio.create_task(s.scalar(text("SELECT 'slow'")))
            await door.reached.wait()
            asyncio.get_running_loop().call_soon(door.opened.set)
            raise ZeroDivisionError
    assert slow is not None
    assert await slow == "slow"
    assert engine.pool.checkedout() == 0


async def test_block_starts_no_task_to_close(maker):
    """Leaving a block closes within the task, so the connection is back at once."""
    started = []
    loop = asyncio.get_running_loop()
    loop.set_task_factory(
        lambda loop, coro, **kw: started.append(coro) or asyncio.Task(coro, loop=loop, **kw)
    )
    async with maker() as s:
        await s.get(User, 1)
    async with maker.begin() as s:
        s.add(User(name="x"))
    loop.set_task_factory(None)
    assert started == []


@asynccontextmanager
async def _plain(maker: SessionMaker):
    async with maker() as s:
        await s.get(User, 1)
        yield s


@asynccontextmanager
async def _two_engines(maker: SessionMaker):
    other = maker.engine.execution_options()
    async with maker(binds={Post: other}) as s:
        await s.get(User, 1)
        await s.get(Post, 1)
        yield s


@asynccontextmanager
async def _savepoint(maker: SessionMaker):
    async with maker() as s:
        savepoint = s.begin_nested()
        await savepoint.start()
        await s.execute(select(User))
        yield s


@asynccontextmanager
async def _writes(maker: SessionMaker):
    async with maker.begin() as s:
        s.add(User(name="x"))
        yield s


@asynccontextmanager
async def _fails(maker: SessionMaker):
    with pytest.raises(ZeroDivisionError):
        async with maker.begin() as s:
            await s.execute(insert(User).values(name="x"))
            yield s
            raise ZeroDivisionError


@asynccontextmanager
async def _queued(maker: SessionMaker):
    async with maker() as s:
        task = asyncio.create_task(s.scalars(select(User)))
        await asyncio.sleep(0)
        yield s
    await task


@pytest.mark.parametrize("block", [_plain, _two_engines, _savepoint, _writes, _fails, _queued])
@pytest.mark.parametrize("twice", [False, True])
async def test_cancelled_at_every_step_of_leaving_leaves_nothing_out(maker, engine, block, twice):
    """However far the end of a block has come when it is cancelled, its connections come back."""
    for step in range(40):
        leaving = asyncio.Event()

        async def work(leaving: asyncio.Event = leaving) -> None:
            async with block(maker):
                leaving.set()

        task = asyncio.create_task(work())
        await leaving.wait()
        for _ in range(step):
            await asyncio.sleep(0)
        ended = task.done()
        task.cancel()
        if twice:
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait([task])
        assert engine.pool.checkedout() == 0
        if ended:
            await task
        async with maker.begin() as s:  # nothing is locked either
            await s.execute(update(User).where(User.id == 1).values(name="Ann"))


async def test_cancellation_while_closing_is_raised_after_the_close(maker, engine):
    """A cancel that arrives inside close() is raised, and the session is closed by then."""
    inside, opened = asyncio.Event(), asyncio.Event()
    s = maker()

    @event.listens_for(s.sync_session, "after_transaction_end")
    def hold(_session: Any, _transaction: Any) -> None:
        inside.set()
        await_only(opened.wait())

    async def work() -> None:
        async with s:
            await s.get(User, 1)

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    await settle()
    assert not task.done()
    opened.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not s.in_transaction()
    assert engine.pool.checkedout() == 0


async def test_begin_commits_or_rolls_back(maker, engine):
    """A begin() block commits on a clean exit and undoes all on an error."""
    async with maker.begin() as s:
        s.add(User(name="Dee"))
    with pytest.raises(ZeroDivisionError):
        async with maker.begin() as s:
            s.add(User(name="Eve"))
            await s.flush()
            raise ZeroDivisionError
    with pytest.raises(exc.IntegrityError):
        async with maker.begin() as s:
            s.add(User(id=1, name="twice"))
    assert await names(engine) == ["Ann", "Ben", "Cy", "Dee"]


async def test_stock_sessionmaker_makes_shared_sessions(engine):
    """async_sessionmaker(class_=QSession) gives the same blocks."""
    maker = async_sessionmaker(engine, class_=QSession)
    async with maker.begin() as s:
        await asyncio.gather(*(s.get(User, n) for n in (1, 2, 3)))
        s.add(User(name="Dee"))
    assert len(await names(engine)) == 4


# Makers


@pytest.fixture
def made(monkeypatch):
    """The engines that makers make, stock ones, with the keywords they were asked for with."""
    calls: list[tuple[str, dict[str, Any], QueuedAsyncEngine]] = []

    def create(url: str, **kw: Any) -> QueuedAsyncEngine:
        engine = QueuedAsyncEngine(create_async_engine(url).sync_engine)
        calls.append((url, kw, engine))
        return engine

    monkeypatch.setattr(session_module, "create_async_engine", create)
    return calls


def test_url_keywords_are_told_apart(made):
    """Keywords of sessions become session defaults, all others go to the engine."""
    maker = SessionMaker()
    maker.configure("sqlite+aiosqlite://", expire_on_commit=False, access="auto", pool_size=3)
    maker.configure(priority=2)
    assert [call[1] for call in made] == [{"pool_size": 3}]
    s = maker(autoflush=False)
    assert (s.access, s.priority, s.autoflush) == ("auto", 2, False)
    assert s.sync_session.expire_on_commit is False
    assert maker.engine is made[0][2]


async def test_configure_takes_a_class(made):
    """The class of the sessions may be set later, too, and has to be one of ours."""

    class Mine(QSession):
        pass

    maker = SessionMaker("sqlite+aiosqlite://")
    assert not isinstance(maker(), Mine)
    maker.configure(class_=Mine)
    assert isinstance(maker(), Mine)
    assert isinstance(SessionMaker("sqlite+aiosqlite://", class_=Mine)(), Mine)
    with pytest.raises(exc.ArgumentError, match="a subclass of"):
        maker.configure(class_=AsyncSession)


def test_url_comes_from_the_environment_at_first_use(made, monkeypatch):
    """QSESSION_URL is read when a session is first made, not before, and only once."""
    maker = SessionMaker(env="QSESSION_URL")
    monkeypatch.setenv("QSESSION_URL", "sqlite+aiosqlite:///from-env.db")
    assert made == []
    maker()
    monkeypatch.setenv("QSESSION_URL", "sqlite+aiosqlite:///other.db")
    maker()
    assert [call[0] for call in made] == ["sqlite+aiosqlite:///from-env.db"]


def test_no_database_is_a_clear_error(monkeypatch):
    """Without URL, bind or environment the error says what to do."""
    monkeypatch.delenv("QSESSION_URL", raising=False)
    for use in (lambda maker: maker(), lambda maker: maker.begin(), lambda maker: maker.engine):
        with pytest.raises(exc.InvalidRequestError, match=r"configure\(.*QSESSION_URL"):
            use(SessionMaker(env="QSESSION_URL"))
    with pytest.raises(exc.InvalidRequestError, match=r"configure\(bind=engine\)$"):
        SessionMaker()()


def test_configure_refuses_what_is_ambiguous(engine):
    """A URL with bind=, or a URL as bind=, is refused with the right way named."""
    with pytest.raises(exc.ArgumentError, match="not both"):
        SessionMaker("sqlite+aiosqlite://", bind=engine)
    with pytest.raises(exc.ArgumentError, match="first argument"):
        SessionMaker(bind="sqlite+aiosqlite://")


async def test_an_engine_of_sqlalchemys_own_is_warned_of(tmp_path):
    """Nothing is promised on it, so it says so once, where it was given; ours are silent."""
    url = f"sqlite+aiosqlite:///{tmp_path}/app.db"
    plain, maker = create_async_engine(url), SessionMaker()
    gives = [
        lambda: maker.configure(bind=plain),
        lambda: maker.configure(binds={User: plain}),
        lambda: SessionMaker(bind=plain),
    ]
    for give in gives:
        with pytest.warns(PlainEngineWarning, match="qsession.create_async_engine") as caught:
            give()
        assert [each.filename for each in caught] == [__file__]
    maker.configure(priority=1)
    maker()
    ours = qsession_engine(url)
    for engine in (ours, ours.execution_options(a=1), create_async_engine("sqlite+qsession://")):
        maker.configure(bind=engine, binds={User: engine})


async def test_reconfigured_maker_disposes_of_all_it_made(made, monkeypatch):
    """dispose() closes the engines made here, also those replaced by another configure()."""
    maker = SessionMaker("sqlite+aiosqlite:///one.db")
    maker.configure("sqlite+aiosqlite:///two.db")
    closed = []

    async def dispose(engine: AsyncEngine, close: bool = True) -> None:
        closed.append(engine)

    monkeypatch.setattr(AsyncEngine, "dispose", dispose)
    await maker.dispose()
    assert set(closed) == {call[2] for call in made}
    await maker.dispose()
    assert closed[2:] == [made[1][2]]
    await SessionMaker(env=None).dispose()  # nothing made, nothing to close


# Running again


@pytest.fixture
def pauses(monkeypatch):
    """The longest pauses asked for, none of them slept; the jitter takes the whole of each."""
    asked: list[float] = []
    monkeypatch.setattr(retry, "_jitter", lambda _low, high: asked.append(high) or 0)
    return asked


async def test_run_repeats_until_there_is_no_conflict(maker, engine, pauses):
    """Each attempt has a session of its own, and only the last one's work is committed."""
    sessions = []

    async def transfer(s: QSession, name: str, *, suffix: str) -> str:
        sessions.append(s)
        await s.execute(insert(User).values(name=name + suffix))
        if len(sessions) < 4:
            raise ConflictError("changed")
        return "done"

    assert await maker.run(transfer, "Dee", suffix="!") == "done"
    assert len(set(map(id, sessions))) == 4
    assert (await names(engine))[3:] == ["Dee!"]
    assert pauses == [0.01, 0.02, 0.04]


async def test_run_gives_up_and_says_how_often_it_tried(maker, engine, pauses):
    """The last conflict is raised, with the count of attempts."""
    errors = []

    async def conflict(_session: QSession) -> None:
        errors.append(ConflictError(f"number {len(errors)}"))
        raise errors[-1]

    with pytest.raises(ConflictError, match="number 2") as caught:
        await maker.run(conflict, attempts=3)
    assert caught.value is errors[-1]
    assert caught.value.attempts == 3
    if hasattr(caught.value, "__notes__"):
        assert caught.value.__notes__ == ["qsession gave up after 3 attempts"]
    assert len(pauses) == 2
    assert engine.pool.checkedout() == 0


async def test_run_repeats_a_conflict_at_commit(maker, engine, pauses):
    """A conflict that only COMMIT reveals is run again too."""
    conflicts = [ConflictError("at commit")]

    async def work(s: QSession) -> None:
        if conflicts:

            @event.listens_for(s.sync_session, "before_commit")
            def fail(_session: Any) -> None:
                raise conflicts.pop()

        s.add(User(name="Dee"))

    await maker.run(work)
    assert (await names(engine))[3:] == ["Dee"]


async def test_run_raises_other_errors_at_once(maker, engine, pauses):
    """An error that is no conflict is raised by the first attempt, and its work undone."""

    async def fail(s: QSession) -> None:
        await s.execute(insert(User).values(name="x"))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await maker.run(fail)
    assert pauses == []
    assert len(await names(engine)) == 3


async def test_run_repeats_a_group_of_conflicts_only(maker, pauses):
    """Conflicts in a task group are run again; a group with another error is not."""
    found = getattr(builtins, "ExceptionGroup", None)
    group = found or import_module("exceptiongroup").ExceptionGroup
    calls = []

    async def work(_session: QSession, *errors: Exception) -> int:
        calls.append(errors)
        if len(calls) % 2:
            raise group("tasks", [group("inner", [errors[0]]), *errors[1:]])
        return len(calls)

    assert await maker.run(work, ConflictError("a"), ConflictError("b")) == 2
    with pytest.raises(group):
        await maker.run(work, ConflictError("a"), ZeroDivisionError())


async def test_run_cancelled_in_its_pause_ends(maker, engine, monkeypatch):
    """A cancellation between two attempts is raised, with no session open."""
    paused = asyncio.Event()

    def jitter(_low: float, _high: float) -> float:
        paused.set()
        return 3600

    monkeypatch.setattr(retry, "_jitter", jitter)

    async def conflict(_session: QSession) -> None:
        raise ConflictError("again")

    task = asyncio.create_task(maker.run(conflict))
    await paused.wait()
    assert engine.pool.checkedout() == 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_run_passes_every_keyword_on(maker):
    """A function may have keywords that are called as those of run() itself."""

    async def work(s: QSession, *, fn: int, begin: int) -> tuple[int, int]:
        return fn, begin

    assert await maker.run(work, fn=1, begin=2) == (1, 2)
    assert await maker.transactional(work)(fn=1, begin=2) == (1, 2)


async def test_transactional_refuses_a_method(maker):
    """Its first argument is the object, and not the session; run() takes a bound one."""

    class Service:
        number = 5

        async def work(self, s: QSession, more: int) -> tuple[int, type[QSession]]:
            return self.number + more, type(s)

    with pytest.raises(exc.ArgumentError, match=r"run\(self.work, ...\)"):
        maker.transactional(Service.work)
    assert await maker.run(Service().work, 2) == (7, maker.class_)
    assert await maker.transactional(Service().work)(3) == (8, maker.class_)


async def test_run_refuses_what_it_cannot_run(maker):
    """A function that is not async, or no attempts, is refused by name."""
    with pytest.raises(TypeError, match="not an async function"):
        await maker.run(lambda _session: 1)
    for attempts in (0, -1, "many"):
        with pytest.raises(exc.ArgumentError, match="attempts="):
            await maker.run(_insert, attempts=attempts)
    with pytest.raises(exc.ArgumentError, match="attempts=0"):
        maker.transactional(attempts=0)


async def test_transactional_with_and_without_arguments(maker, engine, pauses):
    """The decorated function loses its first argument and keeps its name, docstring and result."""
    seen = []

    @maker.transactional
    async def add(s: QSession, name: str) -> str:
        """Add somebody."""
        s.add(User(name=name))
        return name.upper()

    @maker.transactional(attempts=2, access="auto", priority=5)
    async def conflict(s: QSession, error: type[Exception] = ConflictError) -> None:
        seen.append((s.access, s.priority))
        raise error("again")

    assert await add("Dee") == "DEE"
    assert await add(name="Eve") == "EVE"
    assert (add.__name__, add.__doc__) == ("add", "Add somebody.")
    with pytest.raises(ConflictError) as told:
        await conflict()
    assert vars(told.value)["attempts"] == 2
    assert seen == [("auto", 5)] * 2
    assert (await names(engine))[3:] == ["Dee", "Eve"]


def test_pauses_double_up_to_a_second():
    """Backoff is exponential and bounded, however many attempts there are."""
    assert [retry.longest_pause(n) for n in (1, 2, 7, 8, 10_000)] == [0.01, 0.02, 0.64, 1.0, 1.0]


def test_every_operation_of_the_async_session_takes_its_turn():
    """An async method that SQLAlchemy adds to AsyncSession is noticed here."""
    composed = {"aclose", "scalars", "stream_scalars", "close_all", "__aenter__"}
    for name, member in vars(AsyncSession).items():
        if inspect.iscoroutinefunction(member) and name not in composed:
            assert getattr(QSession, name) is not member, name


@pytest.mark.parametrize(
    "after", ["COMMIT", "end;", "ROLLBACK TRANSACTION", "AUTOCOMMIT", "ROLLBACK TRANSACTION TO a"]
)
async def test_text_that_cannot_be_lost_is_not_warned_of(maker, after):
    """It is committed, by itself or by a text; a savepoint of a text alone ends nothing."""
    lost = after == "ROLLBACK TRANSACTION TO a"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        async with maker() as s:
            if after == "AUTOCOMMIT":
                await s.connection(execution_options={"isolation_level": after})
            await s.execute(text("SAVEPOINT a")) if lost else None
            await s.execute(text("UPDATE users SET name = 'x' WHERE id = 1"))
            if after != "AUTOCOMMIT":
                await s.execute(text(after))
    assert bool([w for w in caught if w.category is UncommittedChangesWarning]) is lost
