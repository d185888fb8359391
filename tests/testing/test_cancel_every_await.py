"""cancel_at_every_await: where it cancels, what it tells, and that it can be cancelled itself."""

from __future__ import annotations

import asyncio

import pytest

from qsession.testing import When, cancel_at_every_await


class Steps:
    """A function of three awaits that notes how far it has come."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    async def run(self) -> None:
        self.seen.append([])
        for step in range(3):
            await asyncio.sleep(0)
            self.seen[-1].append(step)

    def check(self) -> None:
        """Nothing is wrong."""


@pytest.mark.parametrize("when", When)
async def test_each_await_in_turn(when: When) -> None:
    """It is cancelled at the first, the second and the third await, and then completes."""
    steps = Steps()
    assert await cancel_at_every_await(steps.run, steps.check, when=when) == 3
    assert steps.seen == [[], [0], [0, 1], [0, 1, 2]]


async def test_an_answer_that_is_there() -> None:
    """With `ANSWERED` the task that is waited for has ended before the cancellation comes."""
    ended = []

    async def answer() -> None:
        await asyncio.sleep(0)
        ended.append(True)

    async def ask() -> None:
        ended.clear()
        await asyncio.create_task(answer())

    async def check() -> None:
        assert ended

    assert await cancel_at_every_await(ask, check, when=When.ANSWERED) == 1


async def test_twice_reaches_the_clean_up() -> None:
    """The await of the clean-up is cancelled as well."""
    cleaned = []

    async def clean() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            cleaned.append("begun")
            await asyncio.sleep(0)
            cleaned.append("ended")

    async def check() -> None:
        assert cleaned in (["begun"], ["begun", "ended"])
        seen.append(list(cleaned))
        cleaned.clear()

    seen: list[list[str]] = []
    assert await cancel_at_every_await(clean, check, when=When.TWICE) == 2
    assert seen == [["begun"], ["begun"], ["begun", "ended"]]


async def test_a_check_that_fails_says_where() -> None:
    """The number of the await, and the line; the error itself is the cause."""
    steps = Steps()

    def check() -> None:
        if len(steps.seen) == 2:
            raise ValueError("half done")

    with pytest.raises(AssertionError, match="half done") as caught:
        await cancel_at_every_await(steps.run, check)
    assert "cancelled at await 2, test_cancel_every_await.py:" in str(caught.value)
    assert "in run: ValueError" in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError)


async def test_an_error_instead_of_the_cancellation() -> None:
    """A function that turns its cancellation into an error of its own is told of likewise."""

    async def run() -> None:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            raise OSError("gone") from None

    with pytest.raises(AssertionError, match=r"await 1.*OSError: gone"):
        await cancel_at_every_await(run, Steps().check)


async def test_an_error_of_its_own() -> None:
    """What the function raises without a cancellation is raised as it is."""

    async def run() -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match=r"^gone$"):
        await cancel_at_every_await(run, Steps().check)


async def test_a_function_that_swallows_it() -> None:
    """It ends well although it was cancelled; the next await comes, and it ends at last."""
    swallowed = []

    async def run() -> None:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            swallowed.append(True)

    assert await cancel_at_every_await(run, Steps().check) == 1
    assert swallowed == [True]


async def test_it_can_be_cancelled_itself() -> None:
    """While the function cleans up, for ever: its task is cancelled again, and waited for."""
    stands = asyncio.Event()
    ended = []

    async def run() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            stands.set()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                ended.append(True)

    task = asyncio.create_task(cancel_at_every_await(run, Steps().check))
    await stands.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]
