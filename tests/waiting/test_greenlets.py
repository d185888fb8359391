"""Greenlets that are used again: as SQLAlchemy's, and nothing of one call is left for the next."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import weakref
from typing import Any

import pytest
from greenlet import getcurrent
from sqlalchemy.util import await_only

from qsession.waiting import greenlets
from qsession.waiting.greenlets import spawn

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")


class Thing:
    """Something that a call refers to."""


async def same(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


async def test_a_function_may_wait() -> None:
    """What it waits for is awaited, in order, and its result is returned."""

    def add(a: int, *, b: int) -> int:
        first: int = await_only(same(a))
        second: int = await_only(same(b))
        return first + second

    assert await spawn(add, 1, b=2) == 3


async def test_one_is_used_again() -> None:
    """The second call runs in the greenlet of the first."""
    first = await spawn(getcurrent)
    assert await spawn(getcurrent) is first


async def test_calls_at_the_same_time_have_one_each() -> None:
    """A greenlet whose function waits is nobody else's."""

    def where() -> Any:
        mine = getcurrent()
        await_only(same(None))
        assert getcurrent() is mine
        return mine

    found = await asyncio.gather(*(spawn(where) for _ in range(5)))
    assert len(set(map(id, found))) == 5


async def test_calls_may_be_nested() -> None:
    """What a function awaits may itself run a function."""

    def inner(value: int) -> int:
        return int(await_only(same(value))) + 1

    def outer() -> int:
        return int(await_only(spawn(inner, 1))) + 1

    assert await spawn(outer) == 3


@pytest.mark.parametrize("fails", [False, True])
async def test_one_that_goes_on_elsewhere(fails: bool) -> None:
    """As an eager task does that is started in a function: its next steps are the loop's.

    The greenlet that it has begun in is idle by then, or runs another function.
    """

    async def step(value: int) -> int:
        await asyncio.sleep(0)
        if fails and value == 1:
            raise ValueError
        return value

    def inner() -> int:
        try:
            return int(await_only(step(1))) + int(await_only(step(2)))
        except ValueError:
            return int(await_only(step(3)))

    class GoesOn:
        """Awaits the rest of a coroutine that was begun elsewhere, as a task would."""

        def __init__(self) -> None:
            self.work = spawn(inner)
            self.first: Any = self.work.send(None)

        def __await__(self) -> Any:
            awaited = self.first
            while True:
                yield awaited
                try:
                    awaited = self.work.send(None)
                except StopIteration as end:
                    return end.value

    begun = await spawn(GoesOn)
    assert await begun == 3
    assert await asyncio.gather(*(spawn(await_only, same(n)) for n in range(3))) == [0, 1, 2]


async def test_an_error_is_raised() -> None:
    """Also one of what is awaited; and the greenlet can be used again."""

    async def fail() -> None:
        raise ValueError("x")

    def wait() -> None:
        await_only(fail())

    def catch() -> str:
        try:
            await_only(fail())
        except ValueError as error:
            return str(error)
        return ""

    with pytest.raises(ValueError, match="x"):
        await spawn(wait)
    assert await spawn(catch) == "x"
    assert await spawn(int, "3") == 3


async def test_cancelled_where_it_waits() -> None:
    """The function sees the cancellation, and may wait once more before it ends."""
    begun, cleaned = asyncio.Event(), []

    async def wait_for_ever() -> None:
        begun.set()
        await asyncio.get_running_loop().create_future()

    def work() -> None:
        try:
            await_only(wait_for_ever())
        finally:
            cleaned.append(await_only(same("cleaned")))

    task = asyncio.create_task(spawn(work))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned == ["cleaned"]
    assert await spawn(int, "1") == 1


async def test_context_variables_are_those_of_the_task() -> None:
    """What it sets there is seen in the task; an idle greenlet keeps no context of the last one."""

    def change(value: str) -> str:
        before = VARIABLE.get()
        VARIABLE.set(value)
        await_only(same(None))
        return before

    async def task(value: str) -> tuple[str, str]:
        return await spawn(change, value), VARIABLE.get()

    assert await asyncio.create_task(task("a")) == ("none", "a")
    assert await asyncio.create_task(task("b")) == ("none", "b")
    assert VARIABLE.get() == "none"


@pytest.mark.parametrize("fails", [False, True])
async def test_nothing_is_kept(fails: bool) -> None:
    """Arguments, results, errors and the values of context variables are free afterwards."""

    def work(argument: Thing) -> Thing:
        found: Thing = await_only(same(argument))
        if fails:
            raise ValueError(found)
        return found

    async def run() -> weakref.ref[Thing]:
        thing = Thing()
        VARIABLE.set(thing)  # type: ignore[arg-type]
        try:
            await spawn(work, thing)
        except ValueError:
            assert fails
        return weakref.ref(thing)

    left = await asyncio.create_task(run())
    await same(None)  # the loop lets go of the context of the task
    gc.collect()
    assert left() is None


async def test_a_forgotten_call_ends() -> None:
    """A coroutine that is closed while it waits ends its function, which is not begun anew."""
    ended = []

    async def wait_for_ever() -> None:
        await asyncio.get_running_loop().create_future()

    def work() -> None:
        try:
            await_only(wait_for_ever())
        except GeneratorExit:
            ended.append(True)
            raise

    coroutine = spawn(work)
    coroutine.send(None)
    coroutine.close()
    assert ended == [True]
    assert await spawn(int, "1") == 1


async def test_each_thread_has_its_own() -> None:
    """A greenlet cannot go to another thread."""
    mine = await spawn(getcurrent)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(spawn(getcurrent))))
    thread.start()
    await asyncio.to_thread(thread.join)
    assert found[0] is not mine


async def test_idle_ones_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a burst, a thread keeps no more than the limit."""
    monkeypatch.setattr(greenlets, "KEPT", 2)
    greenlets._idle.greenlets.clear()

    def wait() -> None:
        await_only(same(None))

    await asyncio.gather(*(spawn(wait) for _ in range(5)))
    assert len(greenlets._idle.greenlets) == 2
