"""Waiters, and until when they wait."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref
from typing import Any

import pytest

from qsession.waiting import handoff
from qsession.waiting.handoff import Deadlines, Serial, Uninterrupted, Waiter


class Clock:
    """A loop whose time stands still, and the timers that were set on it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Any, tuple[Any, ...]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Any, *args: Any) -> None:
        self.timers.append((when, callback, args))

    def turn(self, now: float) -> None:
        """Let the time be ``now``, and run what is due."""
        self.now = now
        due = [each for each in self.timers if each[0] <= now]
        self.timers = [each for each in self.timers if each[0] > now]
        for _, callback, args in due:
            callback(*args)


class Patient(Waiter):
    """A waiter that notes its end."""

    __slots__ = ("expired",)

    def __init__(self) -> None:
        super().__init__()
        self.expired = False
        self._future = asyncio.get_running_loop().create_future()
        self._serial, self._expire = Serial(), self.note

    def note(self, _: Any) -> None:
        self.expired = True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def deadlines(clock: Clock) -> Deadlines:
    return Deadlines(clock)  # type: ignore[arg-type]


async def test_one_timer_for_many(clock: Clock, deadlines: Deadlines) -> None:
    """Each expires when its time is up and not before, with one timer at a time."""
    waiters = []
    for second in range(5):
        clock.now = 100.0 + second
        waiters.append(Patient())
        deadlines.add(waiters[-1], 30.0)
        assert len(clock.timers) == 1
    for second in range(5):
        clock.turn(129.9 + second)
        assert [each.expired for each in waiters] == [n < second for n in range(5)]
        clock.turn(130.0 + second)
        assert [each.expired for each in waiters] == [n <= second for n in range(5)]
        assert len(clock.timers) == (second < 4)


async def test_who_is_over_does_not_expire(clock: Clock, deadlines: Deadlines) -> None:
    """Neither one that was woken nor one that was cancelled; the timer ends with the last."""
    first, second = Patient(), Patient()
    deadlines.add(first, 1.0)
    deadlines.add(second, 1.0)
    assert first._future is not None
    assert second._future is not None
    first._future.set_result(None)
    second._future.cancel()
    clock.turn(102.0)
    assert [first.expired, second.expired] == [False, False]
    assert clock.timers == []


async def test_nobody_is_kept_alive(clock: Clock, deadlines: Deadlines) -> None:
    """A waiter that nobody else knows of goes at once, whenever its time would have been up."""
    waiter = Patient()
    waiter._expire = print
    deadlines.add(waiter, 3_600.0)
    known = weakref.ref(waiter)
    del waiter
    gc.collect()
    assert known() is None


async def test_a_line_stays_short(clock: Clock, deadlines: Deadlines) -> None:
    """Those that are over behind one that waits long are dropped now and then."""
    waiting = Patient()
    deadlines.add(waiting, 30.0)
    kept = []
    for _ in range(1_000):
        kept.append(Patient())
        deadlines.add(kept[-1], 30.0)
        kept[-1]._future.set_result(None)  # type: ignore[union-attr]
    (line,) = deadlines._lines.values()
    assert len(line.waiters) <= line.ROOM + 1


async def test_a_failure_stops_nobody_else(clock: Clock, deadlines: Deadlines) -> None:
    """If one cannot be expired, those behind it are, and later ones as well."""
    waiters = [Patient() for _ in range(3)]

    def fail(_: Any) -> None:
        raise RuntimeError("broken")

    waiters[0]._expire = fail
    for each in waiters:
        deadlines.add(each, 1.0)
    with pytest.raises(RuntimeError, match="broken"):
        clock.turn(101.0)
    clock.turn(101.0)
    assert [each.expired for each in waiters] == [False, True, True]
    later = Patient()
    deadlines.add(later, 1.0)
    clock.turn(103.0)
    assert later.expired


async def test_for_ever(clock: Clock, deadlines: Deadlines) -> None:
    """An infinite timeout is one that never comes."""
    waiter = Patient()
    deadlines.add(waiter, float("inf"))
    clock.turn(1e12)
    assert not waiter.expired


@pytest.mark.parametrize("timeout", [0.0, 0.001, 0.0123, 0.3, 5.0, 29.987654, 30.0, 3_600.0])
def test_times_are_rounded_up_a_little(timeout: float) -> None:
    """Never to less, and by a hundredth at the most, so that few timers are needed."""
    assert timeout <= handoff._rounded_up(timeout) <= timeout * 1.0101
    many = {handoff._rounded_up(29.0 + each / 10_000) for each in range(10_000)}
    assert len(many) <= 12


async def until(event: asyncio.Event, seen: list[str]) -> str:
    """Work that waits for a turn of the loop, then for an event, and says how it ended."""
    try:
        await asyncio.sleep(0)
        await event.wait()
        seen.append("done")
    except BaseException as error:
        seen.append(type(error).__name__)
        raise
    return "found"


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("times", [1, 2, 3])
async def test_uninterrupted_runs_to_its_end(turns: int, times: int) -> None:
    """However often and wherever it is cancelled; the cancellation comes afterwards."""
    event, seen = asyncio.Event(), []

    async def waits() -> str:
        return await Uninterrupted(until(event, seen))

    task = asyncio.create_task(waits())
    for _ in range(turns):
        await asyncio.sleep(0)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    if turns:
        assert not task.done()
        assert seen == []
    event.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == (["done"] if turns else [])


async def test_uninterrupted_returns_and_raises() -> None:
    """What the work does; in the task that awaits, whose context it shares."""
    event, seen = asyncio.Event(), []
    event.set()
    assert await Uninterrupted(until(event, seen)) == "found"

    async def fails() -> None:
        await asyncio.sleep(0)
        inside.set(asyncio.current_task())
        raise ZeroDivisionError

    inside: contextvars.ContextVar[Any] = contextvars.ContextVar("inside")
    with pytest.raises(ZeroDivisionError):
        await Uninterrupted(fails())
    assert inside.get() is asyncio.current_task()


async def test_uninterrupted_fails_behind_a_cancellation() -> None:
    """The cancellation is raised, as by to_end; the error is its cause."""
    event = asyncio.Event()

    async def fails() -> None:
        await event.wait()
        raise ZeroDivisionError

    async def waits() -> BaseException | None:
        with pytest.raises(asyncio.CancelledError) as caught:
            await Uninterrupted(fails())
        return caught.value.__cause__

    task = asyncio.create_task(waits())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    event.set()
    assert isinstance(await task, ZeroDivisionError)


async def test_uninterrupted_sees_a_future_that_others_have_cancelled() -> None:
    """That is an error of the work, and no cancellation of the task."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def work() -> str:
        try:
            await future
        except asyncio.CancelledError:
            return "seen"
        return "not seen"

    asyncio.get_running_loop().call_soon(future.cancel)
    assert await Uninterrupted(work()) == "seen"


async def test_uninterrupted_is_forgotten() -> None:
    """Nobody awaits it any more: the work is closed, as every coroutine is."""
    seen: list[str] = []
    awaiting = Uninterrupted(until(asyncio.Event(), seen)).__await__()
    awaiting.send(None)
    awaiting.close()
    assert seen == ["GeneratorExit"]
