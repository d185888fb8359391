"""The storage of states for aiogram 3: by itself, in handlers, and in dialogs of many users."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import updates
from aiogram import Dispatcher, F, Router, flags
from aiogram.exceptions import DataNotDictLikeError
from aiogram.filters import Command
from aiogram.fsm.context import FSMContext
from aiogram.fsm.state import State, StatesGroup
from aiogram.fsm.storage.base import StorageKey
from aiogram.fsm.storage.memory import SimpleEventIsolation
from aiogram.types import Message
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from cancelling import assert_free, rows
from sqlalchemy import MetaData, String, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from qsession import ConflictError, QSession
from qsession.ext.aiogram import Sessions
from qsession.ext.aiogram_states import StateStorage, state_table
from qsession.ext.aiogram_table import Change, apply
from qsession.models import NAMING_CONVENTION
from qsession.session.maker import SessionMaker
from qsession.testing import When, cancel_at

MANY = 200
KEY = StorageKey(bot_id=42, chat_id=7, user_id=7)


class Base(DeclarativeBase):
    """The tables of these tests."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class Order(Base):
    """What a dialog ends in."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    user: Mapped[int]
    what: Mapped[str] = mapped_column(String(100))


state_table.to_metadata(Base.metadata)


class Form(StatesGroup):
    """The dialog."""

    what = State()
    sure = State()


async def made(url: str) -> SessionMaker:
    """Sessions on a database with the tables."""
    maker = SessionMaker(url)
    async with maker.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    return maker


@pytest.fixture
async def maker(tmp_path: Path) -> AsyncIterator[SessionMaker]:
    """Sessions on a file."""
    maker = await made(f"sqlite+aiosqlite:///{tmp_path / 'bot.db'}")
    yield maker
    await maker.dispose()


@pytest.fixture
def stored(tmp_path: Path) -> Any:
    """What a connection from outside sees: state and data of each key."""

    def stored() -> list[tuple[str | None, Any]]:
        found = rows(tmp_path / "bot.db", "SELECT state, data FROM aiogram_states ORDER BY user_id")
        return [(state, json.loads(data) if data else {}) for state, data in found]

    return stored


def dispatcher_of(maker: SessionMaker, **kw: Any) -> tuple[Dispatcher, Router]:
    """A dispatcher with sessions and states, and a router in it."""
    dispatcher, router = Dispatcher(storage=StateStorage(maker), **kw), Router()
    Sessions(maker).setup(dispatcher)
    dispatcher.include_router(router)
    return dispatcher, router


async def test_each_part_of_the_key_counts(url):
    """States of keys that differ in one part are apart. What is removed leaves no row."""
    maker = await made(url)
    storage = StateStorage(maker)
    parts = {"thread_id": 5, "business_connection_id": "b", "destiny": "d", "bot_id": 1 << 40}
    keys = [KEY, replace(KEY, chat_id=-1001234567890), replace(KEY, user_id=8)]
    keys += [replace(KEY, **{name: value}) for name, value in parts.items()]
    for number, key in enumerate(keys):
        await storage.set_state(key, Form.what)
        assert await storage.update_data(key, {"n": number}) == {"n": number}
    for number, key in enumerate(keys):
        assert await storage.get_state(key) == "Form:what"
        assert await storage.get_data(key) == {"n": number}
        assert await storage.get_value(key, "n") == number
        assert await storage.get_value(key, "m", "none") == "none"
        await storage.set_state(key, None)
        assert await storage.get_data(key) == {"n": number}
        await storage.set_data(key, {})
        assert (await storage.get_state(key), await storage.get_data(key)) == (None, {})
    async with maker.reader() as session:
        assert (await session.execute(text("SELECT * FROM aiogram_states"))).all() == []
    with pytest.raises(DataNotDictLikeError):
        await storage.set_data(KEY, ["no", "dict"])
    await storage.close()
    await maker.dispose()


async def test_updates_at_once_are_all_kept(url):
    """Tasks that set different values of one key at once: all are there."""
    maker = await made(url)
    storage = StateStorage(maker)
    await storage.set_data(KEY, {"first": 1})
    await asyncio.gather(*(storage.update_data(KEY, {f"n{each}": each}) for each in range(20)))
    assert await storage.get_data(KEY) == {"first": 1, **{f"n{each}": each for each in range(20)}}
    await maker.dispose()


async def test_alembic_sees_the_table(url):
    """It is in the metadata of the application, and what create_all makes is what it compares."""
    maker = await made(url)
    async with maker.engine.connect() as connection:
        context = await connection.run_sync(MigrationContext.configure)
        there = await connection.run_sync(lambda _: compare_metadata(context, Base.metadata))
        await connection.execute(text("DROP TABLE aiogram_states"))
        gone = await connection.run_sync(lambda _: compare_metadata(context, Base.metadata))
        await connection.rollback()
    assert there == []
    assert [each[0] for each in gone] == ["add_table"]
    await maker.dispose()


async def test_what_was_returned_is_not_shared(maker):
    """Whoever changes the dicts that were passed or returned changes nothing of the storage."""
    storage = StateStorage(maker)
    dispatcher, router = dispatcher_of(maker)

    @router.message()
    async def check(message: Message | None, state: FSMContext) -> None:
        given: dict[str, Any] = {"list": [1]}
        await state.set_data(given)
        given["list"].append(2)
        (await state.get_data())["list"].append(3)
        (await state.update_data(more={"a": 1}))["more"]["b"] = 2
        assert await state.get_data() == {"list": [1], "more": {"a": 1}}
        nobody = await state.storage.get_data(replace(KEY, user_id=99))
        nobody["who"] = "nobody"
        assert await state.storage.get_data(replace(KEY, user_id=99)) == {}

    await check(None, FSMContext(storage, KEY))
    bot, _ = updates.bot()
    await dispatcher.feed_raw_update(bot, updates.message("check", user=8))
    key = replace(KEY, user_id=8)
    assert await storage.get_data(key) == {"list": [1], "more": {"a": 1}}


async def test_what_a_handler_sets_counts_in_order(maker, stored):
    """It reads what it has set itself, and the commit writes the same: what was there is replaced
    by `set_data`, whatever follows it."""
    dispatcher, router = dispatcher_of(maker)
    steps = []

    @router.message()
    async def step(message: Message, state: FSMContext) -> None:
        await state.update_data(a=1, b=1)
        steps.append(await state.get_data())
        await state.set_data({"b": 2})
        steps.append(await state.update_data(c=3))
        await state.set_state(Form.what)
        await state.update_data(c=4)
        steps.append((await state.get_state(), await state.get_data()))

    await StateStorage(maker).set_data(replace(KEY, user_id=8), {"old": 0})
    bot, _ = updates.bot()
    await dispatcher.feed_raw_update(bot, updates.message("step", user=8))
    assert steps == [{"old": 0, "a": 1, "b": 1}, {"b": 2, "c": 3}, ("Form:what", {"b": 2, "c": 4})]
    assert stored() == [("Form:what", {"b": 2, "c": 4})]


async def test_states_are_written_with_the_session(maker, stored, tmp_path):
    """A handler that has written sets states: no second transaction, both are there or neither."""
    dispatcher, router = dispatcher_of(maker)

    @router.message()
    async def order(message: Message, session: QSession, state: FSMContext) -> None:
        session.add(Order(user=7, what=message.text))
        await session.flush()
        assert await state.get_state() is None
        await state.set_state(Form.sure)
        assert await state.update_data(what=message.text) == {"what": message.text}
        assert await state.get_state() == "Form:sure"
        assert await state.get_value("what") == message.text
        async with session.begin_nested():
            await state.update_data(sure=False)
        if message.text == "fail":
            raise LookupError

    bot, _ = updates.bot()
    with pytest.raises(LookupError):
        await dispatcher.feed_raw_update(bot, updates.message("fail"))
    assert rows(tmp_path / "bot.db", "SELECT * FROM orders") == []
    assert stored() == []
    await dispatcher.feed_raw_update(bot, updates.message("tea"))
    assert rows(tmp_path / "bot.db", "SELECT what FROM orders") == [("tea",)]
    assert stored() == [("Form:sure", {"what": "tea", "sure": False})]


async def test_a_state_that_was_set_keeps_nobody_waiting(maker, stored, tmp_path):
    """While the handler that has set it talks to Telegram, the file can be written to."""
    dispatcher, router = dispatcher_of(maker)

    @router.message()
    async def ask(message: Message, state: FSMContext) -> None:
        await state.set_state(Form.what)
        await state.update_data(asked=await state.get_state())
        await message.answer("What do you want?")

    bot, requests = updates.bot()
    requests.free.clear()
    feed = asyncio.create_task(dispatcher.feed_raw_update(bot, updates.message("order")))
    while not requests.begun:
        await asyncio.sleep(0)
    assert_free(tmp_path / "bot.db")
    assert maker.engine.stats().in_use == 0
    requests.free.set()
    await feed
    assert stored() == [("Form:what", {"asked": "Form:what"})]


async def test_a_commit_in_the_handler_writes_them(maker, stored):
    """What is set after it comes with the next one, and what was set before stays."""
    dispatcher, router = dispatcher_of(maker)

    @router.message()
    async def order(message: Message, session: QSession, state: FSMContext) -> None:
        await state.set_state(Form.what)
        await session.commit()
        assert stored() == [("Form:what", {})]
        await state.update_data(a=1)
        await state.set_state(Form.sure)
        await session.commit()
        assert stored() == [("Form:sure", {"a": 1})]
        await state.clear()
        raise LookupError

    bot, _ = updates.bot()
    with pytest.raises(LookupError):
        await dispatcher.feed_raw_update(bot, updates.message("order"))
    assert stored() == [("Form:sure", {"a": 1})]


@pytest.mark.parametrize("used", [True, False], ids=["used", "unused"])
async def test_a_rollback_in_the_handler_drops_them(maker, stored, used):
    """Also if the session has sent nothing yet. What it had seen counts no longer, either."""
    dispatcher, router = dispatcher_of(maker)

    @router.message()
    async def order(message: Message, session: QSession, state: FSMContext) -> None:
        assert await state.get_data() == {}
        await state.set_state(Form.what)
        await state.update_data(a=1)
        if used:
            session.add(Order(user=1, what="nothing"))
            await session.flush()
        await session.rollback()
        async with maker.begin() as other:
            await other.run_sync(apply, KEY, Change(data={"b": 2}))
        await state.update_data(c=3)

    bot, _ = updates.bot()
    await dispatcher.feed_raw_update(bot, updates.message("order"))
    assert stored() == [(None, {"b": 2, "c": 3})]


async def test_a_savepoint_drops_what_was_set_in_it(maker, stored):
    """What was set before it, or in one that was released, is written."""
    dispatcher, router = dispatcher_of(maker)

    @router.message()
    async def order(message: Message, session: QSession, state: FSMContext) -> None:
        with suppress(LookupError):
            async with session.begin_nested():
                await state.update_data(first=1)
                raise LookupError
        await state.update_data(a=1)
        with suppress(LookupError):
            async with session.begin_nested():
                await state.update_data(b=2)
                async with session.begin_nested():
                    await state.set_state(Form.what)
                raise LookupError
        async with session.begin_nested():
            await state.update_data(c=3)

    bot, _ = updates.bot()
    await dispatcher.feed_raw_update(bot, updates.message("order"))
    assert stored() == [(None, {"a": 1, "c": 3})]


async def test_dialogs_of_many_at_once(maker, stored, tmp_path):
    """Hundreds of users talk at once, in steps; each order is there, and no state is left."""
    dispatcher, router = dispatcher_of(maker, events_isolation=SimpleEventIsolation())

    @router.message(Command("order"))
    async def begin(message: Message, state: FSMContext) -> Any:
        await state.set_state(Form.what)
        return message.answer("What?")

    @router.message(Form.what)
    async def what(message: Message, state: FSMContext) -> Any:
        await state.update_data(what=message.text)
        await state.set_state(Form.sure)
        return message.answer("Sure?")

    @router.message(Form.sure, F.text == "yes")
    async def sure(message: Message, session: QSession, state: FSMContext) -> Any:
        session.add(Order(user=message.from_user.id, what=await state.get_value("what")))
        await state.clear()
        return message.answer("Done.")

    async def dialog(user: int) -> list[str]:
        said = []
        for words in ("/order", f"tea {user}", "yes"):
            update = updates.message(words, user=user, chat=user)
            said.append((await dispatcher.feed_webhook_update(bot, update)).text)
        return said

    bot, _ = updates.bot()
    said = await asyncio.gather(*(dialog(user) for user in range(1, MANY + 1)))
    assert said == [["What?", "Sure?", "Done."]] * MANY
    assert stored() == []
    found = rows(tmp_path / "bot.db", "SELECT user, what FROM orders ORDER BY user")
    assert found == [(user, f"tea {user}") for user in range(1, MANY + 1)]


async def test_counting_in_the_data_loses_nothing(maker, stored):
    """Marked handlers of one user, at once and without an isolation: each counts."""
    dispatcher, router = dispatcher_of(maker)
    calls = count()

    @router.message()
    @flags.session(attempts=5)
    async def add(message: Message, state: FSMContext) -> None:
        next(calls)
        data = await state.get_data()
        await state.set_data({"n": data.get("n", 0) + 1})

    bot, _ = updates.bot()
    feeds = (dispatcher.feed_raw_update(bot, updates.message("add")) for _ in range(MANY))
    await asyncio.gather(*feeds)
    assert stored() == [(None, {"n": MANY})]
    assert next(calls) > MANY  # some ran again


async def test_a_stale_state_is_not_written(maker, stored):
    """What was read has changed: the handler that is not marked gets a conflict."""
    dispatcher, router = dispatcher_of(maker)
    asked, changed = asyncio.Event(), asyncio.Event()

    async def change() -> None:
        await asked.wait()
        await StateStorage(maker).set_data(KEY, {"n": 10})
        changed.set()

    @router.message()
    async def add(message: Message, session: QSession, state: FSMContext) -> None:
        data = await state.get_data()
        asked.set()
        await changed.wait()
        await state.set_data({"n": data.get("n", 0) + 1})
        session.add(Order(user=7, what="lost"))

    bot, _ = updates.bot()
    other = asyncio.create_task(change())
    with pytest.raises(ConflictError, match="was changed after this handler had read it"):
        await dispatcher.feed_raw_update(bot, updates.message("add"))
    await other
    assert stored() == [(None, {"n": 10})]
    async with maker.reader() as session:
        assert await session.scalar(text("SELECT count(*) FROM orders")) == 0


async def test_a_reader_may_set_states(maker, stored):
    """A handler with access read writes nothing by itself; its states have a transaction each."""
    dispatcher, router = dispatcher_of(maker)

    @router.message()
    @flags.session(access="read")
    async def ask(message: Message, session: QSession, state: FSMContext) -> None:
        assert await session.scalar(text("SELECT count(*) FROM orders")) == 0
        await state.set_state(Form.what)
        assert stored() == [("Form:what", {})]
        assert await state.update_data(a=1) == await state.get_data() == {"a": 1}

    bot, _ = updates.bot()
    await dispatcher.feed_raw_update(bot, updates.message("order"))
    assert stored() == [("Form:what", {"a": 1})]


@pytest.mark.parametrize("words", ["wait", "end"])
async def test_a_task_that_outlives_its_handler(maker, stored, words):
    """What a task sets whose handler has ended, or ends meanwhile, is written by itself."""
    dispatcher, router = dispatcher_of(maker)
    ended = asyncio.Event()
    started = []

    async def remind(state: FSMContext) -> None:
        await state.update_data(before=True)
        await ended.wait()
        await state.update_data(behind=await state.get_data())

    @router.message()
    async def begin(message: Message, session: QSession, state: FSMContext) -> None:
        started.append(asyncio.create_task(remind(state)))
        await state.set_state(Form.what)
        if message.text == "wait":
            while "before" not in await state.get_data():
                await asyncio.sleep(0)

    bot, _ = updates.bot()
    await dispatcher.feed_raw_update(bot, updates.message(words))
    if words == "wait":
        assert stored() == [("Form:what", {"before": True})]
    ended.set()
    await started[0]
    assert stored() == [("Form:what", {"before": True, "behind": {"before": True}})]


async def test_two_databases(maker, stored, tmp_path):
    """A storage in another database than the handler's session writes by itself, at once."""
    other = await made(f"sqlite+aiosqlite:///{tmp_path / 'other.db'}")
    dispatcher = Dispatcher(storage=StateStorage(maker))
    Sessions(other).setup(dispatcher)

    @dispatcher.message()
    async def order(message: Message, session: QSession, state: FSMContext) -> None:
        session.add(Order(user=7, what="tea"))
        await session.flush()
        await state.set_state(Form.what)
        assert stored() == [("Form:what", {})]

    bot, _ = updates.bot()
    await dispatcher.feed_raw_update(bot, updates.message("order"))
    assert rows(tmp_path / "other.db", "SELECT what FROM orders") == [("tea",)]
    await other.dispose()


@pytest.mark.parametrize("when", list(When))
async def test_cancelled_anywhere(maker, stored, tmp_path, when):
    """A handler that is cancelled at any of its awaits has set its state and its order, or none."""
    dispatcher, router = dispatcher_of(maker)

    @router.message()
    async def order(message: Message, session: QSession, state: FSMContext) -> None:
        data = await state.get_data()
        session.add(Order(user=7, what="tea"))
        await session.flush()
        await state.update_data(n=data.get("n", 0) + 1)
        await message.answer("ordered")

    bot, _ = updates.bot()
    for n in count(1):
        ended = await cancel_at(dispatcher.feed_raw_update(bot, updates.message("order")), n, when)
        assert_free(tmp_path / "bot.db")
        orders = len(rows(tmp_path / "bot.db", "SELECT * FROM orders"))
        assert stored() == ([(None, {"n": orders})] if orders else [])
        if ended:
            break
    assert n > 2
    assert orders >= 1
