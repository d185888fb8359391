"""Fair turns of the event loop. Time is simulated; the order of what runs is asyncio's own."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Coroutine
from statistics import mean, median
from typing import Any

import pytest

from qsession.waiting import pacing
from qsession.waiting.pacing import BUDGET, LoopTurn, admit, turns

FIRST = BUDGET / 2
"""Seconds: two of these fill a turn, a third makes it over."""


class Clock:
    """Time goes on only while somebody works."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(pacing, "clock", made)
    return made


@pytest.fixture
async def turn(clock: Clock) -> LoopTurn:
    return LoopTurn(asyncio.get_running_loop())


async def statement(turn: LoopTurn, holder: bool = False) -> bool:
    """Wait until a statement may run; whether it was at once."""
    future = turn.enter(holder)
    if future is not None:
        await future
    return future is None


async def loop_turns(number: int = 1) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("waiting", "holders", "cost", "number", "seconds"),
    [
        (50, 0, 0.0, 1, 0.0),  # nothing is known of the cost
        (50, 0, 0.0002, 5, 0.0),
        (50, 1, 0.0002, 4, 0.0),
        (50, 9, 0.0002, 1, 0.0),  # never less than one
        (50, 0, 0.5, 1, 0.0),
        (1, 0, 0.5, 1, BUDGET),
        (4, 0, 0.0002, 4, BUDGET / 4),  # all fit, and share what is there
        (4, 1, 0.0002, 4, BUDGET / 5),
        (5, 1, 0.0002, 4, 0.0),
        (0, 1, 0.0002, 0, BUDGET),
    ],
)
def test_how_many_are_let_in(
    waiting: int, holders: int, cost: float, number: int, seconds: float
) -> None:
    """As many as fit into the budget; at least one of the line, the holder or not."""
    found, share = admit(waiting, holders, cost)
    assert (found, share) == (number, pytest.approx(seconds))


class Crowd:
    """Tasks that do nothing but run statements, and what each of them got."""

    def __init__(self, clock: Clock, turn: LoopTurn, seconds: tuple[float, float]) -> None:
        self.clock = clock
        self.turn = turn
        self.seconds = seconds
        self.random = random.Random(7)
        self.ticket = asyncio.Lock()
        self.end = clock.now + 2.0
        self.counts: dict[str, list[int]] = {"reads": [], "writes": []}
        self.waits: dict[str, list[float]] = {"reads": [], "writes": []}

    async def run(self, readers: int, writers: int) -> None:
        await asyncio.gather(
            *(self.repeat("reads", self.read) for _ in range(readers)),
            *(self.repeat("writes", self.write) for _ in range(writers)),
        )

    async def repeat(self, kind: str, once: Callable[[], Coroutine[Any, Any, None]]) -> None:
        number = len(self.counts[kind])
        self.counts[kind].append(0)
        while self.clock.now < self.end:
            began = self.clock.now
            await once()
            self.counts[kind][number] += 1
            self.waits[kind].append(self.clock.now - began)

    async def read(self) -> None:
        await statement(self.turn)
        self.clock.work(self.random.uniform(*self.seconds))

    async def write(self) -> None:
        async with self.ticket:
            for _ in range(3):
                await statement(self.turn, holder=True)
                self.clock.work(self.random.uniform(*self.seconds))

    def check(self, kind: str) -> None:
        counts, waits = self.counts[kind], sorted(self.waits[kind])
        assert min(counts) >= mean(counts) / 2
        assert max(counts) <= mean(counts) * 2
        assert waits[int(len(waits) * 0.99)] <= 3 * median(waits)


@pytest.mark.parametrize("seconds", [(0.0001, 0.0003), (0.00002, 0.00003), (0.0008, 0.0015)])
@pytest.mark.parametrize("readers", [50, 200])
async def test_readers_have_equal_shares(
    clock: Clock, turn: LoopTurn, readers: int, seconds: tuple[float, float]
) -> None:
    """No task gets less than half or more than twice the mean, and none waits much longer."""
    crowd = Crowd(clock, turn, seconds)
    await crowd.run(readers, 0)
    crowd.check("reads")


