"""A statement that is run again: the last result counts, if the application has seen it.

The ORM keeps the objects that it has loaded, so a second SELECT does not show their changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cancelling import Bench, assert_free
from sqlalchemy import ForeignKey, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    joinedload,
    load_only,
    mapped_column,
    relationship,
    selectinload,
    subqueryload,
)

from qsession import ConflictError
from qsession.sqlite.queue.prediction import Guess


class Base(DeclarativeBase):
    """Those of this file."""


class User(Base):
    """Who has visited how often."""

    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    visits: Mapped[int] = mapped_column(default=0)
    note: Mapped[str] = mapped_column(default="")
    orders: Mapped[list[Order]] = relationship(back_populates="user")


class Order(Base):
    """What a user has bought."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    user: Mapped[User] = relationship(back_populates="orders")


class Animal(Base):
    """What is of one kind or another."""

    __tablename__ = "animals"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    __mapper_args__: ClassVar[dict[str, Any]] = {"polymorphic_on": "kind"}


class Dog(Animal):
    """Its columns are read by a SELECT of their own."""

    __tablename__ = "dogs"
    id: Mapped[int] = mapped_column(ForeignKey("animals.id"), primary_key=True)
    barks: Mapped[int] = mapped_column(default=0)
    __mapper_args__: ClassVar[dict[str, Any]] = {
        "polymorphic_identity": "dog",
        "polymorphic_load": "selectin",
    }


ONE = select(User).where(User.id == 1)
ALL = select(User).order_by(User.id)
VISITS = select(User.visits).where(User.id == 1)
NOW = {"populate_existing": True}
Between = Callable[[], Awaitable[None]]
Way = Callable[[AsyncSession, Between], Awaitable[int]]


@pytest.fixture(params=[{}, {"qsession_access": "write"}], ids=["auto", "write"])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    """An engine whose call sites are known to read before they write."""
    bench = await Bench.ready(tmp_path / "app.db", stall_after=0.01, pool_size=3)
    bench.engine.pool.write_queue.prediction.guess = lambda site: Guess.VALIDATES
    async with bench.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(bench.engine) as session:
        session.add_all([User(id=1, orders=[Order(id=1)]), User(id=2), User(id=3), Dog(id=1)])
        await session.commit()
    yield bench.engine.execution_options(**request.param)
    await bench.check()
    await bench.engine.dispose()
    assert_free(bench.path)


async def visits(engine: AsyncEngine, count: Way) -> tuple[int, bool]:
    """How many visits are in the file, after another task has counted one and ``count`` another.

    The second value tells whether ``count`` ended in a conflict.
    """

    async def visit() -> None:
        async with AsyncSession(engine) as session:
            await session.execute(
                update(User).where(User.id == 1).values(visits=User.visits + 1, note="seen")
            )
            session.add(Order(user_id=2))
            (await session.scalars(select(Dog))).one().barks += 1
            await session.commit()

    async def between() -> None:
        await asyncio.create_task(visit())

    conflict = False
    async with AsyncSession(engine, expire_on_commit=False) as session:
        try:
            number = await count(session, between)
            await session.execute(update(User).where(User.id == 1).values(visits=number + 1))
            await session.commit()
        except ConflictError:
            conflict = True
    async with AsyncSession(engine.execution_options(qsession_access="read")) as session:
        return await session.scalar(VISITS) or 0, conflict


async def the_object_twice(session: AsyncSession, between: Between) -> int:
    user = (await session.scalars(ONE)).one()
    await between()
    return (await session.scalars(ONE)).one().visits + 0 * user.visits


async def the_object_three_times(session: AsyncSession, between: Between) -> int:
    user = (await session.scalars(ONE)).one()
    await between()
    for _ in range(2):
        await session.scalars(ONE)
    return user.visits


async def the_object_then_its_columns(session: AsyncSession, between: Between) -> int:
    user = (await session.scalars(ONE)).one()
    await between()
    await session.execute(select(User.id, User.visits, User.note).where(User.id == 1))
    return user.visits


async def a_row_that_drops_out(session: AsyncSession, between: Between) -> int:
    query = select(User).where(User.note == "")
    users = (await session.scalars(query)).all()
    await between()
    await session.scalars(query)
    return next(each.visits for each in users if each.id == 1)


async def another_attribute_by_itself(session: AsyncSession, between: Between) -> int:
    user = (await session.scalars(ONE)).one()
    await between()
    await session.refresh(user, ["note"])
    await session.scalars(ONE)
    return user.visits


async def by_two_sessions(session: AsyncSession, between: Between) -> int:
    user = (await session.scalars(ONE)).one()
    async with AsyncSession(await session.connection()) as other:
        again = (await other.scalars(ONE)).one()
        await between()
        await other.refresh(again)
    return user.visits


