"""What a subscription is told of, and when its observer wakes."""

from __future__ import annotations

import asyncio
import itertools
import sys
import threading
from typing import Any

import pytest

from qsession.waiting.subscription import State, Subscription, united

BEGIN = Subscription.begin.__code__


def told(tables: set[str] | None, *commits: set[str] | None) -> Subscription:
    """A subscription to some tables, whose read has begun before the commits."""
    subscription = Subscription(None, 1.0)
    subscription.begin()
    subscription.of(None if tables is None else frozenset(tables))
    for each in commits:
        subscription.tell(None if each is None else frozenset(each))
    return subscription


@pytest.mark.parametrize(
    ("tables", "commits", "due"),
    [
        (None, [], False),
        (None, [{"a"}], True),
        (None, [set()], False),
        (None, [None], True),
        ({"a"}, [], False),
        ({"a"}, [{"a"}], True),
        ({"a"}, [{"b"}], False),
        ({"a"}, [{"b"}, {"a", "c"}], True),
        ({"a"}, [None], True),
        (set(), [{"a"}], False),
        (set(), [None], True),
    ],
)
def test_due(tables: set[str] | None, commits: list[set[str] | None], due: bool) -> None:
    """It is due if a commit may have changed one of its tables."""
    assert told(tables, *commits).is_due is due


def test_a_new_one_is_due() -> None:
    """The first result is read without waiting for a commit."""
    assert Subscription(None, 1.0).is_due


@pytest.mark.parametrize(("commit", "due"), [("a", True), ("b", False)])
def test_a_commit_while_the_tables_are_not_known(commit: str, due: bool) -> None:
    """A commit between the beginning of a read and its end counts, if its table does."""
    subscription = told({"a", "b"})
    subscription.begin()
    subscription.of(None)
    subscription.tell(frozenset({commit}))
    subscription.of(frozenset({"a"}))
    assert subscription.is_due is due


def test_begin_says_whether_anything_may_have_changed() -> None:
    """After a commit of which nothing is known, the schema may be another one."""
    subscription = told({"a"}, {"a"})
    assert not subscription.begin()
    subscription.tell(None)
    assert subscription.begin()
    assert not subscription.is_due


def test_a_commit_at_each_instruction_of_begin() -> None:
    """Another thread tells of it: either this read or the next one knows that it came."""
    for number in itertools.count(1):
        subscription = told({"a"})
        anything, came = begin_interrupted(subscription, number)
        if not came:
            break
        assert anything or subscription.begin()


def begin_interrupted(subscription: Subscription, number: int) -> tuple[bool, bool]:
    """Tell of a commit at an instruction of begin(): whether it was noticed, and if it came."""
    executed = 0

    def count(frame: Any, happens: str, _: object) -> Any:
        nonlocal executed
        frame.f_trace_opcodes = True
        if happens == "opcode":
            executed += 1
            if executed == number:
                subscription.tell(None)
        return count

    def find(frame: Any, happens: str, argument: object) -> Any:
        return count(frame, happens, argument) if frame.f_code is BEGIN else None

    before = sys.gettrace()
    sys.settrace(find)
    try:
        anything = subscription.begin()
    finally:
        sys.settrace(before)
    return anything, executed >= number


@pytest.mark.parametrize("end", [None, State.LOST, State.OVER])
async def test_another_thread_wakes_it(end: State | None) -> None:
    """A commit or the end in another thread wakes the task that waits."""
    subscription = told({"a"})
    waiting = asyncio.create_task(subscription.wait())
    await asyncio.sleep(0)
    subscription.tell(frozenset({"b"}))
    await asyncio.sleep(0)
    assert not waiting.done()
    if end is None:
        wake = threading.Thread(target=subscription.tell, args=(frozenset({"a"}),))
    else:
        wake = threading.Thread(target=subscription.end, args=(end,))
    wake.start()
    await asyncio.wait_for(waiting, 20)
    wake.join()
    assert subscription.state is (end or State.LIVE)


async def test_a_cancelled_wait_loses_nothing() -> None:
    """What is told to a task that is cancelled at the same moment is there for its next wait."""
    subscription = told({"a"})
    waiting = asyncio.create_task(subscription.wait())
    await asyncio.sleep(0)
    subscription.tell(frozenset({"a"}))
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    await asyncio.wait_for(subscription.wait(), 20)


def test_the_loop_of_the_observer_is_closed() -> None:
    """Telling it then does nothing."""
    subscription = told({"a"})
    loop = asyncio.new_event_loop()
    waiting = loop.create_task(subscription.wait())
    loop.run_until_complete(asyncio.sleep(0))
    waiting.cancel()
    loop.run_until_complete(asyncio.wait([waiting]))
    loop.close()
    subscription.tell(frozenset({"a"}))
    assert subscription.is_due


def test_over_is_final() -> None:
    """A subscription that its observer has ended is not merely lost later."""
    subscription = told(None)
    subscription.end(State.OVER)
    subscription.end(State.LOST)
    assert subscription.state is State.OVER


def test_united() -> None:
    """One part that is unknown makes the whole unknown."""
    assert united([frozenset("a"), frozenset("b")]) == {"a", "b"}
    assert united([]) == set()
    assert united([frozenset("a"), None]) is None
