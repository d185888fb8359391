"""What `observe` yields, and when."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from cancelling import assert_free, eventually
from observing import (
    ADD_PARENT,
    NEVER,
    Base,
    Child,
    Ground,
    Other,
    Parent,
    nothing,
    soon,
)
from sqlalchemy import Integer, column, delete, exc, func, insert, select, table, text, update
from sqlalchemy.ext.asyncio import create_async_engine as plain_engine
from sqlalchemy.orm import aliased, joinedload, selectinload

import qsession
from qsession import EngineDraining, ReadOnlyError, create_engine
from qsession.pool import create_pool
from qsession.session.maker import SessionMaker

COUNT = select(func.count()).select_from(Parent)


@pytest.fixture
async def ground(tmp_path: Path) -> AsyncIterator[Ground]:
    """A file with tables, which is found free and without an observer after the test."""
    made = await Ground.ready(tmp_path / "a.db")
    yield made
    gc.collect()
    await made.close()


async def test_now_and_after_each_commit(ground: Ground) -> None:
    """The result comes at once, and again after a commit."""
    rows = ground.maker.observe(select(Parent.name), look_every=NEVER)
    assert await soon(anext(rows)) == []
    for name in "abc":
        await ground.add(Parent(name=name))
        assert (await soon(anext(rows)))[-1] == (name,)


async def test_the_public_names(ground: Ground) -> None:
    """`qsession.observe` and `qsession.changed` are those of the default maker."""
    assert qsession.observe == qsession.qsession.observe
    assert qsession.changed == qsession.qsession.changed
    async for rows in qsession.observe(COUNT, engine=ground.engine):
        assert rows == [(0,)]
        break


WAYS = ["session", "core", "autocommit", "pool", "pool transaction", "synchronous", "text", "sync"]


@pytest.mark.parametrize("way", WAYS)
async def test_each_way_to_commit_wakes_it(ground: Ground, way: str) -> None:
    """No look is needed for a commit of this process, and the other table is told apart."""
    parents = ground.maker.observe(COUNT, look_every=NEVER)
    others = ground.maker.observe(select(Other.id), look_every=NEVER)
    await soon(anext(parents))
    await soon(anext(others))
    other = await nothing(others)
    sql = "INSERT INTO parents (name) VALUES ('x')"
    if way == "session":
        await ground.add(Parent())
    elif way == "core":
        await ground.write(ADD_PARENT)
    elif way == "text":
        await ground.write(text(sql))
    elif way == "autocommit":
        engine = ground.engine.execution_options(isolation_level="AUTOCOMMIT")
        async with engine.connect() as connection:
            await connection.execute(ADD_PARENT)
    elif way.startswith("pool"):
        async with create_pool(f"sqlite:///{ground.path}") as pool:
            if way == "pool":
                await pool.execute(sql)
            else:
                async with pool.acquire() as connection, connection.transaction():
                    await connection.execute(sql)
    else:
        await asyncio.to_thread(_write_synchronously, ground.path)
    assert await soon(anext(parents)) == [(1,)]
    assert not other.done()
    other.cancel()


def _write_synchronously(path: Path) -> None:
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.execute(ADD_PARENT)
    engine.dispose()


async def test_a_commit_to_another_table_reads_nothing(ground: Ground) -> None:
    """The statement is not even sent again."""
    rows = ground.maker.observe(COUNT, look_every=NEVER, distinct=False)
    await soon(anext(rows))
    waiting = await nothing(rows)
    await ground.add(Other())
    await ground.write(update(Child).values(name="x"))
    assert rows._subscription is not None
    assert not rows._subscription.is_due
    await ground.add(Parent())
    assert await soon(waiting) == [(1,)]  # type: ignore[arg-type]


STATEMENTS: dict[str, Any] = {
    "entity": select(Parent),
    "column": select(Parent.name),
    "alias": select(aliased(Parent).id),
    "core": select(table("parents", column("id", Integer))),
    "join": select(Other.id).join_from(
        Other, Parent, Parent.id == Other.id, isouter=True, full=True
    ),
    "subquery": select(select(func.count(Parent.id)).scalar_subquery()),
    "exists": select(Other.id, select(Parent.id).exists()),
    "cte": select(select(Parent.id).cte("p")),
    "union": select(Other.id).union_all(select(Parent.id)),
    "text": text("SELECT name FROM parents"),
    "view": text("SELECT * FROM seen"),
    "from_statement": select(Parent).from_statement(text("SELECT * FROM parents")),
}


@pytest.mark.parametrize("kind", STATEMENTS)
async def test_the_tables_of_a_statement(ground: Ground, kind: str) -> None:
    """Wherever a table stands in a statement, a commit to it gives another result."""
    if kind == "join":
        pytest.importorskip("sqlite3")
    ground.outside("CREATE VIEW seen AS SELECT count(*) FROM parents")
    rows = ground.maker.observe(STATEMENTS[kind], look_every=NEVER, distinct=False)
    await soon(anext(rows))
    waiting = await nothing(rows)
    await ground.add(Child())
    assert rows._subscription is not None
    assert not rows._subscription.is_due
    await ground.add(Parent())
    await soon(waiting)  # type: ignore[arg-type]


@pytest.mark.parametrize("load", [selectinload, joinedload])
async def test_relationships_loaded_eagerly(ground: Ground, load: Any) -> None:
    """A commit to the table of the relationship gives another result, also a first child."""
    await ground.add(Parent(id=1))
    statement = select(Parent).options(load(Parent.children))
    rows = ground.maker.observe(statement, look_every=NEVER).scalars()
    (parent,) = await soon(anext(rows))
    assert parent.children == []
    await ground.add(Child(id=1, parent_id=1, name="a"))
    (parent,) = await soon(anext(rows))
    assert [each.name for each in parent.children] == ["a"]
    await ground.write(update(Child).values(name="b"))
    (parent,) = await soon(anext(rows))
    assert [each.name for each in parent.children] == ["b"]
    waiting = await nothing(rows)
    await ground.add(Other())
    await ground.write(update(Child).values(name="b"))
    waiting = await _still(rows, waiting)
    waiting.cancel()


async def _still(rows: Any, waiting: asyncio.Task[Any]) -> asyncio.Task[Any]:
    """The task, once it has read what it was told of, and waits again."""
    await eventually(lambda: not rows._subscription.is_due)
    await eventually(lambda: waiting.done() or not rows._subscription._waiter.is_over)
    assert not waiting.done()
    return waiting


async def test_triggers_and_cascades(ground: Ground) -> None:
    """What a trigger writes counts, though the statement names another table."""
    ground.outside(
        "CREATE TRIGGER t AFTER INSERT ON others BEGIN "
        "INSERT INTO parents (name) VALUES ('by trigger'); END"
    )
    rows = ground.maker.observe(select(Parent.name), look_every=NEVER)
    assert await soon(anext(rows)) == []
    await ground.add(Other())
    assert await soon(anext(rows)) == [("by trigger",)]


async def test_an_equal_result_is_not_repeated(ground: Ground) -> None:
    """Unless it is asked for."""
    await ground.add(Parent(id=1, name="a"))
    first = select(Parent).where(Parent.id == 1)
    one = ground.maker.observe(first, look_every=NEVER)
    all_ = ground.maker.observe(first, look_every=NEVER, distinct=False)
    await soon(anext(one))
    await soon(anext(all_))
    waiting = await nothing(one)
    await ground.add(Parent(id=2))
    await soon(anext(all_))
    await _still(one, waiting)
    await ground.write(update(Parent).values(name="b"))
    ((parent,),) = await soon(waiting)  # type: ignore[arg-type]
    assert parent.name == "b"


async def test_a_transaction_that_changes_nothing(ground: Ground) -> None:
    """It has written nothing to the file, so the statement is not sent again."""
    rows = ground.maker.observe(select(Parent), look_every=NEVER, distinct=False)
    await soon(anext(rows))
    await ground.write(update(Parent).values(name="b"))
    assert not rows._subscription.is_due  # type: ignore[union-attr]


async def test_what_is_done_to_a_result_does_not_count(ground: Ground) -> None:
    """An object that the application changes is compared by what was read."""
    await ground.add(Parent(id=1, name="a"))
    rows = ground.maker.observe(select(Parent), look_every=NEVER).scalars()
    (parent,) = await soon(anext(rows))
    parent.name = "b"
    await ground.write(update(Parent).values(name="b"))
    (again,) = await soon(anext(rows))
    assert again.name == "b"
    assert again is not parent


async def test_many_commits_give_one_result(ground: Ground) -> None:
    """A slow consumer gets the last state, and nothing is kept for it meanwhile."""
    rows = ground.maker.observe(COUNT, look_every=NEVER)
    await soon(anext(rows))
    for _ in range(50):
        await ground.add(Parent())
    assert rows._subscription is not None
    assert len(rows._subscription._changed) <= len(Base.metadata.tables)
    assert await soon(anext(rows)) == [(50,)]
    (await nothing(rows)).cancel()


@pytest.mark.parametrize("how", ["rollback", "error", "savepoint"])
async def test_what_is_rolled_back_is_never_seen(ground: Ground, how: str) -> None:
    """Neither a result nor a wake-up comes of it."""
    rows = ground.maker.observe(COUNT, look_every=NEVER, distinct=False)
    await soon(anext(rows))
    waiting = await nothing(rows)
    async with ground.maker() as s:
        if how == "savepoint":
            await s.execute(insert(Other))
            savepoint = await s.begin_nested()
            await s.execute(ADD_PARENT)
            await savepoint.rollback()
            await s.commit()
        else:
            await s.execute(ADD_PARENT)
            await s.rollback()
    assert rows._subscription is not None
    if how == "savepoint":  # it may have changed the table
        assert await soon(waiting) == [(0,)]  # type: ignore[arg-type]
    else:
        assert not rows._subscription.is_due
        waiting.cancel()


async def test_an_uncommitted_change_is_not_seen(ground: Ground) -> None:
    """Also if a commit of another table comes in between, and the reader reads again."""
    rows = ground.maker.observe(text("SELECT count(*) FROM parents"), tables=[], look_every=NEVER)
    assert await soon(anext(rows)) == [(0,)]
    async with ground.maker() as s:
        await s.execute(ADD_PARENT)
        waiting = await nothing(rows)
        rows._subscription.tell(None)  # type: ignore[union-attr]
        await _still(rows, waiting)
        await s.commit()
    assert await soon(waiting) == [(1,)]  # type: ignore[arg-type]


async def test_one_result_is_one_snapshot(ground: Ground) -> None:
    """A commit between the two statements of one result is not half in it."""
    await ground.add(Parent(id=1, children=[Child(id=1)]))
    statement = select(Parent).options(selectinload(Parent.children))
    rows = ground.maker.observe(statement, look_every=NEVER).scalars()
    source, between = rows._open_session, []

    async def commit_between() -> None:
        ground.outside("DELETE FROM children", "INSERT INTO parents VALUES (2, '')")

    from sqlalchemy import event

    @event.listens_for(ground.engine.sync_engine, "before_cursor_execute")
    def before(conn: Any, cursor: Any, sql: str, *rest: Any) -> None:
        if "FROM children" in sql and sql.startswith("SELECT") and not between:
            between.append(sql)
            ground.outside("DELETE FROM children", "INSERT INTO parents VALUES (2, '')")

    assert source is rows._open_session
    (parent,) = await soon(anext(rows))
    assert between
    assert len(parent.children) == 1
    ground.commits._look()
    one, two = await soon(anext(rows))
    assert one.children == two.children == []


async def test_a_commit_between_the_read_and_the_wait(ground: Ground) -> None:
    """It gives another result, of whatever process it is."""
    rows = ground.maker.observe(COUNT, look_every=NEVER)
    read = rows._rows

    async def read_then_commit() -> Any:
        found = await read()
        if found[0] == [(0,)]:
            await ground.add(Parent())
        elif found[0] == [(1,)]:
            ground.outside("INSERT INTO parents (name) VALUES ('')")
            ground.commits.look_soon()
        return found

    rows._rows = read_then_commit  # type: ignore[method-assign]
    assert await soon(anext(rows)) == [(0,)]
    assert await soon(anext(rows)) == [(1,)]
    ground.commits._look()
    assert await soon(anext(rows)) == [(2,)]


async def test_a_commit_while_it_subscribes(ground: Ground) -> None:
    """A transaction that began before anybody observed counts, if it ends later."""
    async with ground.maker() as s:
        await s.execute(ADD_PARENT)
        rows = ground.maker.observe(COUNT, look_every=NEVER)
        assert await soon(anext(rows)) == [(0,)]
        await s.execute(insert(Other))
        await s.commit()
    assert await soon(anext(rows)) == [(1,)]


async def test_observed_only_in_the_middle_of_a_transaction(ground: Ground) -> None:
    """What a transaction wrote while nobody observed is not forgotten."""
    async with ground.maker() as s:
        first = ground.maker.observe(COUNT, look_every=NEVER)
        await soon(anext(first))
        await s.execute(insert(Other))
        await first.aclose()
        ground.commits.look_soon()
        await eventually(lambda: not ground.commits.observed)
        await s.execute(ADD_PARENT)
        second = ground.maker.observe(COUNT, look_every=NEVER)
        assert await soon(anext(second)) == [(0,)]
        await s.commit()
    assert await soon(anext(second)) == [(1,)]


async def test_tables_given_by_the_application(ground: Ground) -> None:
    """They replace those of the statement; an empty list means every commit."""
    some = ground.maker.observe(
        select(1), tables=[Parent, "OTHERS"], distinct=False, look_every=NEVER
    )
    every = ground.maker.observe(select(1), tables=[], distinct=False, look_every=NEVER)
    await soon(anext(some))
    await soon(anext(every))
    waiting = await nothing(some)
    await ground.add(Child())
    await soon(anext(every))
    assert not waiting.done()
    await ground.add(Other())
    await soon(waiting)  # type: ignore[arg-type]


async def test_tables_that_cannot_be_told_apart(ground: Ground) -> None:
    """For a view, or a table that is not there, every commit counts."""
    ground.outside("CREATE VIEW seen AS SELECT 1")
    for name in ("seen", "missing"):
        rows = ground.maker.observe(select(1), tables=[name], distinct=False, look_every=NEVER)
        await soon(anext(rows))
        waiting = await nothing(rows)
        await ground.add(Child())
        await soon(waiting)  # type: ignore[arg-type]


async def test_the_schema_changes(ground: Ground) -> None:
    """A view that comes to read another table is followed."""
    ground.outside("CREATE VIEW seen AS SELECT count(*) FROM parents")
    rows = ground.maker.observe(text("SELECT * FROM seen"), look_every=NEVER, distinct=False)
    await soon(anext(rows))
    await ground.write(text("DROP VIEW seen"))
    await ground.write(text("CREATE VIEW seen AS SELECT count(*) FROM others"))
    assert await soon(anext(rows)) == [(0,)]
    waiting = await nothing(rows)
    await ground.add(Parent())
    assert not rows._subscription.is_due  # type: ignore[union-attr]
    await ground.add(Other())
    assert await soon(waiting) == [(1,)]  # type: ignore[arg-type]


async def test_inside_of_a_write_transaction(ground: Ground) -> None:
    """It does not wait for the transaction of its own task, and sees what is committed."""
    async with ground.maker.begin() as s:
        await s.execute(ADD_PARENT)
        rows = ground.maker.observe(COUNT, look_every=NEVER)
        assert await soon(anext(rows)) == [(0,)]
    assert await soon(anext(rows)) == [(1,)]


async def test_a_full_pool(tmp_path: Path) -> None:
    """Observers that wait, or whose results are used, hold no connection."""
    ground = await Ground.ready(tmp_path / "a.db", pool_size=1, max_overflow=0, pool_timeout=0.1)
    many = [ground.maker.observe(COUNT, look_every=NEVER) for _ in range(20)]
    for rows in many:
        assert await soon(anext(rows)) == [(0,)]
    assert ground.engine.stats().in_use == 0
    await ground.add(Parent())
    assert await soon(asyncio.gather(*map(anext, many))) == [[(1,)]] * 20  # type: ignore[arg-type]
    for rows in many:
        await rows.aclose()
    await ground.close()


@pytest.mark.parametrize("how", ["break", "aclosing", "with", "cancelled", "collected"])
async def test_an_end_leaves_nothing(ground: Ground, how: str) -> None:
    """No task, no connection, no thread, however the loop over it ends."""
    tasks = asyncio.all_tasks()
    if how == "break":
        async for rows in ground.maker.observe(COUNT):
            assert rows == [(0,)]
            break
    elif how == "aclosing":
        async with aclosing(ground.maker.observe(COUNT)) as observed:
            await soon(anext(observed))
    elif how == "with":
        async with ground.maker.observe(COUNT) as observed:
            await soon(anext(observed))
        with pytest.raises(StopAsyncIteration):
            await soon(anext(observed))
    elif how == "cancelled":
        observed = ground.maker.observe(COUNT)
        await soon(anext(observed))
        waiting = await nothing(observed)
        waiting.cancel()
        await asyncio.wait([waiting])
        await observed.aclose()
    else:
        rows_ = ground.maker.observe(COUNT)
        await soon(anext(rows_))
        del rows_
    gc.collect()
    assert asyncio.all_tasks() == tasks
    await ground.settled()


async def test_close_wakes_the_one_that_waits(ground: Ground) -> None:
    """aclose() by another task ends its loop."""
    observed = ground.maker.observe(COUNT)
    await soon(anext(observed))
    waiting = await nothing(observed)
    await observed.aclose()
    with pytest.raises(StopAsyncIteration):
        await soon(waiting)  # type: ignore[arg-type]


async def test_a_time_limit_for_one_step(ground: Ground) -> None:
    """As for the heartbeat of a stream: the next step goes on where the cancelled one was."""
    rows = ground.maker.observe(COUNT, look_every=NEVER)
    await soon(anext(rows))
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(anext(rows), 0.001)
    await ground.add(Parent())
    assert await soon(anext(rows)) == [(1,)]


async def test_two_tasks_on_one_observation(ground: Ground) -> None:
    """The second one gets an error, and the first one its result."""
    rows = ground.maker.observe(COUNT)
    await soon(anext(rows))
    waiting = await nothing(rows)
    with pytest.raises(exc.InvalidRequestError, match="already waits"):
        await anext(rows)
    await ground.add(Parent())
    assert await soon(waiting) == [(1,)]  # type: ignore[arg-type]


async def test_disposed_of(ground: Ground) -> None:
    """The loop ends, and `changed` raises, because nothing of the engine is open any more."""
    rows = ground.maker.observe(COUNT, look_every=NEVER)
    await soon(anext(rows))
    waiting = await nothing(rows)
    change = asyncio.ensure_future(ground.maker.changed(Parent, look_every=NEVER))
    await eventually(lambda: len(ground.commits._live()) == 2)
    await ground.engine.dispose()
    with pytest.raises(StopAsyncIteration):
        await soon(waiting)  # type: ignore[arg-type]
    with pytest.raises(exc.InvalidRequestError, match="disposed of"):
        await soon(change)  # type: ignore[arg-type]
    assert await soon(anext(ground.maker.observe(COUNT))) == [(0,)]  # the engine works again


async def test_another_engine_is_disposed_of(ground: Ground) -> None:
    """Observers of other engines on the file go on."""
    other = Ground(ground.path)
    mine, theirs = ground.maker.observe(COUNT, look_every=NEVER), other.maker.observe(COUNT)
    await soon(anext(mine))
    await soon(anext(theirs))
    await other.engine.dispose()
    with pytest.raises(StopAsyncIteration):
        await soon(anext(theirs))
    await ground.add(Parent())
    assert await soon(anext(mine)) == [(1,)]


async def test_drained(ground: Ground) -> None:
    """A draining engine reads nothing more, and says so."""
    rows = ground.maker.observe(COUNT, look_every=NEVER)
    await soon(anext(rows))
    await ground.add(Parent())
    await ground.engine.drain()
    with pytest.raises(EngineDraining):
        await soon(anext(rows))


async def test_a_memory_database(tmp_path: Path) -> None:
    """It is a file like any other, as long as its engine is open."""
    maker = SessionMaker("sqlite+aiosqlite://")
    async with maker.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    rows = maker.observe(COUNT, look_every=NEVER)
    assert await soon(anext(rows)) == [(0,)]
    async with maker.begin() as s:
        s.add(Parent())
    assert await soon(anext(rows)) == [(1,)]
    await maker.dispose()
    with pytest.raises(StopAsyncIteration):
        await soon(anext(rows))


async def test_the_file_is_replaced(ground: Ground, tmp_path: Path) -> None:
    """The observer is told, as every reader is, and can go on with the new file."""
    rows = ground.maker.observe(COUNT, look_every=0.01)
    await soon(anext(rows))
    waiting = await nothing(rows)
    new = await Ground.ready(tmp_path / "b.db")
    await new.add(Parent(), Parent())
    await new.engine.dispose()
    for ending in ("-wal", "-shm"):
        (tmp_path / f"a.db{ending}").unlink(missing_ok=True)
    (tmp_path / "b.db").replace(tmp_path / "a.db")
    with pytest.raises(exc.OperationalError, match="replaced by another file"):
        await soon(waiting)  # type: ignore[arg-type]
    assert await soon(anext(rows)) == [(2,)]
    await ground.add(Parent())
    assert await soon(anext(rows)) == [(3,)]


async def test_two_loops(ground: Ground) -> None:
    """Observers in two loops share one connection, and a loop that is closed hinders nobody."""
    rows = ground.maker.observe(COUNT, look_every=NEVER)
    await soon(anext(rows))
    driver = ground.commits._driver
    theirs: list[Any] = []

    def in_another_loop() -> None:
        async def observe() -> None:
            other = ground.maker.observe(COUNT, look_every=NEVER)
            theirs.append(await soon(anext(other)))
            assert ground.commits._driver is driver
            await ground.add(Parent())
            theirs.append(await soon(anext(other)))
            theirs.append(other)
            theirs.append(asyncio.ensure_future(other.__anext__()))
            await asyncio.sleep(0)

        loop = asyncio.new_event_loop()
        loop.run_until_complete(observe())
        waiting = theirs.pop()
        waiting.cancel()
        loop.run_until_complete(asyncio.wait([waiting]))
        loop.close()

    await asyncio.to_thread(in_another_loop)
    assert theirs[:2] == [[(0,)], [(1,)]]
    assert await soon(anext(rows)) == [(1,)]
    await ground.add(Parent())  # also told to the one whose loop is closed
    assert await soon(anext(rows)) == [(2,)]
    assert await soon(anext(theirs[2])) == [(2,)]  # it may be used in another loop


async def test_errors_of_the_statement(ground: Ground) -> None:
    """They reach the application, and the next step tries again."""
    rows = ground.maker.observe(text("SELECT * FROM later"), look_every=NEVER)
    with pytest.raises(exc.OperationalError, match="no such table"):
        await soon(anext(rows))
    await ground.write(text("CREATE TABLE later (x)"))
    assert await soon(anext(rows)) == []
    with pytest.raises(exc.DBAPIError):
        await soon(anext(ground.maker.observe(text("SELEC 1"))))
    with pytest.raises(ReadOnlyError):
        await soon(anext(ground.maker.observe(delete(Parent))))
    assert_free(ground.path)


async def test_wrong_arguments(ground: Ground) -> None:
    """They are refused at once."""
    with pytest.raises(exc.ArgumentError, match="look_every"):
        ground.maker.observe(COUNT, look_every=0)
    with pytest.raises(exc.ArgumentError, match="not a table"):
        ground.maker.observe(COUNT, tables=[1])
    with pytest.raises(exc.ArgumentError, match="AsyncEngine"):
        ground.maker.observe(COUNT, engine=ground.engine.sync_engine)  # type: ignore[arg-type]
    with pytest.raises(exc.InvalidRequestError, match="no database is configured"):
        SessionMaker().observe(COUNT)


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("sqlite+aiosqlite://", "qsession.create_async_engine"),
        ("mysql+asyncmy://u@127.0.0.1/x", "PostgreSQL through asyncpg or psycopg"),
    ],
)
async def test_engines_that_tell_nothing(ground: Ground, url: str, advice: str) -> None:
    """A plain engine on SQLite, and MySQL: the error says what to do."""
    engine = plain_engine(url)
    with pytest.raises(exc.InvalidRequestError, match=advice):
        ground.maker.observe(COUNT, engine=engine)
    with pytest.raises(exc.InvalidRequestError, match=advice):
        await ground.maker.changed(Parent, engine=engine)


async def test_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There SQLite cannot tell, so it is refused."""
    ground = await Ground.ready(tmp_path / "a.db")
    await ground.engine.dispose()
    from qsession.sqlite.driver.physical import DriverConnection

    with monkeypatch.context() as patch:
        patch.setattr(DriverConnection, "frozen", True, raising=False)
        spare = type(ground.engine.pool).spare
        patch.setattr(
            type(ground.engine.pool),
            "spare",
            lambda self: (driver := spare(self), setattr(driver, "frozen", True))[0],
        )
        with pytest.raises(exc.InvalidRequestError, match="read-only folder"):
            await soon(anext(ground.maker.observe(COUNT)))
    await ground.engine.dispose()