async def a_stream_that_was_broken_off_in_its_buffer(
    session: AsyncSession, between: Between
) -> int:
    query = text("SELECT visits FROM users ORDER BY id DESC")
    rows = (await session.execute(query)).all()
    await between()
    stream = await session.stream(query)
    for _ in range(2):  # SQLAlchemy has fetched all three by then
        await stream.fetchone()
    await stream.close()
    return int(rows[2].visits)


async def a_list_twice(session: AsyncSession, between: Between) -> int:
    users = (await session.scalars(ALL)).all()
    await between()
    assert (await session.scalars(ALL)).all() == users
    return users[0].visits


async def with_what_belongs_to_it_twice(session: AsyncSession, between: Between) -> int:
    users = (await session.scalars(ONE.options(selectinload(User.orders)))).all()
    await between()
    await session.scalars(ONE.options(selectinload(User.orders)))
    return users[0].visits


def orders_twice(option: Callable[[Any], Any], earlier: bool = False) -> Way:
    """What belongs to an object, which is nothing at first: the object keeps that."""

    async def way(session: AsyncSession, between: Between) -> int:
        user = await session.get_one(User, 2) if earlier else None
        query = select(User).where(User.id == 2).options(option(User.orders))
        users = (await session.scalars(query)).unique().all()
        await between()
        await session.scalars(query)
        assert user in (None, *users)
        return len(users[0].orders)

    way.__name__ = f"{option.__name__}_twice{'_onto_an_object' * earlier}"
    return way


async def the_orders_of_several_beside_one_of_them(session: AsyncSession, between: Between) -> int:
    orders = (await session.scalars(select(Order))).all()
    query = ALL.options(selectinload(User.orders))
    users = (await session.scalars(query)).all()
    await between()
    await session.scalars(query)
    return len(users[1].orders) + 0 * len(orders)


async def a_column_that_was_left_out_twice(session: AsyncSession, between: Between) -> int:
    user = (await session.scalars(ONE.options(load_only(User.id)))).one()
    await session.scalars(ONE)
    await between()
    await session.scalars(ONE)
    return user.visits


async def a_column_of_a_subclass_twice(session: AsyncSession, between: Between) -> int:
    animals = (await session.scalars(select(Animal))).all()
    await between()
    await session.scalars(select(Animal))
    (dog,) = animals
    assert isinstance(dog, Dog)
    return dog.barks


async def as_part_of_another_twice(session: AsyncSession, between: Between) -> int:
    query = select(Order).options(joinedload(Order.user))
    orders = (await session.scalars(query)).all()
    await between()
    await session.scalars(query)
    return orders[0].user.visits


async def in_two_savepoints(session: AsyncSession, between: Between) -> int:
    async with session.begin_nested():
        user = (await session.scalars(ONE)).one()
    await between()
    async with session.begin_nested():
        await session.scalars(ONE)
    return user.visits


async def an_object_then_the_same_text(session: AsyncSession, between: Between) -> int:
    user = (await session.scalars(ONE)).one()
    await between()
    connection = await session.connection()
    await connection.execute(ONE)  # not by the ORM, so the object stays as it is
    return user.visits


async def streams_of_which_the_second_is_broken_off(session: AsyncSession, between: Between) -> int:
    users = [each async for each in await session.stream_scalars(ALL)]
    await between()
    async for _ in await session.stream_scalars(ALL):
        break
    return users[0].visits


async def all_rows_then_a_stream_of_none(session: AsyncSession, between: Between) -> int:
    rows = (await session.execute(text("SELECT visits FROM users ORDER BY id"))).all()
    await between()
    await (await session.stream(text("SELECT visits FROM users ORDER BY id"))).close()
    return int(rows[0].visits)


async def two_streams_at_once(session: AsyncSession, between: Between) -> int:
    query = text("SELECT visits FROM users ORDER BY id")
    one, other = await session.stream(query), await session.stream(query)
    rows = await one.all()
    await other.fetchone()
    await other.close()
    await between()
    return int(rows[0].visits)


@pytest.mark.parametrize(
    "way",
    [
        the_object_twice,
        the_object_three_times,
        the_object_then_its_columns,
        a_row_that_drops_out,
        another_attribute_by_itself,
        by_two_sessions,
        a_stream_that_was_broken_off_in_its_buffer,
        a_list_twice,
        with_what_belongs_to_it_twice,
        *(
            orders_twice(option, earlier)
            for option in (joinedload, selectinload, subqueryload)
            for earlier in (False, True)
        ),
        the_orders_of_several_beside_one_of_them,
        a_column_that_was_left_out_twice,
        a_column_of_a_subclass_twice,
        as_part_of_another_twice,
        in_two_savepoints,
        an_object_then_the_same_text,
        streams_of_which_the_second_is_broken_off,
        all_rows_then_a_stream_of_none,
        two_streams_at_once,
    ],
)
async def test_what_was_not_seen_is_a_conflict(engine: AsyncEngine, way: Way) -> None:
    """The application computes from what the first SELECT showed, so no update may be lost."""
    assert await visits(engine, way) == (1, True)


