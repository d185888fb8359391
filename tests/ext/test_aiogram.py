"""The middleware for aiogram 3: real updates through a real dispatcher, looked at from outside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import updates
from aiogram import Bot, Dispatcher, F, Router, flags
from aiogram.dispatcher.event.bases import SkipHandler
from aiogram.methods import SendMessage
from aiogram.types import CallbackQuery, ErrorEvent, Message
from cancelling import assert_free, rows
from sqlalchemy import MetaData, text
from sqlalchemy.exc import InvalidRequestError, PendingRollbackError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from qsession import ConflictError, QSession, QueueTimeout, ReadOnlyError
from qsession.ext.aiogram import Sessions, finish
from qsession.session.maker import SessionMaker
from qsession.testing import When, cancel_at

MANY = 300


class Base(DeclarativeBase):
    """The tables of these tests."""

    metadata = MetaData()


class User(Base):
    """Somebody who has points."""

    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    points: Mapped[int] = mapped_column(default=0)


@pytest.fixture
async def maker(tmp_path: Path) -> AsyncIterator[SessionMaker]:
    """Sessions on a file, in which a user has no points yet."""
    maker = SessionMaker(f"sqlite+aiosqlite:///{tmp_path / 'bot.db'}")
    async with maker.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with maker.begin() as session:
        session.add(User(id=7))
    yield maker
    await maker.dispose()


@pytest.fixture
def points(tmp_path: Path) -> Any:
    """What a connection from outside sees of the points."""
    return lambda: rows(tmp_path / "bot.db", "SELECT points FROM users WHERE id = 7")[0][0]


def dispatcher_of(maker: SessionMaker, **options: Any) -> tuple[Dispatcher, Router]:
    """A dispatcher with sessions, and a router in it."""
    dispatcher, router = Dispatcher(), Router()
    Sessions(maker, **options).setup(dispatcher)
    dispatcher.include_router(router)
    return dispatcher, router


async def add_point(session: QSession) -> int:
    """Read, and write what was read and one more."""
    user = await session.get_one(User, 7)
    user.points += 1
    return user.points


async def somebody_else_adds(maker: SessionMaker, amount: int) -> None:
    """In a transaction of its own."""
    async with maker.begin() as other:
        await other.execute(text(f"UPDATE users SET points = points + {amount}"))


async def test_hundreds_at_once_lose_nothing(maker, points):
    """Each of hundreds of updates gets a session of its own, and its answer after the commit."""
    dispatcher, router = dispatcher_of(maker)
    sessions = set()
    unconfirmed = []

    @router.message()
    async def point(message: Message, session: QSession) -> SendMessage:
        sessions.add(session)
        return message.answer(str(await add_point(session)))

    async def feed() -> int:
        answer = await dispatcher.feed_webhook_update(bot, updates.message("point"))
        assert isinstance(answer, SendMessage)
        if points() < int(answer.text):
            unconfirmed.append(answer)
        return int(answer.text)

    bot, requests = updates.bot()
    answers = await asyncio.gather(*(feed() for _ in range(MANY)))
    assert sorted(answers) == list(range(1, MANY + 1))
    assert (points(), len(sessions), unconfirmed, requests.texts) == (MANY, MANY, [], [])


async def test_polling_answers_after_the_commit(maker, points, monkeypatch):
    """What a handler returns is sent by start_polling, when the points are in the file."""
    dispatcher, router = dispatcher_of(maker)
    bot, requests = updates.bot()
    waiting = [updates.message("point") for _ in range(MANY)]
    seen = []

    async def make_request(bot: Bot, method: Any, timeout: Any = None) -> Any:
        if method.__api_method__ == "getMe":
            return updates.ME
        if method.__api_method__ == "getUpdates":
            taken, waiting[:] = waiting[:100], waiting[100:]
            if not taken and len(seen) == MANY:
                await dispatcher.stop_polling()
            await asyncio.sleep(0)
            return [updates.parsed(each, bot) for each in taken]
        seen.append((int(method.text), points()))
        return None

    monkeypatch.setattr(requests, "make_request", make_request)

    @router.message()
    async def point(message: Message, session: QSession) -> SendMessage:
        return message.answer(str(await add_point(session)))

    await dispatcher.start_polling(bot, handle_signals=False)
    assert sorted(told for told, _ in seen) == list(range(1, MANY + 1))
    assert all(told <= there for told, there in seen)
    assert points() == MANY


async def test_an_error_rolls_back_and_goes_out(maker, points, tmp_path):
    """The error handlers of aiogram get it, with a session of their own."""
    dispatcher, router = dispatcher_of(maker)
    told = []

    @router.message(F.text == "fail")
    async def fail(message: Message, session: QSession) -> None:
        await add_point(session)
        await session.flush()
        raise LookupError(message.text)

    @router.errors(F.update.message.from_user.id == 8)
    async def failed(error: ErrorEvent, session: QSession) -> str:
        told.append(error.exception)
        await session.execute(text("UPDATE users SET points = 100"))
        return "told"

    bot, _ = updates.bot()
    with pytest.raises(LookupError):
        await dispatcher.feed_raw_update(bot, updates.message("fail"))
    assert points() == 0
    assert_free(tmp_path / "bot.db")
    assert await dispatcher.feed_raw_update(bot, updates.message("fail", user=8)) == "told"
    assert [type(each) for each in told] == [LookupError]
    assert points() == 100


async def test_all_kinds_of_events_and_the_next_handler(maker, points):
    """A button has a session, too. A handler that passes the event on leaves nothing behind."""
    dispatcher, router = dispatcher_of(maker, access="auto")

    @router.callback_query()
    async def skip(query: CallbackQuery, session: QSession) -> None:
        await add_point(session)
        raise SkipHandler

    @router.callback_query()
    async def pressed(query: CallbackQuery, session: QSession) -> str:
        assert await add_point(session) == 1
        return session.access

    bot, _ = updates.bot()
    assert await dispatcher.feed_raw_update(bot, updates.press("now")) == "auto"
    assert points() == 1


@pytest.mark.parametrize("when", list(When))
@pytest.mark.parametrize("attempts", [1, 5])
async def test_cancelled_anywhere(maker, points, tmp_path, when, attempts):
    """A handler that is cancelled at any of its awaits has counted, or has left nothing."""
    dispatcher, router = dispatcher_of(maker)
    done = []

    @router.message(flags={"session": {"attempts": attempts}})
    async def point(message: Message, session: QSession) -> None:
        await add_point(session)
        await session.flush()
        await message.answer("counted")
        done.append(message)

    bot, _ = updates.bot()
    n = acknowledged = 0
    while True:
        n += 1
        feed = dispatcher.feed_raw_update(bot, updates.message("point"))
        before = points()
        ended = await cancel_at(feed, n, when)
        assert points() - before in ((1,) if ended else (0, 1))
        acknowledged += ended
        assert_free(tmp_path / "bot.db")
        if ended:
            break
    assert n > 2
    assert 1 <= points() <= len(done)


@pytest.mark.parametrize("attempts", [1, 5])
async def test_a_task_that_goes_on_after_its_handler(maker, points, tmp_path, attempts):
    """The session is closed for good, so the task cannot take the lock that nobody gives back."""
    dispatcher, router = dispatcher_of(maker)
    over, tasks = asyncio.Event(), []

    @router.message(flags={"session": {"attempts": attempts}})
    async def point(message: Message, session: QSession) -> None:
        async def later() -> None:
            await over.wait()
            await add_point(session)
            await session.flush()

        await add_point(session)
        tasks.append(asyncio.create_task(later()))

    bot, _ = updates.bot()
    await dispatcher.feed_raw_update(bot, updates.message("point"))
    over.set()
    (told,) = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(told, InvalidRequestError)
    assert "closed" in str(told)
    assert points() == 1
    assert_free(tmp_path / "bot.db")


async def test_a_conflict_goes_out(maker, points):
    """A handler without the flag is called once; what it wrote is not there."""
    dispatcher, router = dispatcher_of(maker, access="auto")
    calls = []

    @router.message()
    async def point(message: Message, session: QSession) -> None:
        calls.append(message)
        user = await session.get_one(User, 7)
        await somebody_else_adds(maker, 10)
        user.points += 1

    bot, _ = updates.bot()
    with pytest.raises(ConflictError) as told:
        await dispatcher.feed_raw_update(bot, updates.message("point"))
    assert not hasattr(told.value, "__notes__")
    assert (points(), len(calls)) == (10, 1)


async def test_a_conflict_that_the_handler_hides_is_not_committed(maker, points):
    """Nobody is told that something was counted that is not there."""
    dispatcher, router = dispatcher_of(maker, access="auto")

    @router.message()
    async def point(message: Message, session: QSession) -> None:
        user = await session.get_one(User, 7)
        await somebody_else_adds(maker, 10)
        user.points += 1
        with pytest.raises(ConflictError):
            await session.flush()

    bot, _ = updates.bot()
    with pytest.raises(PendingRollbackError):
        await dispatcher.feed_raw_update(bot, updates.message("point"))
    assert points() == 10


@pytest.mark.parametrize("mark", [flags.session(attempts=5), flags.session({"attempts": 5})])
async def test_a_marked_handler_runs_again(maker, points, mark):
    """The second call has a new session that has SQLite's lock before it reads."""
    dispatcher, router = dispatcher_of(maker, access="auto")
    sessions = []

    @router.message()
    @mark
    async def point(message: Message, session: QSession) -> SendMessage:
        sessions.append(session)
        user = await session.get_one(User, 7)
        if len(sessions) == 1:
            await somebody_else_adds(maker, 10)
        else:
            other = asyncio.create_task(somebody_else_adds(maker, 100))
            while not maker.engine.stats().waiting:
                await asyncio.sleep(0)  # it waits behind this one
            others.append(other)
        user.points += 1
        return message.answer(str(user.points))

    others: list[asyncio.Task[None]] = []
    bot, _ = updates.bot()
    answer = await dispatcher.feed_webhook_update(bot, updates.message("point"))
    assert answer.text == "11"
    await others[0]
    assert points() == 111
    assert [each.locks_first for each in sessions] == [False, True]
    assert sessions[0] is not sessions[1]