# `changed`.


async def test_changed(ground: Ground) -> None:
    """It returns at the next commit to one of its tables."""
    change = asyncio.ensure_future(ground.maker.changed(Parent, Child, look_every=NEVER))
    every = asyncio.ensure_future(ground.maker.changed(look_every=NEVER))
    await eventually(
        lambda: [each._waiter.is_over for each in ground.commits._live()] == [False] * 2
    )
    await ground.add(Other())
    await soon(every)  # type: ignore[arg-type]
    assert not change.done()
    await ground.add(Child())
    await soon(change)  # type: ignore[arg-type]


async def test_changed_is_cancelled(ground: Ground) -> None:
    """Nothing of it stays."""
    change = asyncio.ensure_future(ground.maker.changed(Parent))
    await eventually(lambda: bool(ground.commits._live()))
    change.cancel()
    await asyncio.wait([change])
    del change
    gc.collect()
    await ground.settled()


async def test_threads_of_looks_end(ground: Ground) -> None:
    """While nobody observes there is neither a connection nor a thread for it."""
    before = {each for each in threading.enumerate() if each.is_alive()}
    rows = ground.maker.observe(COUNT)
    await soon(anext(rows))
    assert ground.commits._driver is not None
    await rows.aclose()
    await ground.settled()
    assert ground.commits._driver is None
    extra = {each for each in threading.enumerate() if "worker" in each.name} - before
    await eventually(lambda: sum(each.is_alive() for each in extra) <= 1)