@pytest.mark.parametrize("seconds", [(0.0001, 0.0003), (0.0008, 0.0015)])
async def test_readers_beside_writers_have_equal_shares(
    clock: Clock, turn: LoopTurn, seconds: tuple[float, float]
) -> None:
    """The same among 25 readers, and among the 25 writers beside them; both get on."""
    crowd = Crowd(clock, turn, seconds)
    await crowd.run(25, 25)
    crowd.check("reads")
    crowd.check("writes")
    reads, writes = (sum(crowd.counts[kind]) for kind in ("reads", "writes"))
    assert writes / 5 <= reads <= writes * 10


@pytest.mark.parametrize("readers", [2, 3, 5, 20])
async def test_few_readers_share_a_turn(clock: Clock, turn: LoopTurn, readers: int) -> None:
    """Several statements of each go into one turn, and nobody gets more of it by being last."""
    crowd = Crowd(clock, turn, (0.00002, 0.00002))
    await crowd.run(readers, 0)
    assert min(crowd.counts["reads"]) >= mean(crowd.counts["reads"]) * 0.9


async def test_alone_it_waits_only_when_the_turn_is_over(clock: Clock, turn: LoopTurn) -> None:
    """A statement goes on at once until the turn is as old as the budget."""
    assert not turn.over
    assert turn.mark is None
    marks = set()
    for expected in [True, True, False] * 5:
        assert await statement(turn) is expected
        assert turn.mark is not None
        marks.add(turn.mark)
        clock.work(FIRST)
        if expected is False:  # a new turn has begun with it
            assert await statement(turn)
            clock.work(FIRST)
            clock.work(FIRST)
            assert turn.over
            assert not await statement(turn)
            clock.work(2 * BUDGET)
            await loop_turns(2)
            assert turn.mark is None
            assert not turn.over
    assert len(marks) == 10


async def test_first_come_first_served(clock: Clock, turn: LoopTurn) -> None:
    """In the order of coming, whatever each has cost; the holder goes before all of them."""
    order: list[int | str] = []

    def goes_on(future: asyncio.Future[None]) -> None:
        clock.work(0.0004)
        order.append(places[future])

    assert await statement(turn)
    clock.work(2 * BUDGET)
    names: list[int | str] = [0, 1, 2, "holder", 3, 4]
    places = {future: each for each in names if (future := turn.enter(each == "holder"))}
    for each in places:
        each.add_done_callback(goes_on)
    for each in places:
        await each
    await loop_turns()
    assert order == ["holder", 0, 1, 2, 3, 4]


async def test_nobody_passes_those_who_wait(clock: Clock, turn: LoopTurn) -> None:
    """A task that comes while others are left over waits as well, in a turn that has just begun."""
    assert await statement(turn)
    clock.work(2 * BUDGET)
    first, second = turn.enter(), turn.enter()
    assert first is not None
    assert second is not None
    await first
    late = turn.enter()
    assert late is not None
    await second
    assert not late.done()
    await late


async def test_the_holder_goes_on_past_those_who_wait(clock: Clock, turn: LoopTurn) -> None:
    """Its place is the first in line; only the age of the turn keeps it from going on."""
    assert await statement(turn)
    clock.work(2 * BUDGET)
    waiting = [turn.enter() for _ in range(3)]
    assert waiting[0] is not None
    await waiting[0]
    assert turn.enter() is not None
    assert turn.enter(holder=True) is None
    clock.work(2 * BUDGET)
    held = turn.enter(holder=True)
    assert held is not None
    await held
    assert not all(each.done() for each in waiting if each is not None)


async def test_a_holder_that_always_works_leaves_room(clock: Clock, turn: LoopTurn) -> None:
    """At least one of the line goes on in each turn, also where the holder fills all of it."""
    stop = asyncio.Event()

    async def hold() -> None:
        while not stop.is_set():
            await statement(turn, holder=True)
            clock.work(2 * BUDGET)

    async def read() -> None:
        await statement(turn)
        clock.work(FIRST)

    holding = asyncio.create_task(hold())
    await asyncio.gather(*(read() for _ in range(20)))
    stop.set()
    await holding


async def test_cancelled_ones_take_nobodys_place(clock: Clock, turn: LoopTurn) -> None:
    """A place in line that was given up is passed over, however many there are."""
    assert await statement(turn)
    clock.work(2 * BUDGET)
    waiting = [turn.enter() for _ in range(20)]
    for each in waiting[:-1]:
        assert each is not None
        each.cancel()
    assert waiting[-1] is not None
    await waiting[-1]
    await loop_turns(3)
    assert await statement(turn)