async def test_attempts_end(maker, points):
    """The last conflict goes out, and says how often it was tried."""
    dispatcher, router = dispatcher_of(maker)

    @router.message(flags={"session": {"attempts": 2}})
    async def point(message: Message, session: QSession) -> None:
        await add_point(session)
        raise ConflictError("again")

    bot, _ = updates.bot()
    with pytest.raises(ConflictError) as told:
        await dispatcher.feed_raw_update(bot, updates.message("point"))
    assert told.value.attempts == 2
    assert points() == 0


async def test_readers_wait_for_nobody(maker, points):
    """A handler with access read answers while another one has written, and cannot write."""
    dispatcher, router = dispatcher_of(maker)

    @router.message(F.text == "me")
    @flags.session(access="read")
    async def me(message: Message, session: QSession) -> int:
        return (await session.get_one(User, 7)).points

    @router.message(flags={"session": {"access": "read"}})
    async def write(message: Message, session: QSession) -> None:
        await add_point(session)

    bot, _ = updates.bot()
    async with maker.begin() as holder:
        await holder.execute(text("UPDATE users SET points = 5"))
        me_now = asyncio.create_task(dispatcher.feed_raw_update(bot, updates.message("me")))
        assert await me_now == 0
    with pytest.raises(ReadOnlyError):
        await dispatcher.feed_raw_update(bot, updates.message("write"))
    assert points() == 5