async def refreshed(session: AsyncSession, between: Between) -> int:
    user = (await session.scalars(ONE)).one()  # SQLAlchemy 2.0 has another text for get()
    await between()
    await session.refresh(user)
    return user.visits


async def populated_again(session: AsyncSession, between: Between) -> int:
    user = (await session.scalars(ONE)).one()
    await between()
    await session.scalars(ONE.execution_options(**NOW))
    return user.visits


async def expired_in_between(session: AsyncSession, between: Between) -> int:
    user = (await session.scalars(ONE)).one()
    await between()
    session.expire_all()
    await session.scalars(ONE)
    return user.visits


async def without_keeping_the_object(session: AsyncSession, between: Between) -> int:
    assert not (await session.scalars(ONE)).one().visits
    await between()
    return (await session.scalars(ONE)).one().visits


async def beside_an_object_of_another_row(session: AsyncSession, between: Between) -> int:
    other = await session.get_one(User, 2)
    assert not (await session.scalars(ONE)).one().visits
    await between()
    return (await session.scalars(ONE)).one().visits + other.visits


async def a_list_of_which_each_was_refreshed(session: AsyncSession, between: Between) -> int:
    users = (await session.scalars(ALL)).all()
    await between()
    for each in users:
        await session.refresh(each)
    await session.scalars(ALL)
    return users[0].visits


async def the_orders_were_populated_again(session: AsyncSession, between: Between) -> int:
    query = select(User).where(User.id == 2).options(selectinload(User.orders))
    user = (await session.scalars(query)).one()
    await between()
    await session.scalars(query.execution_options(**NOW))
    return len(user.orders)


async def the_orders_were_loaded_lazily_again(session: AsyncSession, between: Between) -> int:
    def count(session: Session) -> int:
        return len(session.get_one(User, 2).orders)

    assert not await session.run_sync(count)
    await between()
    session.expire(await session.get_one(User, 2), ["orders"])
    return await session.run_sync(count)


async def beside_an_object_that_has_its_orders(session: AsyncSession, between: Between) -> int:
    query = select(Order).where(Order.user_id == 2)
    user = await session.get_one(User, 3, options=[selectinload(User.orders)])
    assert not (await session.scalars(query)).all()
    await between()
    return len((await session.scalars(query)).all()) + len(user.orders)


async def only_a_column(session: AsyncSession, between: Between) -> int:
    assert not await session.scalar(VISITS)
    await between()
    return await session.scalar(VISITS) or 0


async def only_a_column_beside_the_object_of_another(
    session: AsyncSession, between: Between
) -> int:
    other = await session.get_one(User, 2)
    assert not await session.scalar(select(func.sum(User.visits)))
    await between()
    return await session.scalar(select(func.sum(User.visits))) or other.visits


async def a_list_that_has_grown(session: AsyncSession, between: Between) -> int:
    query = select(User).where(User.note == "seen")
    assert not (await session.scalars(query)).all()
    await between()
    user = (await session.scalars(query)).first()
    return user.visits if user else 0


async def two_whole_streams(session: AsyncSession, between: Between) -> int:
    query = text("SELECT visits FROM users ORDER BY id")
    assert len(await (await session.stream(query)).all()) == 3
    await between()
    return int((await (await session.stream(query)).all())[0].visits)


async def the_first_row_of_two_streams(session: AsyncSession, between: Between) -> int:
    query = text("SELECT visits FROM users ORDER BY id")
    for _ in range(3):
        await (await session.stream(query)).first()
    await between()
    row = await (await session.stream(query)).first()
    assert row is not None
    return int(row.visits)


@pytest.mark.parametrize(
    "way",
    [
        refreshed,
        populated_again,
        expired_in_between,
        without_keeping_the_object,
        beside_an_object_of_another_row,
        a_list_of_which_each_was_refreshed,
        the_orders_were_populated_again,
        the_orders_were_loaded_lazily_again,
        beside_an_object_that_has_its_orders,
        only_a_column,
        only_a_column_beside_the_object_of_another,
        a_list_that_has_grown,
        two_whole_streams,
        the_first_row_of_two_streams,
    ],
)
async def test_what_was_seen_last_counts(engine: AsyncEngine, way: Way) -> None:
    """A task that polls, and has seen the change, goes on from there."""
    if engine.sync_engine.get_execution_options().get("qsession_access") == "write":
        assert await visits(engine, way) == (1, True)  # it reads from one snapshot
    else:
        assert await visits(engine, way) == (2, False)