async def test_all_are_cancelled(clock: Clock, turn: LoopTurn) -> None:
    """Nobody is left, and the next statement goes on at once."""
    assert await statement(turn)
    clock.work(2 * BUDGET)
    for holder in (False, True):
        future = turn.enter(holder)
        assert future is not None
        future.cancel()
    await loop_turns(3)
    assert turn.mark is None
    assert await statement(turn)


async def test_an_exception_in_between(clock: Clock, turn: LoopTurn) -> None:
    """One who was let in fails instead of working: those behind it go on."""

    async def work(fails: bool, future: asyncio.Future[None] | None) -> None:
        assert future is not None
        await future
        if fails:
            raise ValueError("broken")

    assert await statement(turn)
    clock.work(2 * BUDGET)
    found = await asyncio.gather(
        *(work(bool(each % 2), turn.enter()) for each in range(20)), return_exceptions=True
    )
    assert [type(each) for each in found] == [type(None), ValueError] * 10


def test_a_loop_that_stops_and_starts_again(clock: Clock) -> None:
    """Those in line when it stops go on when it runs again."""
    loop = asyncio.new_event_loop()
    try:
        turn = LoopTurn(loop)

        async def crowd() -> list[asyncio.Future[None]]:
            await statement(turn)
            clock.work(2 * BUDGET)
            return [future for _ in range(5) if (future := turn.enter()) is not None]

        for _ in range(3):
            waiting = loop.run_until_complete(crowd())
            assert len(waiting) == 5
            assert not all(each.done() for each in waiting)
            for each in waiting:
                loop.run_until_complete(each)
    finally:
        loop.close()


class Short:
    """A loop that is out of memory when it is told so."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.fail = 0
        self.create_future = loop.create_future

    def call_soon(self, *args: Any) -> Any:
        if self.fail:
            self.fail -= 1
            raise MemoryError
        return self.loop.call_soon(*args)


@pytest.mark.parametrize("failures", [1, 2, 3])
async def test_out_of_memory(clock: Clock, failures: int) -> None:
    """A turn that could not be set is set by the next who enters; nobody waits for ever."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)
    short = Short(loop)
    turn = LoopTurn(short)  # type: ignore[arg-type]
    short.fail = 1
    with pytest.raises(MemoryError):
        turn.enter()
    assert await statement(turn)
    clock.work(2 * BUDGET)
    waiting = [future for _ in range(5) if (future := turn.enter()) is not None]
    assert len(waiting) == 5
    short.fail = failures
    await loop_turns(5)
    while short.fail:
        with pytest.raises(MemoryError):
            turn.enter()
    await statement(turn)
    for each in waiting:
        await each


async def test_a_newcomer_waits_for_those_let_in(clock: Clock, turn: LoopTurn) -> None:
    """Between being let in and going on nobody gets ahead; the holder may."""
    assert await statement(turn)
    clock.work(2 * BUDGET)
    first = turn.enter()
    assert first is not None
    await asyncio.sleep(0)
    assert first.done()
    assert turn.mark is None  # its task, which would be next, has not gone on yet
    assert turn.enter() is not None
    assert turn.enter(holder=True) is None


async def test_what_others_do_is_not_its_cost(clock: Clock, turn: LoopTurn) -> None:
    """A loop that is busy with other things lets in as many as one that is not."""

    async def other() -> None:
        while True:
            clock.work(10 * BUDGET)
            await asyncio.sleep(0)

    busy = asyncio.create_task(other())
    crowd = Crowd(clock, turn, (0.0001, 0.0001))
    await crowd.run(50, 0)
    busy.cancel()
    assert admit(50, 0, turn._cost)[0] >= 8


def test_each_loop_has_its_own() -> None:
    """Of several threads, and of several loops in one; asked again, it is the same."""
    seen: list[LoopTurn] = []

    async def look() -> None:
        loop = asyncio.get_running_loop()
        seen.append(turns.of(loop))
        assert turns.of(loop) is seen[-1]
        assert seen[-1].loop is loop
        for _ in range(200):
            await statement(seen[-1])

    threads = [threading.Thread(target=asyncio.run, args=(look(),)) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    asyncio.run(look())
    asyncio.run(look())
    assert len({id(each) for each in seen}) == 5