async def test_a_turn_that_does_not_come(maker, points, tmp_path):
    """QueueTimeout goes out to whoever feeds the update."""
    maker.configure(f"sqlite+aiosqlite:///{tmp_path / 'bot.db'}", queue_timeout=0.05)
    dispatcher, router = dispatcher_of(maker, attempts=5)

    @router.message()
    async def point(message: Message, session: QSession) -> None:
        await add_point(session)

    bot, _ = updates.bot()
    async with maker.begin() as holder:
        await holder.execute(text("UPDATE users SET points = 5"))
        feed = dispatcher.feed_webhook_update(bot, updates.message("point"))
        with pytest.raises(QueueTimeout):
            await feed
    assert points() == 5


async def test_a_commit_in_the_handler(maker, points, tmp_path):
    """It may commit before it talks to Telegram, and go on. Meanwhile others can write."""
    dispatcher, router = dispatcher_of(maker)

    @router.message()
    async def point(message: Message, session: QSession) -> None:
        await add_point(session)
        await session.commit()
        await message.answer("1")
        await add_point(session)

    bot, requests = updates.bot()
    requests.free.clear()
    feed = asyncio.create_task(dispatcher.feed_raw_update(bot, updates.message("point")))
    while not requests.begun:
        await asyncio.sleep(0)
    assert points() == 1
    assert_free(tmp_path / "bot.db")
    requests.free.set()
    await feed
    assert points() == 2


async def test_a_handler_without_a_session_takes_no_connection(maker):
    """The session that nobody uses costs nothing."""
    dispatcher, router = dispatcher_of(maker)

    @router.message()
    async def nothing(message: Message) -> str:
        return message.text

    bot, _ = updates.bot()
    before = maker.engine.stats()
    assert await dispatcher.feed_raw_update(bot, updates.message("hello")) == "hello"
    assert maker.engine.stats() == before


async def test_updates_that_were_taken_are_finished(maker, points, monkeypatch):
    """Polling is told to stop while hundreds wait for their turn: each is counted and answered."""
    dispatcher, router = dispatcher_of(maker)
    bot, requests = updates.bot()
    told = []
    taken: list[bool] = []

    async def make_request(bot: Bot, method: Any, timeout: Any = None) -> Any:
        if method.__api_method__ == "getMe":
            return updates.ME
        if method.__api_method__ == "getUpdates":
            if taken:  # this tells Telegram that it has them
                await asyncio.Event().wait()
            taken.append(True)
            return [updates.parsed(updates.message("point"), bot) for _ in range(MANY)]
        told.append(int(method.text))
        return None

    async def stop(dispatcher: Dispatcher) -> None:
        assert points() < MANY
        await finish(dispatcher)
        await maker.engine.drain()

    async def close() -> None:
        assert len(told) == MANY  # they were answered before the connection was closed

    monkeypatch.setattr(requests, "make_request", make_request)
    monkeypatch.setattr(requests, "close", close)
    dispatcher.shutdown.register(stop)

    @router.message()
    async def point(message: Message, session: QSession) -> SendMessage:
        if stopping.empty():
            stopping.put_nowait(asyncio.create_task(dispatcher.stop_polling()))
        return message.answer(str(await add_point(session)))

    stopping: asyncio.Queue[asyncio.Task[None]] = asyncio.Queue()
    await dispatcher.start_polling(bot, handle_signals=False)
    await stopping.get_nowait()
    assert sorted(told) == list(range(1, MANY + 1))
    assert points() == MANY
